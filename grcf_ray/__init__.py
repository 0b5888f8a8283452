"""Distributed training and hyperparameter search for GRCF, a two-stage model for multimodal sentiment analysis."""

from typing import TYPE_CHECKING, Any

from grcf_ray._version import __version__

if TYPE_CHECKING:
    from grcf_ray.search.saved_model import load_model

__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """Import a name of the public API at first use: a command's `--help` must not wait for torch."""
    if name == "load_model":
        from grcf_ray.search.saved_model import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
