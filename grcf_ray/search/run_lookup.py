"""Find the folder of a run, and compare the run recorded there with the search that the user asks for."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grcf_ray import console
from grcf_ray.config import ModelConfig, RunConfig, Task, build_config, flatten
from grcf_ray.data import datasets
from grcf_ray.data.store import DatasetStore, find_data, is_store
from grcf_ray.errors import ConfigError, DataError, GrcfError, faults_message
from grcf_ray.search.direct_baseline import DIRECT
from grcf_ray.search.made_space import SOURCE, MadeSpace
from grcf_ray.search.record import RunRecord
from grcf_ray.search.schema import RunInfo
from grcf_ray.search.space import Space, recorded_space, space_for
from grcf_ray.storage import StoragePath, storage_path

FREE = frozenset(
    {
        "checkpoint.minutes",
        "search.concurrent",
        "search.ensemble",
        "search.failures_in_a_row",
        "search.hang_minutes",
        "train.device_features_gb",
    }
)
"""Settings that do not affect trials: each start of a run may change them."""
_NAME_BYTES = 200
"""File systems allow 255; `--force` and the direct baseline lengthen the name."""
GROWING = ("search.stage1_trials", "search.stage2_trials")
"""Budgets: the larger of the requested and the recorded value applies."""
_RESOLVED = ("search.gpus_per_worker", "train.precision")
"""Settings of which a run records the resolved value; an `auto` of a later start means that value."""


def runs_place(storage: str | None) -> StoragePath:
    """Return the folder of runs: `--storage`, else `$GRCF_RUNS`, else ./runs, or ~/grcf_runs under a Ray job."""
    if storage is None:
        # Ray may delete the working directory of a job.
        default = Path.home() / "grcf_runs" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path("runs")
        storage = os.environ.get("GRCF_RUNS") or str(default)
    return storage_path(storage, check=True)


def space_on(
    dataset: str,
    path: str | Path | None,
    data: Path | None,
    label_range: tuple[float, float] | None,
    settings: Mapping[str, Any],
) -> Space:
    """Return the space of a file, else the data set's shipped one, with margins scaled to its labels.

    Open the data only if neither a fact sheet nor the space gives the label range. Print a line if margins are scaled.
    For a user's own data without a file, make a space for the data, this machine and the user's settings.
    """
    if path is None and dataset not in datasets.names():
        from grcf_ray.search.made_for import made_for, this_machine

        store = find_data(dataset, data, label_range)
        return made_for(store, settings, this_machine(build_config(settings)), seconds=math.inf).space
    written = space_for(dataset, path)
    about = datasets.find(dataset)
    if about is None and written.dataset == dataset:
        return written
    labels = about or find_data(dataset, data, label_range).info
    low, high = labels.label_range
    space = written.for_labels(dataset, (high - low) / 2, labels.task)
    if space is not written:
        console.progress(
            f"Scaling the margins of {written.source} from the labels of {written.dataset} to [{low:g}, {high:g}]"
        )
    return space


def run_name(dataset: str, config: RunConfig, task: Task) -> str:
    """Return the default name of a run."""
    facts = datasets.find(dataset)
    classes = "-binary" if facts and facts.task != task else ""
    encoder = Path(config.model.backbone).name if config.model.sees_text else config.model.modalities.replace("+", "-")
    model = "" if config.model.name == ModelConfig.name else f"-{config.model.name}"
    return f"{dataset}{classes}{model}-{encoder}-seed{config.seed}"


def finished_run(runs: StoragePath, dataset: str) -> RunRecord:
    """Return the finished search of a data set with GRCF, except the direct baseline. Raises ConfigError unless there
    is one."""
    finished = {}
    for name in [name for name in runs.names() if not name.endswith(DIRECT)]:
        record = RunRecord(runs / name)
        # Skip damaged runs and folders that are not runs.
        with contextlib.suppress(GrcfError, OSError):
            info = record.search_info()
            same = info.data.name == dataset and info.settings["model.name"] == ModelConfig.name
            if same and info.state == "finished":
                finished[name] = record
    if not finished:
        raise ConfigError(
            f"{runs} holds no finished search of {dataset}; run one first: "
            f"python -m grcf_ray.search --dataset {dataset}"
        )
    if len(finished) > 1:
        raise ConfigError(
            f"{runs} holds {len(finished)} finished searches of {dataset}; choose one: "
            f"--from {' or '.join(map(str, finished.values()))}"
        )
    return next(iter(finished.values()))


def recorded_made(
    runs: StoragePath, name: str | None, dataset: str, store: DatasetStore, asked: Mapping[str, Any]
) -> MadeSpace | None:
    """Return the made space of a recorded run that the request names; None if there is none.

    The run has this name, else a default one, and these data; the name of its baseline or of `--force` counts as well.
    asked: the user's settings by path.
    """
    names = runs.names()
    prefix = name or f"{dataset}-"
    for candidate in [other for other in names if other.startswith(prefix)]:
        # Skip damaged runs and folders that are not runs.
        with contextlib.suppress(GrcfError, OSError):
            info = RunRecord(runs / candidate).search_info()
            if info.made is None or info.data.fingerprint != store.info.fingerprint:
                continue
            space = recorded_space(info.made.space.model_dump(), SOURCE)
            base = name or run_name(dataset, space.with_settings(asked).config(), store.info.task)
            if asked.get("model.backbone", space.fixed["model.backbone"]) == space.fixed["model.backbone"] and (
                re.fullmatch(rf"{re.escape(base)}({DIRECT})?(-\d+)?", candidate)
            ):
                return MadeSpace(space, info.made.seconds, info.made.summary)
    return None


def find_run(runs: StoragePath, name: str, space: Space, store: DatasetStore, *, force: bool) -> RunRecord:
    """Return the run of this name, to start or to resume. Raises ConfigError with the differences if they differ.

    force: if the name is taken by other settings, append -2, -3 and so on, up to the first free or matching run.
    """
    _check_name(name)
    number = 1
    while True:
        record = RunRecord((runs / (name if number == 1 else f"{name}-{number}")).rooted())
        try:
            changed = differences(record.search_info(), space, store) if record.exists else []
        except PermissionError as error:
            raise ConfigError(
                f"{record} belongs to another user ({error.strerror}); give another name: --name NAME"
            ) from error
        if not changed:
            return record
        if not force:
            raise ConfigError(
                faults_message(f"{record} holds a run with other settings:", changed)
                + "\nRepeat the old settings to resume that run, give another name (--name NAME), or give --force, "
                f"which starts {name}-{number + 1}"
            )
        number += 1


def _check_name(name: str) -> None:
    """Raise ConfigError for a name that leaves the folder of runs, or that cannot be listed or written there."""
    if (
        name.startswith(".")
        or len(name.encode("utf-8", "surrogateescape")) not in range(1, _NAME_BYTES + 1)
        or not name.isprintable()
        or set("/\\") & set(name)
    ):
        raise ConfigError(
            f"--name {name!r}: not a folder name; allowed are 1 to {_NAME_BYTES} bytes without /, \\, control "
            "characters or a leading dot. Give another name: --name NAME"
        )


def differences(info: RunInfo, space: Space, store: DatasetStore) -> list[str]:
    """Return the differences between a run and the requested search, one line each: `key: before -> after`."""
    before = {"data": info.data.fingerprint, **info.settings, **_searched(info.space.model_dump())}
    after = {"data": store.info.fingerprint, **flatten(space.config()), **_searched(space.as_dict())}
    # Rows that are not aligned to words have none for special tokens.
    unread = () if store.info.word_aligned else ("features.special_rows",)
    automatic = [path for path in _RESOLVED if after[path] == "auto"]
    ignored = {*FREE, *GROWING, *unread, *automatic}
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in ignored
    ]


def encoder_of(config: RunConfig) -> dict[str, str] | None:
    """Return the entry `encoder` of run.json: the trials' pretrained text encoder, None for trials without text."""
    if not config.model.sees_text:
        return None
    # Commands that list runs need neither torch nor transformers.
    from grcf_ray.train.assemble import backbone_sha256

    return {"name": config.model.backbone, "weights_sha256": backbone_sha256(config.model.backbone)}


def note_encoder(record: RunRecord, config: RunConfig) -> None:
    """Add the encoder to a run.json of the first releases, which lacks it; later starts must use the same weights."""
    if "encoder" not in record.info().model_fields_set:
        record.update_run(encoder=encoder_of(config))


def check_encoder(record: RunRecord, config: RunConfig, *, otherwise: str) -> None:
    """Raise ConfigError if the encoder's weights changed since the recorded trials started.

    otherwise: the alternative to restoring the old weights, for the message.
    """
    before = record.info().encoder if record.exists else None
    if before is None or not config.model.sees_text or before.name != config.model.backbone:
        return
    if encoder_of(config) != before.model_dump():
        raise ConfigError(
            f"The weights of {before.name} changed since {record} started, so new trials would not be comparable; "
            f"restore the old weights, or {otherwise}"
        )


def recorded_store(record: RunRecord, data: Path | None) -> DatasetStore:
    """Open the data of a run, from `data` or from the recorded folder. Raises DataError if the data differ."""
    recorded = record.search_info().data
    name, folder = recorded.name, Path(recorded.folder)
    if data is None and not is_store(folder) and name not in datasets.names():
        raise DataError(f"the run's data folder {folder} no longer exists; give its new path: --data FILE")
    low, high = recorded.label_range
    if data is None and is_store(folder):
        store = DatasetStore.open(folder)
    else:
        # If the cached import was deleted, look for the data as a search does.
        task = None if name in datasets.names() else recorded.task
        columns = {} if data is not None and is_store(data) else recorded.columns
        store = find_data(name, data, (low, high), columns, task=task)
    if store.info.fingerprint != recorded.fingerprint:
        raise DataError(
            f"{store.folder} is not the data of this run: the fingerprints differ; give the run's data: --data FILE"
        )
    return store


def grown(record: RunRecord, space: Space) -> Space:
    """Return the space with each budget at least as large as the record's.

    `auto`, and the hang limit that follows the run, mean the record's values: those of an earlier release stay.
    """
    if not record.exists:
        return space
    settings, asked = record.search_info().settings, flatten(space.config())
    kept = {path: settings[path] for path in (*_RESOLVED, "search.hang_minutes") if asked[path] in ("auto", None)}
    return space.with_settings({**kept, **{key: max(settings[key], asked[key]) for key in GROWING}})


def kept_budgets(record: RunRecord, asked: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each requested budget that is smaller than the record's, which stays."""
    before = record.info().settings if record.exists else {}
    return [
        f"{key} = {asked[key]} is below the run's {before[key]}; the run keeps {before[key]}. "
        "For a smaller search, give another name: --name NAME"
        for key in GROWING
        if key in asked and key in before and asked[key] < before[key]
    ]


def _searched(space: dict[str, Any]) -> dict[str, Any]:
    return {f"{path} (searched)": value for stage in ("stage1", "stage2") for path, value in space[stage].items()}
