"""A lab of figures that are made up."""

from __future__ import annotations

from types import SimpleNamespace

from grcf_ray.reproduce.lab import Lab


class FakeLab(SimpleNamespace):
    """What an experiment asks of a lab, as far as it is given; what the paper prints is as the lab has it."""

    printed = Lab.printed
    printed_results = Lab.printed_results
