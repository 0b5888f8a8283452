"""The experiments by name, in the order that the command lists, and their options."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from grcf_ray.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments."""

    name: str
    paper: str
    summary: str
    module: str
    """Its module in grcf_ray.experiments, imported when it runs; the function has the experiment's name."""
    trains: bool = True
    """Whether it trains models beyond the search's own."""


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("main", "Tables 1 and 2, Figure 4", "the winner's configuration on test, over seeds", "main"),
        Experiment("curves", "Figure 3", "losses of the winner's stages by term", "paper_figures", trains=False),
        Experiment("ablation", "Table 3", "the gain of each part of the method", "grids"),
        Experiment("tsne", "Figure 5", "clusters in the ablations' representations", "paper_figures"),
        Experiment("margins", "Table 4", "ordinal groups of the dynamic margin", "grids"),
        Experiment("noise", "Table 5", "noise on audio and vision at inference", "robustness"),
        Experiment(
            "hard-pairs", "Tables 6 to 8, Figures 6 and 7", "pairs that the advantage weights single out", "hard_pairs"
        ),
        Experiment("stability", "Figure 8", "weights of Stage 1's losses, one at a time", "grids"),
        Experiment("importance", "Figure 9", "importance of the searched parameters", "paper_figures", trains=False),
        Experiment("scatter", "Figure 10", "truth against prediction on test", "paper_figures", trains=False),
        Experiment("transfer", "Table 9", "the models on another data set (--onto NAME)", "transfer"),
        Experiment("modalities", "Table 10", "audio or vision removed at inference", "robustness"),
        Experiment("backbones", "Table 11", "other text encoders", "grids"),
        Experiment(
            "complexity",
            "Table 12",
            "parameters, operations, memory and time; needs no run",
            "complexity",
            trains=False,
        ),
    )
}
"""In the order of the paper's tables."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options, each of one experiment, which its metadata names."""

    backbone: str | None = dataclasses.field(default=None, metadata={"experiment": "complexity"})
    """The text encoder, if no run is given."""
    models: tuple[str, ...] = dataclasses.field(default=(), metadata={"experiment": "main"})
    """The models to search and train as the run's own, instead of the paper's figures; `all` stands for every model."""
    two_stage: bool = dataclasses.field(default=False, metadata={"experiment": "main"})
    """Also search and train each of these models in two stages."""
    retune: bool = dataclasses.field(default=False, metadata={"experiment": "ablation"})
    """Also search each ablation anew."""
    backbones: tuple[str, ...] = dataclasses.field(default=(), metadata={"experiment": "backbones"})
    """The text encoders to compare with the run's [default: the paper's]."""
    onto: str | None = dataclasses.field(default=None, metadata={"experiment": "transfer"})
    """The data set that the run's models are applied to."""
    onto_data: Path | None = dataclasses.field(default=None, metadata={"experiment": "transfer"})
    """The files of that data set, if a search would not find them."""

    def check(self, experiment: str) -> None:
        """Raise ConfigError if an option belongs to another experiment; `all` takes every option."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name) and experiment not in (owner := field.metadata["experiment"], "all"):
                raise ConfigError(f"--{field.name.replace('_', '-')} is an option of {owner}, not of {experiment}")
        if self.two_stage and not self.models:
            raise ConfigError("--two-stage is about the models that --models names; name them: --models all")
