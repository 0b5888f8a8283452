"""python -m grcf_ray.bench: ratios of speed and memory, measured side by side on this machine and data."""

from __future__ import annotations

from pathlib import Path

import typer

from grcf_ray import console
from grcf_ray.cli import options

app = console.make_app("Measure speed and memory against slower alternatives")

PARTS = {
    "step": "step.step_table",
    "shares": "step.shares_table",
    "frozen": "layers.frozen_layers_table",
    "search": "searching.search_table",
}
"""The parts in the order in which they run, each with its function in `grcf_ray.bench`."""


@app.command()
def bench(
    dataset: options.Dataset = None,
    data: options.Data = None,
    label_range: options.LabelRange = None,
    space: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Search space whose starting point is measured [default: the data set's; without a GPU the one for CPUs]",
    ),
    set_: options.Settings = [],  # noqa: B006
    only: list[str] = typer.Option([], metavar="PART", help="One of the parts above; may be repeated [default: all]"),
    repetitions: int = typer.Option(5, metavar="N", min=1, help="Timed calls of each variant"),
    threads: int = typer.Option(1, metavar="N", min=1, help="Torch threads"),
    trials: int = typer.Option(8, metavar="N", min=4, help="Trials of the measured search"),
    out: Path | None = typer.Option(None, metavar="DIR", help="Folder to write the tables to, as Markdown and JSON"),
    json: bool = typer.Option(False, "--json", help="Print the tables as JSON, with every repetition"),
) -> None:
    """Time this package and alternatives in turn, in one process, and print the ratios. The test split is not read.

    Without --dataset and --data, the data set is mosi.

    \b
    Parts, ten minutes in all on MOSI and two cores:
      step    an optimizer step of the paper's batch, against a loop that encodes both members of every pair
      shares  the shares of losses, optimizer, sampling and validation in a step
      frozen  an epoch with frozen layers and their cached output, against training all layers
      search  the time that a search spends outside training

    \b
    Examples:
      python -m grcf_ray.bench --dataset demo
      python -m grcf_ray.bench --data data/mosi --only step --only frozen --json
    """
    from importlib import import_module

    from grcf_ray.bench.setup import deliver, open_setup
    from grcf_ray.config import nearest
    from grcf_ray.data.store import resolve_data
    from grcf_ray.errors import ConfigError

    for name in only:
        if name not in PARTS:
            raise ConfigError(f"unknown part {name!r}{nearest(name, list(PARTS))}; choose from {', '.join(PARTS)}")
    dataset, data = resolve_data("mosi" if dataset is None and data is None else dataset, data, label_range)
    with open_setup(
        dataset,
        data,
        label_range,
        space,
        set_,
        repetitions=repetitions,
        threads=threads,
        trials=trials,
    ) as setup:
        for name, function in PARTS.items():
            if not only or name in only:
                module, _, attribute = function.partition(".")
                setup.tables[name] = getattr(import_module(f"grcf_ray.bench.{module}"), attribute)(setup)
    deliver("parts", setup.about("python -m grcf_ray.bench", data), list(setup.tables.values()), out, as_json=json)
