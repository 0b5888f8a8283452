"""Contexts and models with made-up figures, and a listener, for tests of experiments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from grcf_ray.experiments.context import ExperimentContext

if TYPE_CHECKING:
    from grcf_ray.search.events import Event


class FakeContext(SimpleNamespace):
    """The given parts of a context; it looks up the paper's figures as a real context does."""

    printed = ExperimentContext.printed
    printed_results = ExperimentContext.printed_results


class StartedTrials(list[str]):
    """A listener that lists the trials that start, as stage/number."""

    def __call__(self, event: Event) -> None:
        from grcf_ray.search.events import TrialStarted

        if isinstance(event, TrialStarted):
            self.append(f"{event.trial.stage}/{event.trial.number}")
