"""Find the models: GRCF, and one module each in `grcf_ray/model/baselines`.

Settings name a model before anything builds it, so this lies below the models, and imports one when it is asked for.
Nothing else in the package knows a model by name.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from types import ModuleType

_GRCF = "grcf"
_BASELINES = "grcf_ray.model.baselines"


@cache
def model_names() -> tuple[str, ...]:
    """Return the names of all models, GRCF first; `ef-lstm` is the module `ef_lstm`. No model is imported."""
    modules = pkgutil.iter_modules(import_module(_BASELINES).__path__)
    return (_GRCF, *sorted(module.name.replace("_", "-") for module in modules))


def model_title(name: str) -> str:
    """Return the name of a model as tables print it. GRCF's needs no import, so commands that list runs stay quick."""
    return "GRCF" if name == _GRCF else str(model_module(name).CARD.title)


def model_module(name: str) -> ModuleType:
    """Return the module of a model; its `CARD` says what the model is. name: one of `model_names`."""
    if name == _GRCF:
        return import_module("grcf_ray.model.grcf")
    return import_module(f"{_BASELINES}.{name.replace('-', '_')}")
