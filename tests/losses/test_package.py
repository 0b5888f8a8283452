"""The public functions of `grcf_ray.losses`."""

from __future__ import annotations

import doctest

from grcf_ray import losses


def test_the_worked_example_runs() -> None:
    failed, attempted = doctest.testmod(losses)
    assert (failed, attempted > 10) == (0, True)


def test_every_exported_loss_can_be_imported() -> None:
    assert all(callable(getattr(losses, name)) for name in losses.__all__)
    assert losses.__all__ == sorted(losses._MODULES)
