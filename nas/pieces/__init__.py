"""What workers run and hold: texts, weights, boundaries, whole models, comparisons, training and timing."""
