"""Distributed training and hyperparameter search for GRCF, a two-stage model for multimodal sentiment analysis."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grcf_ray.search.saved import load_model

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """What is imported when it is first asked for, so that a command's `--help` need not wait for torch."""
    if name == "load_model":
        from grcf_ray.search.saved import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
