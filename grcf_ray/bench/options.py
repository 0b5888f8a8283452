"""Command-line options that the bench command and the scripts in `benchmarks/` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from grcf_ray.data.datasets import spelled

DATASET: Any = typer.Option("mosi", metavar="NAME", callback=spelled, help="A known data set, or a name for your own")
DATA: Any = typer.Option(None, metavar="FILE|DIR", help="Path to the data [default: $GRCF_DATA/NAME, then ./data/NAME]")
LABEL_RANGE: Any = typer.Option(None, metavar="A B", help="Lowest and highest label of your own data")
SPACE: Any = typer.Option(
    None,
    metavar="FILE",
    help="Search space whose starting point is measured [default: the data set's; without a GPU the one for CPUs]",
)
SET: Any = typer.Option([], "--set", metavar="PATH=VALUE", help="Change a setting; may be repeated")
REPETITIONS: Any = typer.Option(5, metavar="N", min=1, help="Timed calls of each variant")
THREADS: Any = typer.Option(1, metavar="N", min=1, help="Torch threads")
TRIALS: Any = typer.Option(8, metavar="N", min=4, help="Trials of the measured search")
OUT: Any = typer.Option(None, metavar="DIR", help="Folder to write the tables to, as Markdown and JSON")
JSON: Any = typer.Option(False, "--json", help="Print the tables as JSON, with every repetition")


def without_path(words: Sequence[str], data: Path | None) -> list[str]:
    """Return the arguments with DIR for the path to the data, which is specific to this machine."""
    return [word.replace(str(data), "DIR") if data else word for word in words]
