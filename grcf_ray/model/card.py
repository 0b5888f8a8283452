"""What a model says about itself: its paper, what it can read, its options, and the ranges to search them in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grcf_ray.config import NoOptions, Task
from grcf_ray.plugins import model_module

if TYPE_CHECKING:
    from grcf_ray.model.base import MultimodalModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model as `model.name` chooses it. Its name is that of its module."""

    title: str
    """The name that tables print, such as `EF-LSTM`."""
    paper_row: str | None = None
    """The name of its row in the tables of the GRCF paper, if that is not the title."""
    paper: str
    year: int
    venue: str
    networks: Mapping[Task, type[MultimodalModel]]
    """The network for each task that the model can learn."""
    modalities: tuple[str, ...] = ("text", "vision", "audio")
    """The modalities that it can use. It has no branch for a modality that the data lack."""
    needs_text: bool = False
    """Whether it cannot be built without text."""
    two_stage: bool = False
    """Whether it is trained in both stages unless asked otherwise; the others are trained on the MAE alone."""
    published: str | None = None
    """The parameter count that the paper prints, with its conditions."""
    source: str | None = None
    """What the equations were taken from, if the paper's own were not seen."""
    options: type = NoOptions
    """A frozen dataclass of its own hyperparameters, with the published defaults."""
    search: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """The range of each option worth a search, at most six: {low, high, log} or {choices}."""

    @property
    def reads_states(self) -> bool:
        """Whether the model reads the subwords' states rather than one text vector."""
        return any(network.reads_states for network in self.networks.values())


def card_of(name: str) -> ModelCard:
    """Return the card of a model. name: one of `grcf_ray.plugins.model_names`."""
    card: ModelCard = model_module(name).CARD
    return card


def search_entries(name: str) -> dict[str, dict[str, Any]]:
    """Return the entries of a search space for a model's own options, by path. They start at the defaults."""
    card = card_of(name)
    defaults = card.options()
    return {f"{name}.{option}": {**entry, "start": getattr(defaults, option)} for option, entry in card.search.items()}
