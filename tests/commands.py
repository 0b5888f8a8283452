"""Runs a command in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from grcf_ray import console

if TYPE_CHECKING:
    import typer

Run = Callable[..., tuple[int, str, str]]
"""Takes the words of a command; returns exit code, standard output and error."""


def command(app: typer.Typer, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs the command in this process."""

    def run_command(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            console.run(app, [str(word) for word in argv])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run_command
