"""Keep utterance tables on disk: a Parquet file per split, and their metadata in `dataset.json`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from grcf_ray import console
from grcf_ray._version import __version__
from grcf_ray.cache import cache_entry, locked, making
from grcf_ray.config import Task
from grcf_ray.data import datasets
from grcf_ray.data.columns import column_options
from grcf_ray.data.importers import ImportOptions, find_importer, import_source
from grcf_ray.data.schema import SPLITS, Source, TableInfo, split_sizes
from grcf_ray.data.validation import label_remarks
from grcf_ray.errors import ConfigError, DataError, data_error
from grcf_ray.files import replace_folder, write_json

_INDEX = "dataset.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_STORE_FILES = {_INDEX, *(f"{split}.parquet" for split in SPLITS)}
_DEMO = Path(__file__).parent / "demo" / "utterances.csv"


@dataclass(frozen=True)
class DatasetStore:
    """An imported data set, opened without reading its rows."""

    folder: Path
    """Absolute path."""
    info: TableInfo
    """Metadata of the table."""
    files: Mapping[str, Source]
    """The file of each split."""

    @classmethod
    def open(cls, folder: Path) -> DatasetStore:
        """Read `dataset.json` alone; DataError if the folder is not a store."""
        folder = folder.absolute()
        index = folder / _INDEX
        try:
            values = json.loads(index.read_text(encoding="utf-8"))
            info = TableInfo.from_json(values["info"])
            files = {split: Source(**values["files"][split]) for split in SPLITS}
        except FileNotFoundError:
            raise DataError(
                f"{folder} holds no imported data set. Import one: python -m grcf_ray.data import SOURCE --dataset NAME"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{index} cannot be read ({error}). Import the data set again") from error
        return cls(folder, info, files)

    def read(self, split: str) -> pa.Table:
        """Read one split, without opening the others; DataError if its file changed since the import."""
        return pq.read_table(self._checked(split), partitioning=None)

    def label_remarks(self) -> tuple[list[str], list[str]]:
        """List the faults of the labels that prevent training, and the remarks on uncertain figures."""
        labels = {split: self._labels(split) for split in ("train", "valid")}
        is_custom = datasets.find(self.info.name) is None
        return label_remarks(labels, self.info.task, self.info.label_range, custom_range=is_custom)

    def check_trainable(self) -> list[str]:
        """Raise DataError if the labels prevent training; return remarks on uncertain figures otherwise."""
        faults, notes = self.label_remarks()
        if faults:
            raise data_error(self.folder, faults)
        return notes

    def _labels(self, split: str) -> NDArray[np.float64]:
        table = pq.read_table(self._checked(split), columns=["label"], partitioning=None)
        return np.asarray(table["label"].to_numpy(), np.float64)

    def check(self) -> None:
        """Raise DataError if the file of a split changed since the import."""
        for split in SPLITS:
            self._checked(split)

    def _checked(self, split: str) -> Path:
        file = self.files[split]
        path = self.folder / file.name
        try:
            current = Source.of(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}). Import the data set again") from error
        if current != file:
            raise DataError(
                f"{path} changed since its import: SHA-256 {current.sha256[:12]}, expected {file.sha256[:12]}. "
                "Import the data set again"
            )
        return path

    def texts(self, split: str) -> list[str]:
        """Read the [N] texts of one split alone, without verifying the file, for counts."""
        path = self.folder / self.files[split].name
        try:
            texts: list[str] = pq.read_table(path, columns=["text"], partitioning=None)["text"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read ({error}). Import the data set again") from error
        return texts


def is_store(folder: Path) -> bool:
    """Return whether a folder looks like an imported data set."""
    return (folder / _INDEX).is_file()


def write_store(folder: Path, table: pa.Table, info: TableInfo) -> DatasetStore:
    """Write a store, whole or not at all; it replaces a store in the folder.

    ConfigError if the folder holds anything else: other files are never replaced.
    """
    folder = folder.resolve()
    check_replaceable(folder)
    try:
        with replace_folder(folder) as beside:
            _fill(beside, table, info)
    except OSError as error:
        raise DataError(f"cannot write {folder} ({error.strerror})") from error
    return DatasetStore.open(folder)


def usual_folders(dataset: str) -> list[Path]:
    """List the default folders of a data set; an import writes the first."""
    if not _NAME.fullmatch(dataset):
        raise ConfigError(f"data set name {dataset!r}: use letters, digits, '_', '-' and '.' only")
    root = os.environ.get("GRCF_DATA")
    return [*([Path(root).expanduser() / dataset] if root else []), Path("data") / dataset]


def data_name(dataset: str | None, data: str | Path | None) -> str:
    """Return the name of a data set; for None, that of the store `data`, or the name of the file or folder.

    ConfigError without both, or for a file named like a known data set: it may be another.
    """
    if dataset is not None:
        return dataset
    if data is None:
        raise ConfigError("give the name of a data set or the path to your own data: --dataset NAME or --data FILE")
    path = Path(data)
    if is_store(path):
        return DatasetStore.open(path).info.name
    absolute = path.absolute()
    name = absolute.name if path.is_dir() else absolute.stem
    if (known := datasets.spelled(name)) in datasets.names():
        raise ConfigError(
            f"{data} is named like the data set {datasets.get(known).title}. If it is that data set, give "
            f"--dataset {known}; if it is your own data, give another name: --dataset NAME"
        )
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{data}: {name!r} is no name for a data set: use letters, digits, '_', '-' and '.' only. Give a name: "
            "--dataset NAME"
        )
    return name


def resolve_data(
    dataset: str | None,
    data: str | Path | None,
    label_range: tuple[float, float] | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[str, Path | None]:
    """Return the name and the path by which later steps open the data of a command.

    If columns are named, the data are imported now, and the path is that of the import.
    """
    name, path = data_name(dataset, data), None if data is None else Path(data)
    return name, find_data(name, path, label_range, columns).folder if columns else path


def find_data(
    dataset: str,
    data: Path | None = None,
    label_range: tuple[float, float] | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    task: Task | None = None,
) -> DatasetStore:
    """Open the store of a data set; foreign files are imported into the cache on first use.

    data: a store, a foreign file or a folder of foreign files; without it, the default folders are tried, and `demo`
    is the packaged data set. columns, task: as in `ImportOptions`, for foreign files. ConfigError if name, store and
    label range disagree, DataError without usable data.
    """
    folders = usual_folders(dataset)
    if data is None:
        data = _DEMO if dataset == "demo" else next((folder for folder in folders if folder.exists()), None)
    if data is None:
        facts = datasets.get(dataset)
        raise DataError(
            f"no data for {dataset} at {' or '.join(map(str, folders))}\n"
            f"  needed: {facts.needs}\n  from:   {facts.obtain}\n"
            f"  then:   python -m grcf_ray.data import FILE --dataset {dataset}"
        )
    if not is_store(data):
        options = ImportOptions(dataset=dataset, label_range=label_range, columns=columns or {}, task=task)
        return _imported(data, options)
    store = DatasetStore.open(data)
    if store.info.name != dataset:
        raise ConfigError(f"{data} holds the data set {store.info.name}: use that name instead of {dataset}")
    if label_range not in (None, store.info.label_range):
        low, high = store.info.label_range
        raise ConfigError(f"{data} was imported with --label-range {low:g} {high:g}: leave it out, or import again")
    if columns:
        raise ConfigError(f"{data} is imported already: leave out {shlex.join(column_options(columns))}")
    return store


def _imported(source: Path, options: ImportOptions) -> DatasetStore:
    """Open the cached import of foreign files; import them now if the cache has none."""
    files = find_importer(source, options.format).files(source)
    try:
        content = [asdict(Source.of(path)) for path in files]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror})") from error
    limits = [float(edge) for edge in options.limits() or ()]
    parts: list[Any] = [__version__, options.dataset, limits, dict(options.columns), options.non_finite, options.format]
    parts += [options.variant, options.task, options.binarize, content]
    folder = cache_entry("tables", hashlib.sha256(json.dumps(parts).encode()).hexdigest())
    with locked(folder):
        if folder.exists():
            try:
                store = DatasetStore.open(folder)
                store.check()
                return store
            except DataError as error:
                console.progress(f"The cached import is damaged ({error}); importing {source} again")
        table, info = import_source(source, options)
        with making(folder) as beside:
            _fill(beside, table, info)
    return DatasetStore.open(folder)


def check_replaceable(folder: Path) -> None:
    """Raise ConfigError if the folder holds anything but a store."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file, but a store is a folder. Give another path: --out DIR")
    names = {path.name for path in folder.iterdir()}
    # Split files without the index are a user's own table, in the layout of the table importer.
    foreign = sorted(names - _STORE_FILES if _INDEX in names else names)
    if foreign:
        raise ConfigError(f"{folder} holds other files ({', '.join(foreign[:3])}). Give another folder: --out DIR")


def check_same(folder: Path, info: TableInfo) -> None:
    """Raise DataError if a folder holds a store of other content, which a write would replace."""
    try:
        before = DatasetStore.open(folder).info
    except DataError:
        # No store, or an unreadable one.
        return
    if before.fingerprint != info.fingerprint:
        raise DataError(
            f"{folder} holds other data: {before.name}, {split_sizes(before.splits)} utterances, fingerprint "
            f"{before.fingerprint[:12]}. The import has {info.name}, {split_sizes(info.splits)}, fingerprint "
            f"{info.fingerprint[:12]}. Replace the data with --overwrite, or give another folder: --out DIR"
        )


def _fill(folder: Path, table: pa.Table, info: TableInfo) -> None:
    table = table.replace_schema_metadata({"grcf_ray": json.dumps(info.to_json())})
    files = {}
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        pq.write_table(table.filter(pc.equal(table["split"], split)), path)
        files[split] = asdict(Source.of(path))
    write_json(folder / _INDEX, {"info": info.to_json(), "files": files})
