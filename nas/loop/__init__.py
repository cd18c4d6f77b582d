"""What closes the loop on the driver: candidates and their true figures, corrections, swaps, probes, baselines."""
