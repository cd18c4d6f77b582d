"""tune: an Optuna study over how a job trains; `tune.py` is its table of contents."""
