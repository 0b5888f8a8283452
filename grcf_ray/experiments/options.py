"""Options of single experiments, beside the run that they start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from grcf_ray.errors import ConfigError

_FOR = {
    "retune": "ablation",
    "backbone": "complexity",
    "backbones": "backbones",
    "onto": "transfer",
    "onto_data": "transfer",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options, each of one experiment."""

    backbone: str | None = None
    """complexity: the text encoder, if no run is given."""
    retune: bool = False
    """ablation: also search each ablation anew."""
    backbones: tuple[str, ...] = ()
    """backbones: the text encoders to compare with the run's [default: the paper's]."""
    onto: str | None = None
    """transfer: the data set that the run's models are applied to."""
    onto_data: Path | None = None
    """transfer: the files of that data set, if a search would not find them."""

    def check(self, experiment: str) -> None:
        """Raise ConfigError if an option belongs to another experiment; `all` takes every option."""
        for name, owner in _FOR.items():
            if getattr(self, name) and experiment not in (owner, "all"):
                raise ConfigError(f"--{name.replace('_', '-')} is an option of {owner}, not of {experiment}")
