"""Training of one configuration: the stage loop, checkpoints, workers, saved models."""
