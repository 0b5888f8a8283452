"""Distributed training and hyperparameter search for GRCF, a two-stage model for multimodal sentiment analysis."""

__version__ = "0.1.0"
