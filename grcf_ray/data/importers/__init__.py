"""Import foreign files into a valid utterance table, with a module for each format.

An importer is a module of this package with `VARIANTS`, the ways to read its files, and two functions:
`files(source)` lists the files of its format in a source (none for another format), and `read(source, variant)`
returns a `RawTable`. To add a format, add a module.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grcf_ray.config import Task
from grcf_ray.data import datasets
from grcf_ray.data.columns import check_columns, check_nameable, column_options
from grcf_ray.data.frames import Frames
from grcf_ray.data.importers import table as table_importer
from grcf_ray.data.raw import RawTable
from grcf_ray.data.schema import MODALITIES, Source, TableInfo, conform, labels_of, split_sizes
from grcf_ray.data.sniff import check_folder, check_kind, files_of
from grcf_ray.data.splits import SPLIT_ALIASES, draw_splits, draw_valid
from grcf_ray.data.validation import Fault, validate, whole_range
from grcf_ray.errors import ConfigError, DataError

_ANY_LABEL = (-1e9, 1e9)
"""The range that labels are checked against before their own range is known."""


class Importer(Protocol):
    """The interface of a module of this package."""

    VARIANTS: Mapping[str, str]
    """Ways to read the files, such as the folds of a protocol, with a description; the first is the default."""

    def files(self, source: Path) -> list[Path]:
        """List the files of this format in a source, by the first bytes of each; none for another format."""

    def read(self, source: Path, variant: str) -> RawTable:
        """Read the rows; DataError with all faults of unreadable files. variant: one of `VARIANTS`, or empty."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """The options of an import; ConfigError if they contradict the fact sheet."""

    dataset: str
    """Name of a known data set, or of the user's own."""
    label_range: tuple[float, float] | None = None
    """Lowest and highest label; None for those of the fact sheet, or of the labels of the user's own data."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns of a table by role (text, label, id, split, group), which options name."""
    non_finite: Literal["fail", "zero"] = "fail"
    """What to do with NaN and infinity in audio and vision."""
    format: str = "auto"
    """Importer's name, or `auto`."""
    variant: str = ""
    """One of the importer's `VARIANTS`; empty for its default."""
    task: Task | None = None
    """Kind of label of the user's own data; None for that of the fact sheet, or of the labels: with a label range, and
    for other labels than 0 and 1, it is regression."""
    binarize: bool = False
    """Make two classes of regression labels, above and below the centre of their range; leave out the centre."""

    def __post_init__(self) -> None:
        check_columns(self.columns)
        if self.label_range is None and self.task is None and self.facts() is None:
            datasets.check_other(self.dataset)
        low, high = self.limits() or _ANY_LABEL
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"label range {low:g} {high:g}: give two finite numbers, the lower one first")
        facts = self.facts()
        if facts and self.task not in (None, facts.task):
            remedy = "; --binarize makes two classes of it" if facts.task == "regression" else ""
            raise ConfigError(f"--task {self.task}: {self.dataset} is annotated for {facts.task}{remedy}")
        if self.binarize and self.kind() == "classification":
            raise ConfigError("--binarize is for regression labels; this data already has two classes")
        if self.kind() == "classification" and (low, high) != (0, 1):
            raise ConfigError(f"label range {low:g} {high:g}: two classes are labelled 0 and 1")
        if facts and facts.label_range != (low, high):
            known = " ".join(f"{edge:g}" for edge in facts.label_range)
            raise ConfigError(
                f"label range {low:g} {high:g}: {self.dataset} is annotated on {known}. Leave the range "
                "out, or give your own data another name"
            )

    def facts(self) -> datasets.DatasetFacts | None:
        """Return the fact sheet; None for the user's own data."""
        return datasets.find(self.dataset)

    def kind(self) -> Task | None:
        """Return the kind of label in the files, given or known; None if the labels decide."""
        facts = self.facts()
        return self.task or (facts.task if facts else None if self.label_range is None else "regression")

    def limits(self) -> tuple[float, float] | None:
        """Return the label range, given or known; None if the labels decide."""
        if self.label_range is not None:
            return self.label_range
        if facts := self.facts():
            return facts.label_range
        return (0.0, 1.0) if self.task == "classification" else None

    def command(self, source: Path, out: Path | None = None) -> str:
        """Return the command line of the import. out: the folder to write; None for the default."""
        words = ["python", "-m", "grcf_ray.data", "import", str(source), "--dataset", self.dataset]
        if self.label_range is not None:
            words += ["--label-range", *(f"{edge:g}" for edge in self.label_range)]
        format = self.format.removeprefix("auto")
        for option, value in (("--format", format), ("--variant", self.variant), ("--task", self.task)):
            words += [option, value] if value else []
        words += ["--binarize"] * self.binarize
        words += column_options(self.columns)
        words += [] if out is None else ["--out", str(out)]
        return shlex.join(words)


def formats() -> Mapping[str, Importer]:
    """Return the importers by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: cast(Importer, importlib.import_module(f"{__name__}.{name}")) for name in names}


def find_importer(source: Path, name: str = "auto") -> Importer:
    """Return the importer of this name or, for `auto`, the importer that recognises the source."""
    importers = formats()
    if name not in ("auto", *importers):
        raise ConfigError(f"unknown format {name!r}. Known: auto, {', '.join(importers)}")
    if not source.exists():
        raise DataError(f"{source} does not exist")
    names = [name] if name != "auto" else [name for name in importers if importers[name].files(source)]
    if not names:
        if source.is_dir():
            check_folder(source)
        for path in files_of(source):
            check_kind(path)
        raise DataError(f"{source}: no data of a known format ({', '.join(importers)})")
    if len(names) > 1:
        raise DataError(f"{source} holds several formats ({', '.join(names)}). Name the file, or give --format")
    return importers[names[0]]


def import_source(source: Path, options: ImportOptions, *, out: Path | None = None) -> tuple[pa.Table, TableInfo]:
    """Read foreign files into an utterance table; DataError with all faults of all rows.

    out: the folder that the user gave for the table, which the command in an error repeats; None without one.
    """
    try:
        importer = find_importer(source, options.format)
        variants = list(importer.VARIANTS)
        if options.variant not in ("", *variants):
            known = f"Known: {', '.join(variants)}" if variants else "This format has no variants"
            raise ConfigError(f"{source}: unknown variant {options.variant!r}. {known}")
        if importer.read is table_importer.read:
            raw = table_importer.read(source, columns=options.columns)
        else:
            check_nameable(source, options.columns)
            raw = importer.read(source, options.variant or next(iter(variants), ""))
        sources = [Source.of(path) for path, _ in raw.files]
    except OSError as error:
        raise DataError(f"{error.filename or source} cannot be read ({error.strerror})") from error
    facts, task, limits = options.facts(), options.kind(), options.limits()
    zero = options.non_finite == "zero"
    own_table = facts is None and importer.read is table_importer.read
    table, unsplit = _with_required_columns(raw.table, source, draws=own_table)
    validate(
        table,
        task=task or "regression",
        label_range=limits or _ANY_LABEL,
        non_finite=options.non_finite,
        splits=("train",) if unsplit else ("train", "test"),
        word_aligned=raw.word_aligned,
        parse_faults=[*raw.faults, *(_groupless(table) if "group" in options.columns else [])],
        source=source.name or str(source),
        place=raw.place,
        command=options.command(source, out),
        custom_range=facts is None,
        own_table=own_table,
    )
    # Free the rows as read before the converted rows are made.
    raw = replace(raw, table=raw.table.schema.empty_table())
    notes = [*raw.notes, *(_zeroed(table) if zero else [])]
    if unsplit:
        classes = task == "classification" or (task is None and _two_classes(table))
        names, note = draw_splits(*_drawn_by(table), classes=classes)
        table = _with_column(table, "split", pa.array(names))
        notes.append(note)
    if limits is None:
        task, limits, note = _inferred(table, task, source, raw.place)
        notes.append(note)
    assert task is not None
    if options.binarize:
        if task == "classification":
            raise ConfigError("--binarize is for regression labels; this data already has two classes")
        table, note = _binarized(table, center=(limits[0] + limits[1]) / 2)
        notes.append(note)
        task, limits = "classification", (0.0, 1.0)
    if not pc.any(pc.equal(table["split"], "valid")).as_py():
        table, note = _with_valid(table, classes=task == "classification")
        notes.append(note)
    if "group" in options.columns and (shared := _shared_groups(table)):
        notes.append(f"groups in more than one of train, valid and test: {shared}")
    notes += _lacking(table)
    table = conform(table, zero_non_finite=zero)
    info = TableInfo.describe(
        table,
        name=options.dataset,
        task=task,
        label_range=limits,
        language=facts.language if facts else "unknown",
        word_aligned=raw.word_aligned,
        sources=sources,
    )
    return table, replace(info, notes=(*notes, *_observations(table, info, facts)), columns=dict(options.columns))


def _with_required_columns(table: pa.Table, source: Path, *, draws: bool) -> tuple[pa.Table, bool]:
    """Return the table with ids and splits, and whether the splits are still to be drawn: all are named train.

    Rows without ids are numbered from 1. The field's names of the splits become train, valid and test. draws: whether
    splits may be drawn; if not, as for a known data set, a table without them is a DataError.
    """
    if "id" not in table.column_names:
        table = table.append_column("id", pa.array(map(str, range(1, table.num_rows + 1)), pa.string()))
    if "split" not in table.column_names:
        if not draws:
            raise DataError(
                f"{source}: missing columns split (or files named train, valid and test); a known data set has its own "
                "splits. Name the column: --split-column NAME, or give the data a name of its own: --dataset NAME"
            )
        return table.append_column("split", pa.repeat(pa.scalar("train"), table.num_rows)), True
    codes = table["split"].combine_chunks().dictionary_encode()
    names = [SPLIT_ALIASES.get(name.strip().lower(), name) for name in codes.dictionary.to_pylist()]
    table = _with_column(table, "split", pc.take(pa.array(names, pa.string()), codes.indices))
    return table, draws and set(pc.unique(table["split"]).to_pylist()) == {"train"}


def _groupless(table: pa.Table) -> list[Fault]:
    groups = table["video_id"].to_pylist()
    return [Fault(row, "video_id", "its group is missing") for row, group in enumerate(groups) if not group]


def _two_classes(table: pa.Table) -> bool:
    return set(pc.unique(table["label"]).to_pylist()) == {0, 1}


def _inferred(
    table: pa.Table, task: Task | None, source: Path, place: Callable[[int], str]
) -> tuple[Task, tuple[float, float], str]:
    """Return the task and the label range by the labels of train and valid, and a note on them.

    DataError if they are all equal, or if a label of test does not fit: test decides nothing.
    """
    is_test_N = pc.equal(table["split"], "test")
    seen = table.filter(pc.invert(is_test_N))
    label_N = labels_of(table)
    if task is None and _two_classes(seen):
        task, limits = "classification", (0.0, 1.0)
        note = "labels are 0 and 1, so they are two classes; --label-range 0 1 reads them as scores"
        unfit_N = ~np.isin(label_N, limits)
    else:
        task, limits = "regression", whole_range(seen["label"].to_numpy().astype(np.float64))
        note = f"labels from {limits[0]:g} to {limits[1]:g}, by those of train and valid; --label-range A B sets others"
        unfit_N = (label_N < limits[0]) | (label_N > limits[1])
    if limits[0] == limits[1]:
        raise DataError(f"{source}: all labels are {limits[0]:g}. Give their range: --label-range A B")
    if len(rows := np.flatnonzero(unfit_N & np.asarray(is_test_N))):
        row, (low, high) = int(rows[0]), whole_range(label_N)
        raise DataError(
            f"{source.name}: {place(row)} (id {table['id'][row]}): label {label_N[row]:g} of test "
            f"does not fit those of train and valid, {limits[0]:g} {'and' if task == 'classification' else 'to'} "
            f"{limits[1]:g}. Give the range: --label-range {low:g} {high:g}"
        )
    return task, limits, note


def _with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _binarized(table: pa.Table, *, center: float) -> tuple[pa.Table, str]:
    offset_N = np.round(table["label"].to_numpy().astype(np.float64) - center, 4)
    kept = table.filter(pa.array(offset_N != 0))
    classes = pa.array((offset_N[offset_N != 0] > 0).astype(np.float64))
    note = (
        f"labels were made into two classes, above and below {center:g}; {table.num_rows - kept.num_rows} of "
        f"{table.num_rows} utterances labelled {center:g} are left out"
    )
    return _with_column(kept, "label", classes), note


def _drawn_by(table: pa.Table) -> tuple[list[str], Any, list[str] | None]:
    """Return what decides a draw: ids, labels, and groups if every row has one."""
    groups = table["video_id"].to_pylist() if "video_id" in table.column_names else None
    whole = groups if groups is not None and all(groups) else None
    return table["id"].to_pylist(), table["label"].to_numpy().astype(np.float64), whole


def _with_valid(table: pa.Table, *, classes: bool) -> tuple[pa.Table, str]:
    ids, label_N, groups = _drawn_by(table.filter(pc.equal(table["split"], "train")))
    valid_N, note = draw_valid(ids, label_N, groups, classes=classes)
    drawn = pa.array([name for name, valid in zip(ids, valid_N, strict=True) if valid])
    column = pc.if_else(pc.is_in(table["id"], value_set=drawn), "valid", table["split"])
    return _with_column(table, "split", column), note


def _shared_groups(table: pa.Table) -> int:
    pairs = set(zip(table["video_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    return sum(count > 1 for count in Counter(group for group, _ in pairs).values())


def _zeroed(table: pa.Table) -> list[str]:
    counts = {
        name: int(Frames.of(table[name]).non_finite_F().sum()) for name in MODALITIES if name in table.schema.names
    }
    return [f"{name}: {count} non-finite values set to 0" for name, count in counts.items() if count]


def _lacking(table: pa.Table) -> list[str]:
    """List the modalities that utterances lack, before `conform` drops a modality that all lack."""
    rows = {name: pc.list_value_length(table[name]) for name in MODALITIES if name in table.column_names}
    counts = {name: pc.sum(pc.equal(pc.fill_null(lengths, 0), 0)).as_py() for name, lengths in rows.items()}
    return [f"{name}: {count} of {table.num_rows} utterances have none" for name, count in counts.items() if count]


def _observations(table: pa.Table, info: TableInfo, facts: datasets.DatasetFacts | None) -> list[str]:
    notes = []
    if info.transcripts == "upper":
        notes.append("the transcripts are upper case; they are stored unchanged, and lower-cased for the text encoder")
    if textless := pc.sum(pc.equal(table["text"], "")).as_py():
        notes.append(f"{textless} of {table.num_rows} utterances have no text")
    if shared := _shared_texts(table):
        notes.append(f"texts in more than one of train, valid and test, with the same context: {shared}")
    if facts and dict(info.splits) not in [dict(release) for release in facts.splits]:
        known = " or ".join(split_sizes(release) for release in facts.splits)
        notes.append(
            f"{split_sizes(info.splits)} utterances in train/valid/test, but {facts.title} usually has {known}"
        )
    return notes


def _shared_texts(table: pa.Table) -> int:
    """Count the texts that more than one split has with the same context, empty texts aside."""
    contexts = table["context"].to_pylist() if "context" in table.column_names else [None] * table.num_rows
    splits: dict[tuple[str, ...], set[str]] = {}
    for text, context, split in zip(table["text"].to_pylist(), contexts, table["split"].to_pylist(), strict=True):
        if text:
            splits.setdefault((*(context or ()), text), set()).add(split)
    return sum(len(names) > 1 for names in splits.values())
