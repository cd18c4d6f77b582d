"""The product: job, families, modeling, variants, stages, export, report and the command line."""
