"""python -m grcf_ray.bench: ratios of speed and memory, measured side by side on this machine and data."""

from __future__ import annotations

from pathlib import Path

import typer

from grcf_ray import console

app = console.make_app("Measure what is fast and what it is compared with.")

PARTS = ("step", "shares", "positions", "frozen", "search", "packing")


@app.command()
def bench(
    dataset: str = typer.Option("mosi", metavar="NAME", help="A known data set, or your own."),
    data: Path | None = typer.Option(
        None, metavar="FILE|DIR", help="Its files; default $GRCF_DATA/NAME, then ./data/NAME."
    ),
    label_range: tuple[float, float] | None = typer.Option(
        None, metavar="A B", help="Lowest and highest label of your own data."
    ),
    space: Path | None = typer.Option(
        None, metavar="FILE", help="Search space whose starting point is measured; default the one for CPUs if any."
    ),
    set_: list[str] = typer.Option([], "--set", metavar="PATH=VALUE", help="A setting; may be repeated."),
    only: list[str] = typer.Option([], metavar="PART", help="One of the parts below; may be repeated."),
    repetitions: int = typer.Option(5, metavar="N", min=1, help="Calls of each variant that are counted."),
    threads: int = typer.Option(1, metavar="N", min=1, help="Torch threads."),
    trials: int = typer.Option(16, metavar="N", min=4, help="Trials of the search that is measured."),
    json: bool = typer.Option(False, "--json", help="Print the tables as JSON, every repetition in them."),
) -> None:
    """Time our way and others in turn, in one process, and print their ratios. The test split is not read.

    \b
    Parts:
      step       an optimizer step of the paper's batch, against a loop that encodes both members of every pair
      shares     what losses, optimizer, sampling and validation take of it
      positions  DeBERTa-v3's attention, against the library's
      frozen     an epoch with frozen layers, whose output is kept
      search     what a search costs beyond the training of its trials
      packing    one-thread trials side by side

    \b
    Examples:
      python -m grcf_ray.bench --dataset demo
      python -m grcf_ray.bench --data mosi.parquet --only step --only frozen --json
    """
    import json as json_library
    import shlex
    import sys
    import tempfile
    import time

    import torch

    from grcf_ray.bench.parts import Setup, measures
    from grcf_ray.config import nearest, parse_assignments
    from grcf_ray.data.store import find_data
    from grcf_ray.errors import ConfigError
    from grcf_ray.search.space import shipped_space, space_for
    from grcf_ray.search.winner import available_threads, versions
    from grcf_ray.train.stage import choose_device, use_deterministic_torch

    for part in only:
        if part not in PARTS:
            raise ConfigError(f"unknown part {part!r}{nearest(part, PARTS)}; choose from {', '.join(PARTS)}")
    if space is None and not torch.cuda.is_available():
        space = shipped_space(f"{dataset}_cpu")
    chosen = space_for(dataset, space).with_settings(parse_assignments(set_))
    store = find_data(dataset, data, label_range)
    config = chosen.config()
    device = choose_device(config.train, granted=True)
    use_deterministic_torch(threads)
    started = time.perf_counter()

    def say(what: str) -> None:
        console.progress(f"{time.perf_counter() - started:5.0f} s  {what}")

    with tempfile.TemporaryDirectory(prefix="grcf-bench-") as folder:
        setup = Setup(store, config, chosen, device, repetitions, trials, available_threads(), Path(folder), say)
        tables = [measure(setup) for name, measure in measures().items() if not only or name in only]
    about = {
        "command": shlex.join(["python", "-m", "grcf_ray.bench", *sys.argv[1:]]),
        "data": store.info.name,
        "backbone": config.model.backbone,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": threads,
        "repetitions": repetitions,
        "seconds": round(time.perf_counter() - started),
        "versions": versions(),
    }
    if json:
        print(json_library.dumps({**about, "tables": [table.as_dict() for table in tables]}, indent=2))
        return
    for key, value in about.items():
        shown = ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else value
        print(f"{key + ':':12} {shown}")
    for table in tables:
        print(f"\n{table.title}\n")
        console.print_table([column.title for column in table.columns], table.cells())
        for note in table.notes:
            print(note[:1].upper() + note[1:] + ".")


if __name__ == "__main__":
    console.run(app)
