"""The two-stage hyperparameter search: trials, scheduling, the run record."""
