"""Models that experiments share: arms, each trained and measured once under a few seeds.

Their folders are `reproduce/models/<shape>/` in the run that they start from, each laid out like a run. No model is
trained twice, whichever experiment asks for it first. Trials of one shape have the same epochs and the same
features. They run concurrently in one search of both stages whose trials are fixed beforehand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from grcf_ray.config import RunConfig, build_config, flatten, short_name
from grcf_ray.search.comparisons import model_place, retrained_number
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.run_lookup import FREE
from grcf_ray.search.schema import EntryFile, checked_list
from grcf_ray.search.seeds import fresh_seed
from grcf_ray.search.space import FIXED_ONLY, STAGE1_SECTIONS, STAGE2_ONLY, Choice, Space
from grcf_ray.storage import StoragePath

_LATER = {"metrics.ties": "drop", "model.name": "grcf"}
"""Settings younger than the first release, with the value of earlier runs, whose folders keep their names."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of training, a row of an experiment's table."""

    name: str
    title: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The settings that differ from the winner's configuration, by path."""
    stage: Literal[1, 2] = 2
    """The stage that ends with the arm's model; 1 leaves Stage 2 out."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One training of both stages, as `entries.json` stores it."""

    stage1: Mapping[str, Any]
    """The parameters of Stage 1."""
    stage2: Mapping[str, Any]
    index: int
    """The number of the fresh seed."""


def entries_of(config: RunConfig, indices: Iterable[int]) -> list[Entry]:
    """Return a configuration's trainings under these seeds; their parameters are what a shape leaves open."""
    values = {path: value for path, value in flatten(config).items() if path not in FIXED_ONLY}
    first = {path: value for path, value in values.items() if path.startswith(STAGE1_SECTIONS)}
    second = {path: value for path, value in values.items() if path.startswith(STAGE2_ONLY)}
    if not config.stage1.epochs:
        # There is no Stage 1 trial to carry the model's settings.
        first, second = {}, {**first, **second}
    return [Entry(first, second, index) for index in indices]


def shape_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings that all trials of one search share."""
    open_paths = (*STAGE1_SECTIONS, *STAGE2_ONLY, "search.")
    return {
        path: value for path, value in flatten(config).items() if path in FIXED_ONLY or not path.startswith(open_paths)
    }


def shape_name(shape: Mapping[str, Any]) -> str:
    """Return the name of a shape's folder: its encoder, its epochs, and a digest of the settings that matter."""
    named = {key: value for key, value in shape.items() if key not in FREE and _LATER.get(key) != value}
    # Shapes of one run share its precision, which the first release left as `auto`.
    if named["train.precision"] != "float64":
        named["train.precision"] = "auto"
    text = json.dumps(named, sort_keys=True)
    epochs = f"{shape['stage1.epochs']}-{shape['stage2.epochs']}"
    return f"{short_name(shape['model.backbone'])}-epochs-{epochs}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


Wanted = Sequence[tuple[Arm, Entry]]
"""Models that an experiment needs, with the arm and the training of each."""


@dataclasses.dataclass(frozen=True)
class PoolTrials:
    """The pool's entries for `Search.retrainings`: trial i of Stage 1 trains entry i."""

    seed: int
    """The run's seed."""
    entries: Sequence[Entry]
    wanted: Sequence[Entry]
    """The entries that this experiment needs."""
    begun: Sequence[int]
    """The entry of each recorded Stage 2 trial, in order."""

    def params(self, stage: Literal[1, 2], finalists: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the parameters of a stage's trials.

        In Stage 2: of the trials on record and of wanted entries. An abandoned experiment leaves neither.
        """
        if stage == 2 and finalists:
            through = [int(number) for number in finalists]
            new = [n for n in through if n not in self.begun and self.entries[n] in self.wanted]
            return [{**self.entries[n].stage2, "finalist": str(n)} for n in (*self.begun, *new)]
        return [dict(entry.stage1 if stage == 1 else entry.stage2) for entry in self.entries]

    def seed_for(self, stage: Literal[1, 2], params: Mapping[str, Any], number: int) -> int:
        """Return the seed of a trial: all arms share the seeds of `search --seeds`."""
        return fresh_seed(self.seed, stage, self.entries[int(params.get("finalist", number))].index)


class ModelPool:
    """The trained models of one shape. entries: in the order of the first request for each."""

    def __init__(self, record: RunRecord, config: RunConfig) -> None:
        """Read the entries on record. config: any configuration of the shape."""
        self.record, self.config = record, config
        self.last = 2 if config.stage2.epochs else 1
        """The last stage that the shape trains."""
        self.entries: list[Entry] = []
        with contextlib.suppress(FileNotFoundError):
            stored = checked_list(record.place / "entries.json", EntryFile)
            self.entries = [Entry(value["stage1"], value["stage2"], value["index"]) for value in stored]

    def add(self, wanted: Sequence[Entry]) -> None:
        """Add the missing entries to the list, and write it before any training.

        Entries at its end that no trial has begun are removed: an abandoned experiment added them.
        """
        before = list(self.entries)
        if any(entry not in before for entry in wanted):
            first = [trial.number for trial in self.record.trials(1)]
            del self.entries[1 + max([*first, *self.begun()], default=-1) :]
        for entry in wanted:
            if entry not in self.entries:
                self.entries.append(entry)
        if self.entries != before:
            (self.record.place / "entries.json").write_json([dataclasses.asdict(entry) for entry in self.entries])
        # Before any trial is written: trials without a run.json are refused.
        if not self.record.exists:
            self.record.write_run({"state": "running"})

    def space(self, search: Mapping[str, Any], dataset: str) -> Space:
        """Return the space of the entries' parameters: for every setting the values that occur."""

        def dimensions(params: Iterable[Mapping[str, Any]]) -> dict[str, Choice]:
            values: dict[str, list[Any]] = {}
            for path, value in (item for entry in params for item in entry.items()):
                if value not in values.setdefault(path, []):
                    values[path].append(value)
            return {path: Choice(tuple(choices), choices[0]) for path, choices in values.items()}

        first = dimensions(entry.stage1 for entry in self.entries)
        second = dimensions(entry.stage2 for entry in self.entries)
        return Space(dataset, {**shape_of(self.config), **search}, first, second, "the experiment")

    def begun(self) -> list[int]:
        """Return the entry number of each recorded Stage 2 trial, in order."""
        return [retrained_number(trial) for trial in self.record.trials(2)]

    def given(self, seed: int, wanted: Sequence[Entry]) -> PoolTrials:
        """Return the trials of a search for these entries. seed: the run's seed."""
        return PoolTrials(seed, self.entries, wanted, self.begun())

    def trials(self, stage: Literal[1, 2], wanted: Sequence[Entry]) -> list[TrialRecord | None]:
        """Return for each entry the completed trial that trained it in a stage; None without such a trial."""
        ended = {retrained_number(trial): trial for trial in self.record.trials(stage) if trial.state == "complete"}
        return [ended.get(self.entries.index(entry)) if entry in self.entries else None for entry in wanted]

    def trials_of(self, wanted: Wanted) -> list[TrialRecord | None]:
        """Return the completed trial that ended with each of these models; None without such a trial."""
        entries = [entry for _, entry in wanted]
        # A shape that trains Stage 1 alone ends every arm with it.
        stages: list[Literal[1, 2]] = [1 if self.last == 1 else arm.stage for arm, _ in wanted]
        by_stage = {stage: self.trials(stage, entries) for stage in set(stages)}
        return [by_stage[stage][number] for number, stage in enumerate(stages)]

    def places(self, wanted: Wanted) -> list[StoragePath | None]:
        """Return where each of these models lies; None if it is yet to be trained or measured."""
        places = [trial and model_place(self.record, trial, last=self.last) for trial in self.trials_of(wanted)]
        return [place if place and (place / "metrics.json").exists() else None for place in places]


def configured(base: RunConfig, arm: Arm) -> RunConfig:
    """Return an arm's configuration: the winner's with the arm's settings. ConfigError if a setting is invalid."""
    return build_config({**flatten(base), **arm.settings}, source=arm.title)
