"""The public functions of `grcf_ray.losses`."""

from __future__ import annotations

import doctest
import subprocess
import sys

from grcf_ray import losses


def test_the_worked_example_runs() -> None:
    failed, attempted = doctest.testmod(losses)
    assert (failed, attempted > 10) == (0, True)


def test_every_exported_loss_can_be_imported() -> None:
    assert all(callable(getattr(losses, name)) for name in losses.__all__)
    assert losses.__all__ == sorted(losses._MODULES)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, grcf_ray.losses; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
