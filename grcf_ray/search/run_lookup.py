"""Where a run lies, and whether what is asked for is the run that lies there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grcf_ray import console
from grcf_ray.config import RunConfig, Task, flatten
from grcf_ray.data import datasets
from grcf_ray.data.store import DatasetStore, find_data, is_store
from grcf_ray.errors import ConfigError, DataError, GrcfError, faults_message
from grcf_ray.search.direct_baseline import DIRECT
from grcf_ray.search.record import RunRecord
from grcf_ray.search.schema import RunInfo
from grcf_ray.search.space import Space, space_for
from grcf_ray.storage import StoragePath, storage_path

FREE = frozenset({"search.concurrent", "search.hang_minutes", "search.failures_in_a_row"})
"""Settings that change no number of a trial: they may differ from start to start."""
_NAME_BYTES = 200
"""Disks take 255; other runs' names are made from this one, as with `--force`."""
GROWING = ("search.stage1_trials", "search.stage2_trials")
"""Budgets: the larger of what is asked for and what is on record holds."""


def runs_place(storage: str | None) -> StoragePath:
    """Where runs go: `--storage`, else `$GRCF_RUNS`, else ./runs; under a Ray job ~/grcf_runs."""
    if storage is None:
        # The working directory of a Ray job is a cache that may vanish.
        default = Path.home() / "grcf_runs" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path("runs")
        storage = os.environ.get("GRCF_RUNS") or str(default)
    return storage_path(storage, check=True)


def space_on(dataset: str, path: Path | None, data: Path | None, label_range: tuple[float, float] | None) -> Space:
    """The space of a file, else the one that ships for a data set, with margins for the data set's labels.

    The data are opened only where neither a fact sheet nor the space tells the range. Scaled margins are told.
    """
    written = space_for(dataset, path)
    about = datasets.find(dataset)
    if about is None and written.dataset == dataset:
        return written
    labels = about or find_data(dataset, data, label_range).info
    low, high = labels.label_range
    space = written.for_labels(dataset, (high - low) / 2, labels.task)
    if space is not written:
        console.progress(
            f"Margins of {written.source} are scaled from {written.dataset}'s labels to {low:g} to {high:g}"
        )
    return space


def run_name(dataset: str, config: RunConfig, task: Task) -> str:
    """The name of a run that is given none."""
    facts = datasets.find(dataset)
    classes = "-binary" if facts and facts.task != task else ""
    encoder = Path(config.model.backbone).name if config.model.sees_text else config.model.modalities.replace("+", "-")
    return f"{dataset}{classes}-{encoder}-seed{config.seed}"


def finished_run(runs: StoragePath, dataset: str) -> RunRecord:
    """The finished search of a data set, the direct baseline aside. ConfigError where there is none, or several."""
    found = {}
    for name in [name for name in runs.names() if not name.endswith(DIRECT)]:
        record = RunRecord(runs / name)
        # What a killed search or somebody's editor left of another run is no hindrance.
        with contextlib.suppress(GrcfError, OSError):
            info = record.search_info()
            if info.data.name == dataset and info.state == "finished":
                found[name] = record
    if not found:
        raise ConfigError(
            f"{runs} holds no finished search of {dataset}; search it first: "
            f"python -m grcf_ray.search --dataset {dataset}"
        )
    if len(found) > 1:
        raise ConfigError(
            f"{runs} holds {len(found)} finished searches of {dataset}; say which: "
            f"--from {' or '.join(map(str, found.values()))}"
        )
    return next(iter(found.values()))


def find_run(runs: StoragePath, name: str, space: Space, store: DatasetStore, *, force: bool) -> RunRecord:
    """The run of this name, to begin or to go on with. ConfigError, with the differences, where it is another one.

    force: take the name with -2, -3 and so on instead, the first that is free or that is this run.
    """
    _check_name(name)
    number = 1
    while True:
        record = RunRecord((runs / (name if number == 1 else f"{name}-{number}")).rooted())
        try:
            changed = differences(record.search_info(), space, store) if record.exists else []
        except PermissionError as error:
            raise ConfigError(
                f"{record} is another user's ({error.strerror}); give this one a name of its own: --name NAME"
            ) from error
        if not changed:
            return record
        if not force:
            raise ConfigError(
                faults_message(f"{record} holds a run with other settings:", changed)
                + "\nGive the old settings to go on with it, a name of its own to this one (--name NAME), or --force, "
                f"which names it {name}-{number + 1}"
            )
        number += 1


def _check_name(name: str) -> None:
    """ConfigError where a run of this name would lie outside its folder, or could not be listed or written there."""
    if (
        name.startswith(".")
        or len(name.encode("utf-8", "surrogateescape")) not in range(1, _NAME_BYTES + 1)
        or not name.isprintable()
        or set("/\\") & set(name)
    ):
        raise ConfigError(
            f"--name {name!r}: a run's name is that of a folder in --storage: 1 to {_NAME_BYTES} bytes, no / or \\, no "
            "control characters, no dot at the start; give another: --name NAME"
        )


def differences(info: RunInfo, space: Space, store: DatasetStore) -> list[str]:
    """What is asked for otherwise than the record has it, a line each: `key: before -> after`."""
    before = {"data": info.data.fingerprint, **info.settings, **_searched(info.space.model_dump())}
    after = {"data": store.info.fingerprint, **flatten(space.config()), **_searched(space.as_dict())}
    # Rows that follow no words have none for special tokens either way.
    unread = () if store.info.word_aligned else ("features.special_rows",)
    ignored = {*FREE, *GROWING, *unread}
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in ignored
    ]


def encoder_of(config: RunConfig) -> dict[str, str] | None:
    """What run.json says of the text encoder that the trials begin with, as `encoder`; None for trials without text."""
    if not config.model.sees_text:
        return None
    # Torch and transformers, which whoever asks for runs has no use for.
    from grcf_ray.train.assemble import backbone_sha256

    return {"name": config.model.backbone, "weights_sha256": backbone_sha256(config.model.backbone)}


def note_encoder(record: RunRecord, config: RunConfig) -> None:
    """Say in run.json what the trials begin with. Runs of the first releases did not: they are held to today's."""
    if "encoder" not in record.info().model_fields_set:
        record.update_run(encoder=encoder_of(config))


def check_encoder(record: RunRecord, config: RunConfig, *, otherwise: str) -> None:
    """ConfigError where the encoder's weights are others than those that the record's trials began with.

    otherwise: what may be done but to bring the old ones back.
    """
    before = record.info().encoder if record.exists else None
    if before is None or not config.model.sees_text or before.name != config.model.backbone:
        return
    if encoder_of(config) != before.model_dump():
        raise ConfigError(
            f"{before.name} has other weights than when {record} was begun, whose trials would not compare with "
            f"new ones; bring the old ones back, or {otherwise}"
        )


def recorded_store(record: RunRecord, data: Path | None) -> DatasetStore:
    """The data that a run was searched on, from `data` or from where it read them. DataError where they are others."""
    recorded = record.search_info().data
    name, folder = recorded.name, Path(recorded.folder)
    if data is None and not is_store(folder) and name not in datasets.names():
        raise DataError(f"{folder}, where the run read its data, is gone; give the data: --data FILE")
    low, high = recorded.label_range
    # A cached import may have been cleared away: the data are then looked for as a search does.
    store = DatasetStore.open(folder) if data is None and is_store(folder) else find_data(name, data, (low, high))
    if store.info.fingerprint != recorded.fingerprint:
        raise DataError(f"{store.folder} holds other data than the run's: their fingerprints differ")
    return store


def grown(record: RunRecord, space: Space) -> Space:
    """The space with the budgets of the record where those are larger: a run is never cut short by a later start."""
    if not record.exists:
        return space
    settings, asked = record.search_info().settings, flatten(space.config())
    return space.with_settings({key: max(settings[key], asked[key]) for key in GROWING})


def kept_budgets(record: RunRecord, asked: Mapping[str, Any]) -> list[str]:
    """Which of the settings that were asked for are smaller than the record's, which stay, a sentence each."""
    before = record.info().settings if record.exists else {}
    return [
        f"{key} = {asked[key]} is less than the run's {before[key]}, which it keeps. For a smaller search: --name NAME"
        for key in GROWING
        if key in asked and key in before and asked[key] < before[key]
    ]


def _searched(space: dict[str, Any]) -> dict[str, Any]:
    return {f"{path} (searched)": value for stage in ("stage1", "stage2") for path, value in space[stage].items()}
