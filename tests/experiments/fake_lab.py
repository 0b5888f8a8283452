"""A lab of figures that are made up."""

from __future__ import annotations

from types import SimpleNamespace

from grcf_ray.experiments.context import ExperimentContext


class FakeLab(SimpleNamespace):
    """What an experiment asks of a lab, as far as it is given; what the paper prints is as the lab has it."""

    printed = ExperimentContext.printed
    printed_results = ExperimentContext.printed_results
