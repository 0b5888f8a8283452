"""What a run shows: terminal, page, model card, TensorBoard."""
