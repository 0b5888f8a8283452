"""A trial without any work. Its process imports no torch, so that many fit a small machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grcf_ray.cluster  # noqa: F401  before Ray

from ray import tune

if TYPE_CHECKING:
    from grcf_ray.search.trial import Shared

FIGURES = 30
"""Metrics of an epoch, about as many as in a real trial."""


class IdleTrainable(tune.Trainable):
    """A trial of one epoch that takes no time; its objective is a function of its number."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]
        """Store the first trial's configuration."""
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Store the next trial's configuration; the process is reused."""
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Return the result of a trial's last epoch in the format of `JobRunner.step`."""
        value = 0.5 + (7919 * self.config["number"] % 997) / 2000
        figures = {f"figure_{index}": value / (index + 1) for index in range(FIGURES)}
        epoch = {"epoch": 1, "valid/pairwise_acc": value, "seconds": 0.0, "utterance_passes": 0.0, **figures}
        return {
            "epoch": 1,
            "curve": [epoch],
            "objective": value,
            "notes": [],
            "checkpoint": None,
            "checkpoint_sha256": None,
            "done": True,
        }
