"""Distributed training and hyperparameter search for GRCF, a two-stage model for multimodal sentiment analysis."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from grcf_ray._version import __version__

if TYPE_CHECKING:
    from grcf_ray.api.run import Run, open_run
    from grcf_ray.api.searching import run_search
    from grcf_ray.api.training import Training, train_model
    from grcf_ray.search.saved_model import load_model

__all__ = ["Run", "Training", "__version__", "load_model", "open_run", "run_search", "train_model"]

_MODULES = {
    "Run": "grcf_ray.api.run",
    "open_run": "grcf_ray.api.run",
    "run_search": "grcf_ray.api.searching",
    "Training": "grcf_ray.api.training",
    "train_model": "grcf_ray.api.training",
    "load_model": "grcf_ray.search.saved_model",
}


def __getattr__(name: str) -> Any:
    """Import a name of the public API at first use: a command's `--help` must not wait for torch."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
