"""Data sets: import, validate, store, and turn into features, pairs and batches."""
