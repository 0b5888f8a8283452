"""Command `data`: import data sets, inspect and verify them, list the known ones."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grcf_ray import console
from grcf_ray.cli import options
from grcf_ray.data.datasets import spelled

# `--help` must be quick, so pyarrow is imported by the command that needs it.
if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from grcf_ray.data.store import DatasetStore

app = console.make_app("Import, inspect and verify data sets")

_SAMPLE_ROWS = 3
_TEXT_SHOWN = 60

_Imported = Annotated[str, typer.Argument(metavar="[NAME|DIR]", help="Data set, or the folder of an imported one")]


class Kind(str, enum.Enum):
    """Kind of label."""

    REGRESSION = "regression"
    CLASSIFICATION = "classification"


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="File, or folder of files")],
    dataset: options.Dataset = None,
    format: str = typer.Option("auto", metavar="NAME", help="One of the formats above; auto reads the content"),
    variant: str = typer.Option("", metavar="NAME", help="Variant of the data, such as a fold; see the formats above"),
    label_range: options.LabelRange = None,
    text_column: options.TextColumn = None,
    label_column: options.LabelColumn = None,
    id_column: options.IdColumn = None,
    split_column: options.SplitColumn = None,
    group_column: options.GroupColumn = None,
    task: Kind | None = typer.Option(None, help="Kind of label of your own data; classes are 0 and 1"),
    binarize: bool = typer.Option(
        False, "--binarize", help="Turn regression labels into two classes: above and below the centre"
    ),
    non_finite: options.NonFinite = typer.Option(
        options.NonFinite.FAIL, help="Refuse NaN and infinity in audio and vision, or set them to 0"
    ),
    out: Path | None = typer.Option(
        None, metavar="DIR", help="Folder to write [default: $GRCF_DATA/NAME, else data/NAME]"
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace other data of the same name"),
) -> None:
    """Import a data set: read its files, check every row and write a data store.

    The store is a folder with one Parquet file per split, described by dataset.json.

    \b
    Examples:
      python -m grcf_ray.data import mosi.parquet --dataset mosi
      python -m grcf_ray.data import mosi.parquet --dataset mosi --non-finite zero --out data/mosi
      python -m grcf_ray.data import reviews.csv
      python -m grcf_ray.data import reviews.csv --text-column body --label-column stars --label-range 1 5
      python -m grcf_ray.data import MUStARD/data --dataset mustard --variant speaker-independent
      python -m grcf_ray.data import mosi.parquet --dataset mosi --binarize --out data/mosi_binary

    \b
    Formats:
      table      your own Parquet, Arrow, CSV, TSV or JSON Lines (.jsonl), or a folder of Hugging Face's datasets
      mag        pickles of MAG-BERT: mosi.pkl, mosei.pkl; of MISA and MMIM: train.pkl, dev.pkl, test.pkl
      mmsa       pickles of MMSA: MOSI, MOSEI, CH-SIMS, CH-SIMS v2; aligned or not
      csd        folder of CMU-MultimodalSDK's .csd files and the folds; --variant known skips files of unknown kinds
      mustard    folder with MUStARD's sarcasm_data.json; --variant fold-1 ... fold-5, speaker-independent
      ur_funny   folder with the pickles of UR-FUNNY v2
      hkt        pickles of HKT: MUStARD, UR-FUNNY

    A table has columns for text and label, under these or usual names, such as review and stars. It may also have id,
    split (train, valid, test), audio and vision (lists of feature rows), context (list of strings) and video_id. A
    folder may hold one table per split. Without splits, they are drawn by a fixed rule.
    """
    from grcf_ray.data.importers import ImportOptions, import_source
    from grcf_ray.data.store import check_replaceable, check_same, data_name, is_store, usual_folders, write_store
    from grcf_ray.errors import ConfigError

    if is_store(source):
        # A second import would lose the store's notes, such as how the valid split was drawn.
        raise ConfigError(
            f"{source} is imported already. Use it with --data {source}, or import the original files again"
        )
    dataset = data_name(dataset, source)
    folder = out or usual_folders(dataset)[0]
    check_replaceable(folder)
    columns = options.columns(
        text=text_column, label=label_column, id=id_column, split=split_column, group=group_column
    )
    import_options = ImportOptions(
        dataset=dataset,
        label_range=label_range,
        columns=columns,
        non_finite=non_finite.value,
        format=format,
        variant=variant,
        task=task.value if task else None,
        binarize=binarize,
    )
    console.progress(f"reading {source}")
    table, info = import_source(source, import_options, out=out)
    if not overwrite:
        check_same(folder, info)
    _summarise(write_store(folder, table, info))


@app.command()
def inspect(
    data: _Imported = "demo",
    page: Path | None = typer.Option(None, "--html", metavar="FILE", help="Also write an HTML page with charts"),
    json: options.Json = False,
) -> None:
    """Show labels, text lengths, features and a few training rows of an imported data set.

    The test split is not read.

    \b
    Examples:
      python -m grcf_ray.data inspect mosi
      python -m grcf_ray.data inspect data/mosi --html mosi.html
    """
    from grcf_ray.data.frames import Frames
    from grcf_ray.files import write_text
    from grcf_ray.report.inspection import OPEN_SPLITS, draw_inspection, inspect_store, print_inspection
    from grcf_ray.report.terminal import one_line

    store = _opened(data)
    tables = {split: store.read(split) for split in OPEN_SPLITS}
    inspection = inspect_store(store, tables)
    if page is not None:
        write_text(page, draw_inspection(inspection))
        console.progress(f"page: {page}")
    if json:
        console.print_json(inspection)
        return
    _summarise(store, tables)
    print_inspection(inspection)
    rows = tables["train"].slice(0, _SAMPLE_ROWS)
    header = ["id", "label", "text"]
    columns = [
        rows["id"].to_pylist(),
        rows["label"].to_pylist(),
        [one_line(" ".join(text.split()), _TEXT_SHOWN) for text in rows["text"].to_pylist()],
    ]
    for name in ("audio", "vision"):
        if name in rows.column_names:
            header.append(f"{name} rows")
            columns.append(Frames.of(rows[name]).lengths_N.tolist())
    console.say()
    console.print_table(header, list(zip(*columns, strict=True)))


@app.command()
def verify(data: _Imported = "demo") -> None:
    """Check an imported data set against its checksums and its fact sheet.

    If a file changed since the import, the exit code is 3. A difference from the fact sheet is reported, but is no
    error.

    \b
    Examples:
      python -m grcf_ray.data verify mosi
      python -m grcf_ray.data verify data/mustard
    """
    from grcf_ray.data.verification import verify_store
    from grcf_ray.errors import DataError

    store = _opened(data)
    checks = verify_store(store)
    console.print_table(("what", "expected", "found", "verdict"), checks)
    if damaged := [check.subject for check in checks if check.verdict == "damaged"]:
        raise DataError(f"{store.folder}: {', '.join(damaged)} changed since the import. Import the data set again")


@app.command("list")
def list_() -> None:
    """List the known data sets and the imported ones.

    For each known data set that is missing, print which file is needed and where to get it.
    """
    from grcf_ray.data import datasets
    from grcf_ray.data.schema import split_sizes
    from grcf_ray.data.store import DatasetStore, is_store, usual_folders

    rows, absent = [], []
    for name in datasets.names():
        facts = datasets.get(name)
        folders = [folder for folder in usual_folders(name) if folder.exists()]
        if name != "demo" and not folders:
            absent.append(facts)
        low, high = facts.label_range
        sizes = split_sizes(facts.splits[0])
        where = "packaged" if name == "demo" else str(folders[0]) if folders else "-"
        rows.append((name, facts.title, f"{low:g} to {high:g}", sizes, facts.default_backbone, where))
    for root in {folder.parent for folder in usual_folders("demo")}:
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            if is_store(folder) and folder.name not in datasets.names():
                info = DatasetStore.open(folder).info
                sizes = split_sizes(info.splits)
                low, high = info.label_range
                rows.append((info.name, "own data", f"{low:g} to {high:g}", sizes, "-", str(folder)))
    console.print_table(["name", "title", "labels", "train/valid/test", "backbone", "here"], rows)
    for facts in absent:
        console.say(f"\n{facts.name} needs {facts.needs}\n  from {facts.obtain}")


@app.command()
def cache(
    clear: bool = typer.Option(False, "--clear", help="Delete the whole cache, unless a process is using it"),
) -> None:
    """Show the cache's folder and size, or clear it.

    The cache holds data sets that commands imported themselves, and features. Commands rebuild what they need.
    The folder is $GRCF_CACHE, else ~/.cache/grcf_ray.

    \b
    Examples:
      python -m grcf_ray.data cache
      python -m grcf_ray.data cache --clear
    """
    from grcf_ray.cache import cache_folder, clear_cache, usage

    parts = clear_cache() if clear else usage()
    console.say(f"{'removed from' if clear else 'cache'} {cache_folder()}\n")
    rows = [(part.kind, part.entries, console.size(part.nbytes)) for part in parts]
    total = ("total", sum(part.entries for part in parts), console.size(sum(part.nbytes for part in parts)))
    console.print_table(("what", "entries", "size"), [*rows, total])


def _opened(data: str) -> DatasetStore:
    """Open the data store in a folder, or the store of a data set by name."""
    from grcf_ray.data.store import DatasetStore, find_data

    folder = Path(data)
    return DatasetStore.open(folder) if folder.is_dir() else find_data(spelled(data) or data)


def _summarise(store: DatasetStore, tables: Mapping[str, pa.Table] | None = None) -> None:
    """Print a summary of a data store, without reading the test split.

    tables: the rows of train and valid, if they have been read already.
    """
    import numpy as np

    info = store.info
    low, high = info.label_range
    features = ", ".join(f"{name} ({dim} values a row)" for name, dim in info.dims.items())
    console.say(f"data set     {info.name}: {info.task}, labels {low:g} to {high:g}, language {info.language}")
    console.say(f"modalities   text{features and ', '}{features}")
    console.say(f"fingerprint  {info.fingerprint}")
    sources = [f"{source.name} (SHA-256 {source.sha256[:12]})" for source in info.sources]
    console.say(f"sources      {', '.join(sources)}")
    console.say(f"folder       {store.folder}\n")
    header = [
        "split",
        "utterances",
        "lowest",
        "mean",
        "highest",
        "deviation",
        *(f"without {name}" for name in info.dims),
    ]
    rows = []
    for split, count in info.splits.items():
        if split == "test":
            rows.append([split, count, *"-" * (len(header) - 2)])
            continue
        table = tables[split] if tables else store.read(split)
        label_N = table["label"].to_numpy().astype(np.float64)
        missing = [table[name].null_count for name in info.dims]
        figures = [float(value) for value in (label_N.min(), label_N.mean(), label_N.max(), label_N.std())]
        rows.append([split, count, *figures, *missing])
    console.print_table(header, rows)
    for note in info.notes:
        console.say(f"note: {note}")
    faults, remarks = store.label_remarks()
    for remark in remarks:
        console.say(f"note: {remark}")
    for fault in faults:
        console.say(f"note: {fault}; you can evaluate on these data, but not train on them")
