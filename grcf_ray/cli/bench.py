"""python -m grcf_ray.bench: ratios of speed and memory, measured side by side on this machine and data."""

from __future__ import annotations

from pathlib import Path

import typer

from grcf_ray import console
from grcf_ray.bench import options

app = console.make_app("Measure speed and memory against slower alternatives")

PARTS = ("step", "shares", "positions", "frozen", "memory", "search", "scheduler", "packing")


@app.command()
def bench(
    dataset: str = options.DATASET,
    data: Path | None = options.DATA,
    label_range: tuple[float, float] | None = options.LABEL_RANGE,
    space: Path | None = options.SPACE,
    set_: list[str] = options.SET,
    only: list[str] = typer.Option([], metavar="PART", help="One of the parts below; may be repeated [default: all]"),
    repetitions: int = options.REPETITIONS,
    threads: int = options.THREADS,
    trials: int = options.TRIALS,
    out: Path | None = options.OUT,
    json: bool = options.JSON,
) -> None:
    """Time this package and alternatives in turn, in one process, and print the ratios. The test split is not read.

    \b
    Parts, a quarter of an hour in all on MOSI and two cores:
      step       an optimizer step of the paper's batch, against a loop that encodes both members of every pair
      shares     the shares of losses, optimizer, sampling and validation in a step
      positions  DeBERTa-v3's attention, against transformers' own
      frozen     an epoch with frozen layers and their cached output, against training all layers
      memory     the memory of a process that runs one trial after the other
      search     the time that a search spends outside training
      scheduler  the time and memory that trials without any work cost the driver
      packing    one-thread trials side by side, against one alone

    \b
    Examples:
      python -m grcf_ray.bench --dataset demo
      python -m grcf_ray.bench --data mosi.parquet --only step --only frozen --json
    """
    import sys

    from grcf_ray.bench.output import deliver
    from grcf_ray.bench.parts import MEASURES
    from grcf_ray.bench.setup import open_setup
    from grcf_ray.config import nearest
    from grcf_ray.errors import ConfigError

    for name in only:
        if name not in PARTS:
            raise ConfigError(f"unknown part {name!r}{nearest(name, PARTS)}; choose from {', '.join(PARTS)}")
    with open_setup(
        dataset, data, label_range, space, set_, repetitions=repetitions, threads=threads, trials=trials
    ) as setup:
        for name, measure in MEASURES.items():
            if not only or name in only:
                setup.tables[name] = measure(setup)
    words = ["python", "-m", "grcf_ray.bench", *options.without_path(sys.argv[1:], data)]
    about = setup.about(words)
    deliver("parts", about, list(setup.tables.values()), out, as_json=json)
