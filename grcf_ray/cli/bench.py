"""python -m grcf_ray.bench: ratios of speed and memory, measured side by side on this machine and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from grcf_ray import console
from grcf_ray.data.datasets import spelled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grcf_ray.tables import Table

app = console.make_app("Measure what is fast and what it is compared with.")

PARTS = ("step", "shares", "positions", "frozen", "memory", "search", "packing")
STUDIES = ("end-to-end", "growth", "pairing", "pruning", "scheduler")


@app.command()
def bench(
    dataset: str = typer.Option("mosi", metavar="NAME", callback=spelled, help="A known data set, or your own."),
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
    study: str | None = typer.Option(None, metavar="NAME", help="One of the studies below, instead of the parts."),
    repetitions: int = typer.Option(5, metavar="N", min=1, help="Calls of each variant that are counted."),
    threads: int = typer.Option(1, metavar="N", min=1, help="Torch threads."),
    trials: int = typer.Option(8, metavar="N", min=4, help="Trials of the search that is measured."),
    out: Path | None = typer.Option(None, metavar="DIR", help="Also write the tables there, as Markdown and as JSON."),
    json: bool = typer.Option(False, "--json", help="Print the tables as JSON, every repetition in them."),
) -> None:
    """Time our way and others in turn, in one process, and print their ratios. The test split is not read.

    \b
    Parts, a quarter of an hour in all on MOSI and two cores:
      step       an optimizer step of the paper's batch, against a loop that encodes both members of every pair
      shares     what losses, optimizer, sampling and validation take of it
      positions  DeBERTa-v3's attention, against the library's
      frozen     an epoch with frozen layers, whose output is kept
      memory     of a process that takes one trial after the other
      search     what a search costs beyond the training of its trials
      packing    one-thread trials side by side

    \b
    Studies, which take longer:
      end-to-end the whole search, against one that encodes every pair, prunes nothing and starts a process a trial
      growth     cost and memory against utterances, pairs, text length and trials
      pairing    all pairs of a group against those that were drawn, for the same utterances encoded
      pruning    early stopping against none, and what the sampler is told of stopped trials
      scheduler  what trials that do nothing cost the driver

    \b
    Examples:
      python -m grcf_ray.bench --dataset demo
      python -m grcf_ray.bench --data mosi.parquet --only step --only frozen --json
      python -m grcf_ray.bench --data mosi.parquet --study pairing --out docs/performance
    """
    import json as json_library
    import shlex
    import sys
    import tempfile
    import time

    import torch

    from grcf_ray.bench.parts import measures, studies
    from grcf_ray.bench.setup import Setup, ray_ended
    from grcf_ray.config import nearest, parse_assignments
    from grcf_ray.data.store import find_data
    from grcf_ray.errors import ConfigError
    from grcf_ray.search.run_lookup import space_on
    from grcf_ray.search.space import shipped_space
    from grcf_ray.search.winner import available_threads, versions
    from grcf_ray.train.stage import choose_device, use_deterministic_torch

    for kind, names, known in (("part", only, PARTS), ("study", [study] if study else [], STUDIES)):
        for name in names:
            if name not in known:
                raise ConfigError(f"unknown {kind} {name!r}{nearest(name, known)}; choose from {', '.join(known)}")
    if study and only:
        raise ConfigError("--study and --only: one of them")
    if space is None and not torch.cuda.is_available():
        space = shipped_space(f"{dataset}_cpu")
    store = find_data(dataset, data, label_range)
    chosen = space_on(dataset, space, data, label_range).with_settings(parse_assignments(set_))
    config = chosen.config()
    device = choose_device(config.train, granted=True)
    use_deterministic_torch(threads)
    started = time.perf_counter()

    def say(what: str) -> None:
        console.progress(f"{time.perf_counter() - started:5.0f} s  {what}")

    with tempfile.TemporaryDirectory(prefix="grcf-bench-") as folder, ray_ended():
        setup = Setup(store, config, chosen, device, repetitions, trials, available_threads(), Path(folder), say)
        if study:
            tables = list(studies()[study](setup))
        else:
            for name, measure in measures().items():
                if not only or name in only:
                    setup.tables[name] = measure(setup)
            tables = list(setup.tables.values())
    # Where the data lie is of this machine alone.
    words = [word.replace(str(data), "DIR") if data else word for word in sys.argv[1:]]
    about = {
        "command": shlex.join(["python", "-m", "grcf_ray.bench", *words]),
        "date": time.strftime("%Y-%m-%d"),
        "data": store.info.name,
        "backbone": config.model.backbone,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {available_threads()} cores",
        "threads": threads,
        "repetitions": repetitions,
        "seconds": round(time.perf_counter() - started),
        "versions": versions(),
    }
    answer = json_library.dumps({**about, "tables": [table.as_dict() for table in tables]}, indent=2)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{study or 'parts'}.json").write_text(answer + "\n", encoding="utf-8")
        (out / f"{study or 'parts'}.md").write_text(_markdown(study or "parts", about, tables), encoding="utf-8")
    if json:
        console.say(answer)
        return
    for key, value in about.items():
        console.say(f"{key + ':':12} {_shown(value)}")
    for table in tables:
        table.print()


def _shown(value: Any) -> str:
    return ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else str(value)


def _markdown(name: str, about: Mapping[str, Any], tables: Sequence[Table]) -> str:
    lines = [f"# Performance: {name}", ""]
    lines += [
        f"- {key}: `{_shown(value)}`" if key == "command" else f"- {key}: {_shown(value)}"
        for key, value in about.items()
    ]
    lines += [part for table in tables for part in ("", table.markdown())]
    return "\n".join(lines) + "\n"
