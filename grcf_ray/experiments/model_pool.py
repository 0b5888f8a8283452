"""Models that experiments share: ways of training, each under a few seeds, trained once and measured once.

They lie below the run that they start from, `reproduce/models/<shape>/`, each laid out like a run. An experiment asks
for what it needs; what is there already is not trained again, whichever experiment asked for it first. Trials of one
shape have the same epochs and the same features, and run side by side in one search of both stages whose trials are
given beforehand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.schema import EntryFile, checked_list
from grcf_ray.search.seeds import fresh_seed, model_place
from grcf_ray.search.space import FIXED_ONLY, STAGE1_SECTIONS, STAGE2_ONLY, Choice, Space
from grcf_ray.storage import StoragePath

_LATER = {"metrics.ties": "drop"}
"""Settings that came after the first release, with what every run had until then: those keep their folders' names."""
_FIRST, _SECOND = tuple(STAGE1_SECTIONS), tuple(STAGE2_ONLY)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of training, a row of an experiment's table."""

    name: str
    title: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What differs from the winner's configuration, by path."""
    stage: Literal[1, 2] = 2
    """The stage whose model is the arm's; 1 leaves Stage 2 out."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One training of both stages: the parameters of each, and which of the fresh seeds."""

    params: Mapping[int, Mapping[str, Any]]
    index: int

    def as_json(self) -> dict[str, Any]:
        """As the pool's list has it."""
        return {"stage1": dict(self.params[1]), "stage2": dict(self.params[2]), "index": self.index}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Entry:
        """What `as_json` gave."""
        return cls({1: value["stage1"], 2: value["stage2"]}, value["index"])


def entry_of(config: RunConfig, index: int) -> Entry:
    """A configuration's training under a seed; its parameters are all settings that trials of a shape may differ in."""
    values = {path: value for path, value in flatten(config).items() if path not in FIXED_ONLY}
    first = {path: value for path, value in values.items() if path.startswith(_FIRST)}
    second = {path: value for path, value in values.items() if path.startswith(_SECOND)}
    if not config.stage1.epochs:
        # There is no Stage 1 trial to carry the model's settings.
        first, second = {}, {**first, **second}
    return Entry({1: first, 2: second}, index)


def shape_of(config: RunConfig) -> dict[str, Any]:
    """What all trials of one search have in common."""
    values = flatten(config)
    return {
        path: value
        for path, value in values.items()
        if path in FIXED_ONLY or not path.startswith((*_FIRST, *_SECOND, "search."))
    }


def shape_name(shape: Mapping[str, Any]) -> str:
    """A folder's name for a shape: its epochs, its encoder, and a digest of the rest."""
    text = json.dumps({key: value for key, value in shape.items() if _LATER.get(key) != value}, sort_keys=True)
    encoder = str(shape["model.backbone"]).rstrip("/").rpartition("/")[2]
    epochs = f"{shape['stage1.epochs']}-{shape['stage2.epochs']}"
    return f"{encoder}-epochs-{epochs}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def space_of(shape: Mapping[str, Any], search: Mapping[str, Any], entries: Sequence[Entry], dataset: str) -> Space:
    """The space that the entries' parameters lie in: of every setting the values that occur."""

    def dimensions(stage: int) -> dict[str, Choice]:
        found: dict[str, list[Any]] = {}
        for entry in entries:
            for path, value in entry.params[stage].items():
                values = found.setdefault(path, [])
                if value not in values:
                    values.append(value)
        return {path: Choice(tuple(values), values[0]) for path, values in found.items()}

    return Space(dataset, {**shape, **search}, dimensions(1), dimensions(2), "the experiment")


@dataclasses.dataclass(frozen=True)
class PoolTrials:
    """The pool's entries as `Search.retrainings`: trial number i of Stage 1 is entry i."""

    seed: int
    """The run's."""
    entries: Sequence[Entry]
    wanted: Sequence[Entry]
    """Those that are asked for now."""
    begun: Sequence[int]
    """Of Stage 2's trials on record, in their order, the entries."""

    def params(self, stage: Literal[1, 2], finalists: Sequence[Any]) -> list[dict[str, Any]]:
        """The parameters of a stage's trials; in Stage 2 of those that have begun and those that are wanted.

        An experiment that was given up in Stage 2 leaves entries that nobody asks for any more.
        """
        if stage == 2 and finalists:
            through = [int(number) for number in finalists]
            new = [n for n in through if n not in self.begun and self.entries[n] in self.wanted]
            return [{**self.entries[n].params[2], "finalist": str(n)} for n in (*self.begun, *new)]
        return [dict(entry.params[stage]) for entry in self.entries]

    def seed_for(self, stage: Literal[1, 2], params: Mapping[str, Any], number: int) -> int:
        """The seed of a trial: every arm has the same ones, which are those of `search --seeds`."""
        return fresh_seed(self.seed, stage, self.entries[int(params.get("finalist", number))].index)


class ModelPool:
    """The trained models of one shape. entries: in the order in which they were first asked for."""

    def __init__(self, record: RunRecord, *, last: int) -> None:
        """last: the last stage that the shape trains."""
        self.record, self.last = record, last
        self.entries: list[Entry] = []
        with contextlib.suppress(FileNotFoundError):
            self.entries = [Entry.from_json(value) for value in checked_list(record.place / "entries.json", EntryFile)]

    def add(self, wanted: Sequence[Entry]) -> None:
        """Put entries on the list that are not there yet; written before anything is trained.

        Those at its end that no trial has begun with are taken off: an experiment that was given up wanted them.
        """
        before = list(self.entries)
        if any(entry not in before for entry in wanted):
            first = [trial.number for trial in self.record.trials(1)]
            del self.entries[1 + max([*first, *self.begun()], default=-1) :]
        for entry in wanted:
            if entry not in self.entries:
                self.entries.append(entry)
        if self.entries != before:
            (self.record.place / "entries.json").write_json([entry.as_json() for entry in self.entries])
        # Before any trial is written: trials without a run.json are refused.
        if not self.record.exists:
            self.record.write_run({"state": "running"})

    def begun(self) -> list[int]:
        """Of Stage 2's trials on record, in their order, the numbers of their entries."""
        return [_entry_number(trial) for trial in self.record.trials(2)]

    def given(self, seed: int, wanted: Sequence[Entry]) -> PoolTrials:
        """The trials of a search for these entries. seed: the run's."""
        return PoolTrials(seed, self.entries, wanted, self.begun())

    def trials(self, stage: Literal[1, 2], wanted: Sequence[Entry]) -> list[TrialRecord | None]:
        """Of each of these entries the trial that trained it in a stage, None where none has ended well."""
        ended = {_entry_number(trial): trial for trial in self.record.trials(stage) if trial.state == "complete"}
        return [ended.get(self.entries.index(entry)) if entry in self.entries else None for entry in wanted]

    def trained(self, wanted: Sequence[tuple[Arm, Entry]]) -> list[TrialRecord]:
        """The trials that ended as these models, where they have ended well."""
        return [trial for trial in self._trials_of(wanted) if trial is not None]

    def models(self, wanted: Sequence[tuple[Arm, Entry]]) -> list[StoragePath | None]:
        """Where each of these models lies, None where it was not trained or is not measured yet."""
        places = [trial and model_place(self.record, trial, last=self.last) for trial in self._trials_of(wanted)]
        return [place if place and (place / "metrics.json").exists() else None for place in places]

    def _trials_of(self, wanted: Sequence[tuple[Arm, Entry]]) -> list[TrialRecord | None]:
        entries = [entry for _, entry in wanted]
        # Where the shape trains Stage 1 alone, its model is what any arm ends as.
        stages: list[Literal[1, 2]] = [1 if self.last == 1 else arm.stage for arm, _ in wanted]
        by_stage = {stage: self.trials(stage, entries) for stage in set(stages)}
        return [by_stage[stage][number] for number, stage in enumerate(stages)]


def _entry_number(trial: TrialRecord) -> int:
    return int(trial.params.get("finalist", trial.number))


def configured(base: RunConfig, arm: Arm) -> RunConfig:
    """An arm's configuration: the winner's with what differs. ConfigError where that is no configuration."""
    return build_config({**flatten(base), **arm.settings}, source=arm.title)
