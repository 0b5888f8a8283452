"""A context of figures that are made up."""

from __future__ import annotations

from types import SimpleNamespace

from grcf_ray.experiments.context import ExperimentContext


class FakeContext(SimpleNamespace):
    """What an experiment asks of a context, as far as it is given; what the paper prints is as the context has it."""

    printed = ExperimentContext.printed
    printed_results = ExperimentContext.printed_results
