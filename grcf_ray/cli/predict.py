"""python -m grcf_ray.predict: scores of new rows, by the best model of a run."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from grcf_ray import console

if TYPE_CHECKING:
    import pyarrow as pa

    from grcf_ray.data.rows import Shape

app = console.make_app("Score new rows with the best model of a run.")


class Device(str, enum.Enum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class NonFinite(str, enum.Enum):
    """What to do with NaN and infinity."""

    fail = "fail"
    zero = "zero"


@app.command()
def predict(
    run: str = typer.Argument(..., help="A run, its best/ or a copy of that: a folder or a URI."),
    input: Path = typer.Option(
        ...,
        metavar="FILE|DIR",
        help="A table (Parquet, CSV, JSON lines, or a folder of them) with a column text, and audio and vision where "
        "the model has them; or any of the formats that data import reads. Labels, splits and ids may be missing.",
    ),
    output: str = typer.Option(
        ..., metavar="FILE", help="Where the scores go, by its name: .parquet, .csv or .jsonl; a path or a URI."
    ),
    data_format: str = typer.Option("auto", metavar="NAME", help="The input's format, where it cannot be told."),
    batch: int = typer.Option(2048, min=1, metavar="N", help="Rows that are held and scored at a time."),
    device: Device = typer.Option(Device.auto, help="Where to compute."),
    fit_features: bool = typer.Option(
        False,
        "--fit-features",
        help="Take audio and vision that differ from the model's: cut off or filled up, or left out.",
    ),
    non_finite: NonFinite = typer.Option(NonFinite.fail, help="What to do with NaN and infinity in audio and vision."),
    seeds: bool = typer.Option(
        True,
        "--seeds/--no-seeds",
        help="Score with the run's retrainings (search --seeds) too, for the mean and deviation over their seeds.",
    ),
    with_text: bool = typer.Option(False, "--with-text", help="Write the texts beside their scores."),
    json: bool = typer.Option(False, "--json", help="Print what was done as JSON."),
) -> None:
    """Score every row of the input, in its order, and say which group or class the score is of.

    All rows are checked before the first is scored. Tables are read part by part, whatever their size; other formats
    as a whole. Where rows have labels, the metrics of their scores are printed too, those of each split apart. The
    output has its name only once it is whole.

    \b
    Examples:
      python -m grcf_ray.predict runs/demo-all-MiniLM-L6-v2-seed42 --input new.csv --output scores.csv
      python -m grcf_ray.predict s3://bucket/runs/mosi-deberta-v3-base-seed42 --input new.parquet --output out.parquet
      python -m grcf_ray.predict best --input mosi.pkl --output scores.jsonl --device cuda
    """
    import dataclasses

    import torch

    from grcf_ray.data.rows import RowSource
    from grcf_ray.errors import ConfigError
    from grcf_ray.metrics import METRIC_TITLES
    from grcf_ray.search.saved_model import find_model, open_model, retrained_models
    from grcf_ray.search.transfer import fit_features as fitted
    from grcf_ray.search.winner import available_threads
    from grcf_ray.storage import storage_path
    from grcf_ray.train.scoring import Labelled, scored
    from grcf_ray.train.stage import use_deterministic_torch

    target = storage_path(output, check=True)
    suffix = Path(target.name).suffix.lower()
    if suffix not in _WRITERS:
        raise ConfigError(f"--output {output}: give a name that ends in {', '.join(_WRITERS)}")
    if target.local is not None and input.exists() and target.local.resolve() == input.resolve():
        raise ConfigError(f"--output {output}: is the input, which it would replace; give another name")
    if device == Device.cuda and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no GPU here; --device cpu")
    on = torch.device("cuda" if device != Device.cpu and torch.cuda.is_available() else "cpu")
    use_deterministic_torch(available_threads())

    place = storage_path(run, check=True)
    saved = open_model(find_model(place))
    source = RowSource(
        source=input,
        format=data_format,
        inputs=(
            *saved.inputs,
            *(("context",) if saved.config.features.context and "text" in saved.inputs else ()),
        ),
        part=batch,
        non_finite=non_finite.value,
        usually_aligned=saved.word_aligned,
    )
    if source.whole is not None:
        console.progress(f"{input} is no table: all of its rows are held in memory at once")
    shape = source.check()
    _, notes = fitted(_empty(shape), source, saved, asked=fit_features)
    again = retrained_models(place) if seeds else []
    if again:
        console.progress(f"Scores of {len(again)} retrainings beside the model's own; --no-seeds leaves them out")
    models = [
        dataclasses.replace(model, model=model.model.to(on), word_aligned=source.word_aligned)
        for model in (saved, *map(open_model, again))
    ]

    cut = 0
    labelled = Labelled(saved)

    def answers() -> Iterator[pa.Table]:
        nonlocal cut
        progress = console.Progress("scoring rows", shape.rows)
        for part in source.parts(shape):
            table, _ = fitted(part, source, saved, asked=fit_features)
            answer = scored(table, models[0], models[1:], with_text=with_text)
            cut += saved.count_cut(table)
            labelled.add(answer)
            yield answer
            progress.add(part.num_rows)

    start = time.monotonic()
    with target.writing() as path:
        _WRITERS[suffix](path, answers())
    seconds = time.monotonic() - start
    metrics, more = labelled.metrics()
    notes += more
    if cut:
        longest = saved.config.features.max_tokens
        notes.append(f"{cut} of {shape.rows} texts are cut: they have more than {longest} subwords")
    if json:
        done: dict[str, Any] = {"rows": shape.rows, "output": str(target), "seeds": len(again), "notes": notes}
        done |= {"cut_texts": cut, "metrics": metrics}
        done |= {"device": on.type, "seconds": seconds, "rows_per_s": shape.rows / seconds}
        console.print_json(done)
        return
    speed = f"{console.duration(seconds)}, {shape.rows / seconds:.0f} rows/s"
    console.say(f"{shape.rows} rows scored ({speed}): {target}")
    for note in notes:
        console.say(console.sentence(note))
    if metrics:
        console.print_table(
            ("metric", *metrics),
            [
                (title, *(f"{of[key]:.4f}" if key in of else "-" for of in metrics.values()))
                for key, title in METRIC_TITLES.items()
                if any(key in of for of in metrics.values())
            ],
        )


def _empty(shape: Shape) -> pa.Table:
    """A table without rows, whose columns are those of the input."""
    import pyarrow as pa

    kinds = {name: pa.list_(pa.list_(pa.float32(), width)) for name, width in shape.widths.items()}
    return pa.schema({"text": pa.string(), **kinds}).empty_table()


def _write_parquet(path: Path, tables: Iterator[pa.Table]) -> None:
    import pyarrow.parquet as pq

    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _write_csv(path: Path, tables: Iterator[pa.Table]) -> None:
    import pyarrow.csv

    first = next(tables)
    with pyarrow.csv.CSVWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _write_lines(path: Path, tables: Iterator[pa.Table]) -> None:
    import json

    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


_WRITERS: dict[str, Callable[[Path, Iterator[pa.Table]], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_lines,
}
