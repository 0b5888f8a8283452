"""The commands, one module each; `grcf search` and `python -m grcf_ray.search` are the same command."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn

COMMANDS = ("search", "train", "data", "models", "evaluate", "predict", "report", "runs", "reproduce", "bench")


def main(command: str | None = None) -> NoReturn:
    """Run a command and exit. Without `command`, run the command that the first argument names."""
    from grcf_ray import console

    if command is None:
        program, *words = sys.argv
        first = next((word for word in words if not word.startswith("-")), None)
        if first in COMMANDS:
            command = first
            words.remove(first)
            # Usage lines take the program name from sys.argv, and run records take the arguments.
            sys.argv = [f"{program} {command}", *words]
    console.run(import_module(f"grcf_ray.cli.{command or 'overview'}").app)
