"""What single experiments are asked for beyond the run that they start from."""

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
    """Each is one experiment's."""

    backbone: str | None = None
    """complexity: the text encoder, without a run."""
    retune: bool = False
    """ablation: search each ablation anew as well."""
    backbones: tuple[str, ...] = ()
    """backbones: the text encoders beside the run's; by default the paper's."""
    onto: str | None = None
    """transfer: the data set that the run's models are taken to."""
    onto_data: Path | None = None
    """transfer: its files, where they do not lie where a search would look for them."""

    def check(self, experiment: str) -> None:
        """ConfigError where an option is another experiment's; `all` takes every one."""
        for name, owner in _FOR.items():
            if getattr(self, name) and experiment not in (owner, "all"):
                raise ConfigError(f"--{name.replace('_', '-')} is for {owner}, not for {experiment}")
