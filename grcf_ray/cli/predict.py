"""Command `predict`: score new rows with the best model of a run."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from grcf_ray import console
from grcf_ray.cli import options

if TYPE_CHECKING:
    import pyarrow as pa

    from grcf_ray.train.export import SavedModel

app = console.make_app("Score new rows with a run's best model")


class Device(str, enum.Enum):
    """Device that computes the scores."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


_SUFFIXES = (".parquet", ".csv", ".jsonl")


@app.command()
def predict(
    run: str = typer.Argument(
        ..., metavar="RUN", help="Path or URI of the run, of its folder best/, or of a copy of best/"
    ),
    input: Path = typer.Option(
        ...,
        metavar="FILE|DIR",
        help="Rows to score: a table (Parquet, CSV, JSON Lines, or a folder of them) with the columns text, audio and "
        "vision, as far as the model reads them, or another format of data import. "
        "Labels, splits and ids are optional",
    ),
    output: str = typer.Option(
        ..., metavar="FILE", help="Path or URI of the scores; its suffix is .parquet, .csv or .jsonl"
    ),
    text_column: options.TextColumn = None,
    data_format: str = typer.Option("auto", metavar="NAME", help="Format of the input; auto reads the content"),
    batch: int = typer.Option(2048, min=1, metavar="N", help="Rows to hold and score at a time"),
    device: Device = typer.Option(Device.auto, help="Device; auto is a GPU, if there is one"),
    fit_features: options.FitFeatures = False,
    non_finite: options.NonFinite = typer.Option(
        options.NonFinite.FAIL, help="Refuse NaN and infinity in audio and vision, or set them to 0"
    ),
    seeds: bool = typer.Option(
        True,
        "--seeds/--no-seeds",
        help="Also score with the retrained models (search --seeds), for a mean and deviation over seeds",
    ),
    ensemble: bool = typer.Option(
        False, "--ensemble", help="Score with the mean of the search's best models instead of the best model alone"
    ),
    with_text: bool = typer.Option(False, "--with-text", help="Write each text beside its score"),
    json: options.Json = False,
) -> None:
    """Score every row of the input, in order, and name the ordinal group or class of each score.

    All rows are checked before the first is scored. Tables are streamed, so they may be larger than memory; other
    formats are loaded as a whole. If rows have labels, the metrics of each split are printed. The output file appears
    only when it is complete.

    \b
    Examples:
      python -m grcf_ray.predict runs/demo-all-MiniLM-L6-v2-seed42 --input new.csv --output scores.csv
      python -m grcf_ray.predict s3://bucket/runs/mosi-deberta-v3-base-seed42 --input new.parquet --output out.parquet
      python -m grcf_ray.predict runs/demo-all-MiniLM-L6-v2-seed42 --ensemble --input new.csv --output scores.csv
      python -m grcf_ray.predict best --input mosi.pkl --output scores.jsonl --device cuda
    """
    import dataclasses

    import pyarrow as pa
    import torch

    from grcf_ray.data.rows import RowSource
    from grcf_ray.errors import ConfigError
    from grcf_ray.report.terminal import metric_lines
    from grcf_ray.search.ensemble import load_ensemble
    from grcf_ray.search.saved_model import find_model, open_model, retrained_models
    from grcf_ray.search.transfer import fit_features as fitted
    from grcf_ray.search.winner import available_threads
    from grcf_ray.storage import storage_path
    from grcf_ray.train.scoring import Ensemble, Labelled, scored
    from grcf_ray.train.stage import use_deterministic_torch

    target = storage_path(output, check=True)
    suffix = Path(target.name).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ConfigError(f"--output {output}: unknown file type. Give a name that ends in {', '.join(_SUFFIXES)}")
    if target.local is not None and input.exists() and target.local.resolve() == input.resolve():
        raise ConfigError(f"--output {output}: this is the input, and would be overwritten. Give another name")
    if device == Device.cuda and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no GPU. Use the CPU: --device cpu")
    torch_device = torch.device("cuda" if device != Device.cpu and torch.cuda.is_available() else "cpu")
    use_deterministic_torch(available_threads())

    place = storage_path(run, check=True)
    chosen = load_ensemble(place) if ensemble else Ensemble([open_model(find_model(place))])
    saved = chosen.members[0]
    source = RowSource(
        source=input,
        format=data_format,
        columns=options.columns(text=text_column),
        inputs=(
            *chosen.inputs,
            *(("context",) if saved.config.features.context and "text" in chosen.inputs else ()),
        ),
        part=batch,
        non_finite=non_finite.value,
        usually_aligned=saved.word_aligned,
    )
    if source.whole is not None:
        console.progress(f"{input} is not a table, so all its rows are held in memory at once")
    shape = source.check()
    kinds = {name: pa.list_(pa.list_(pa.float32(), width)) for name, width in shape.widths.items()}
    without_rows = pa.schema({"text": pa.string(), **kinds}).empty_table()

    def fit(table: pa.Table) -> tuple[pa.Table, list[str]]:
        notes: dict[str, None] = {}
        for model in chosen.members:
            table, more = fitted(table, source, model, asked=fit_features)
            notes |= dict.fromkeys(more)
        return table, list(notes)

    _, notes = fit(without_rows)
    retrained = retrained_models(place) if seeds else []
    if retrained:
        console.progress(f"Scoring with {len(retrained)} retrained models too; --no-seeds leaves them out")

    def ready(model: SavedModel) -> SavedModel:
        return dataclasses.replace(model, model=model.model.to(torch_device), word_aligned=source.word_aligned)

    members = [ready(model) for model in chosen.members]
    others = [ready(open_model(other)) for other in retrained]
    mean = Ensemble(members) if ensemble else None

    cut = 0
    labelled = Labelled(saved)

    def answers() -> Iterator[pa.Table]:
        nonlocal cut
        progress = console.Progress("scoring rows", shape.rows)
        for part in source.parts(shape):
            table, _ = fit(part)
            answer = scored(table, members[0], others, ensemble=mean, with_text=with_text)
            cut += saved.count_cut(table)
            labelled.add(answer)
            yield answer
            progress.add(part.num_rows)

    start = time.monotonic()
    with target.writing() as path:
        _write(path, answers(), suffix)
    seconds = time.monotonic() - start
    metrics, more = labelled.metrics()
    notes += more
    if cut:
        longest = saved.config.features.max_tokens
        notes.append(f"{cut} of {shape.rows} texts have more than {longest} subwords and are cut to {longest}")
    if json:
        result: dict[str, Any] = {"rows": shape.rows, "output": str(target), "seeds": len(retrained), "notes": notes}
        result |= {"ensemble": len(members), "cut_texts": cut, "metrics": metrics}
        result |= {"device": torch_device.type, "seconds": seconds, "rows_per_s": shape.rows / seconds}
        console.print_json(result)
        return
    speed = f"{console.duration(seconds)}, {shape.rows / seconds:.0f} rows/s"
    console.say(f"{shape.rows} rows scored ({speed}): {target}")
    for note in notes:
        console.say(console.sentence(note))
    if metrics:
        console.say("\n".join(metric_lines(metrics, set().union(*metrics.values()))))


def _write(path: Path, tables: Iterator[pa.Table], suffix: str) -> None:
    """Write tables of one schema to a file, in the format of `suffix`."""
    import json

    import pyarrow.csv
    import pyarrow.parquet

    if suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            for table in tables:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
        return
    first = next(tables)
    writer_class = pyarrow.parquet.ParquetWriter if suffix == ".parquet" else pyarrow.csv.CSVWriter
    with writer_class(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
