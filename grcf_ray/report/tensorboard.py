"""TensorBoard as a listener: the progress and the result of a search.

    tensorboard/                     the columns of the HParams tab for both stages together
    tensorboard/stage1/0007          a trial: every epoch's figures, and its session in the HParams tab
    tensorboard/stage1/summary       the stage: its best objective by trials and by cost, the tab's columns for it alone
    tensorboard/best                 the winner: predictions against labels; its and the finalists' representations
    tensorboard/seeds/stage1/0003    retrainings under fresh seeds

Each of these folders is a run, as TensorBoard calls it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.summary.writer.record_writer import RecordWriter

from grcf_ray.config import Task
from grcf_ray.console import progress
from grcf_ray.errors import reason
from grcf_ray.files import scratch_folder
from grcf_ray.report.best_model_events import png_values, write_projector
from grcf_ray.report.hparams import Study, best_tag, session_end
from grcf_ray.report.view import RunView
from grcf_ray.search import events
from grcf_ray.search.predictions import Predictions
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import StoragePath
from grcf_ray.train.curve import best_epoch, minimised, objective_name

_EVENTS, _VERSION = "events.out.tfevents.", "brain.Event:2"
_files = itertools.count()
"""Numbers of the files of this process."""
_UPLOAD_S = 30.0
"""Seconds between two uploads of a file that grows."""
TAGS: Mapping[str, str] = {
    "active_pairs": "pairs/active_share",
    "grad_norm": "gradient/norm",
    "loss/bound": "boundary/overshoot",
    "pair_weight": "pairs/mean_weight",
    "pairs_per_s": "speed/pairs_per_s",
    "seconds": "speed/seconds",
    "utterance_passes": "speed/utterance_passes",
    "utterances_per_s": "speed/utterances_per_s",
}
"""Tags of the curve's figures that belong to another group. `loss/bound` (eqs. 11 and 24, unweighted) is the distance
of scores beyond their bound; it is also shown among the losses."""


class EventFolder:
    """Adds each value once to a folder of event files.

    Objects in object storage cannot grow: the file grows in a folder below `scratch` and is uploaded as a whole, at
    most every half minute. Nothing is created before the first value. A resumed search is another process with its own
    file. It reads the values in the folder, not the record: the previous driver may have died between writing the two.
    The file is open only during a flush, and no thread writes it, because a thousand trials may run at a time.
    """

    def __init__(self, place: StoragePath, *, scratch: Path | None) -> None:
        self._place, self._scratch = place, scratch
        self._held = _held_values(place)
        self._file: Path | None = None
        self._events: list[Event] = []
        self._uploaded = -_UPLOAD_S
        self._changed = False
        self.epochs: int | None = None
        """Epochs that the owner has added; None before the start of the trial."""

    def holds(self, tag: str, step: int) -> bool:
        """Return whether the folder had this tag at this step when it was opened."""
        return (tag, step) in self._held

    def add(self, values: Iterable[Summary.Value], step: int) -> None:
        """Add the values whose tags the folder lacked at this step. The owner adds each value once."""
        fresh = [value for value in values if not self.holds(value.tag, step)]
        if fresh:
            # An event with many values is written whole or not at all.
            self._events.append(Event(wall_time=time.time(), step=step, summary=Summary(value=fresh)))

    def flush(self, *, last: bool = False) -> None:
        """Make the added values visible to readers; in object storage perhaps later, unless this is the last flush."""
        if self._events:
            self._append()
        due = last or time.monotonic() - self._uploaded >= _UPLOAD_S
        if self._changed and self._file is not None and self._place.local is None and due:
            with (self._place / self._file.name).writing() as path:
                shutil.copyfile(self._file, path)
            self._uploaded, self._changed = time.monotonic(), False

    def _append(self) -> None:
        """Append the added values to the file."""
        if self._file is None:
            # Links are checked here, because the file is written by its path.
            self._place.make_private()
            folder = self._place.local or Path(tempfile.mkdtemp(dir=self._scratch))
            # TensorBoard reads the files of a folder in the order of their names.
            name = f"{_EVENTS}{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_files):06d}"
            self._file = folder / name
            self._events.insert(0, Event(wall_time=time.time(), file_version=_VERSION))
        with self._file.open("ab") as file:
            writer = RecordWriter(file)
            for event in self._events:
                writer.write(event.SerializeToString())
        self._events, self._changed = [], True


@dataclasses.dataclass
class _Progress:
    """The trials of a stage that have ended."""

    ended: int = 0
    passes: float = 0.0
    """Their cost."""
    step: int = 0
    """The last step of the cost."""
    best: float | None = None
    """Their best objective."""


class TensorBoardListener:
    """Writes `tensorboard/` from the events of a search, in the driver alone.

    A resumed search keeps the values already written and adds those that are missing in comparison with the record.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record, self._place = record, record.place / "tensorboard"
        self._contexts = contextlib.ExitStack()
        remote = self._place.local is None
        self._scratch = self._contexts.enter_context(scratch_folder("grcf-tensorboard-")) if remote else None
        self._study: Study | None = None
        self._retraining = False
        self._folders: dict[tuple[str, ...], EventFolder] = {}
        self._progress: dict[int, _Progress] = {}
        """By running stage."""

    def __call__(self, event: events.Event) -> None:
        """Write the event's values that are not written yet; those of running trials in the record's background."""
        if isinstance(event, events.SearchStarted):
            self._study = Study.read(self._record)
            self._folder().add([self._study.experiment([stage for stage in (1, 2) if stage in event.budgets])], 0)
            self.close()
        elif isinstance(event, events.RetrainingsStarted):
            # The numbers of retrainings start at 0 again.
            self.close()
            self._retraining = True
        elif isinstance(event, events.StageStarted):
            self._begin(event)
        elif isinstance(event, (events.TrialStarted, events.EpochFinished)):
            # The search replaces the curve of a trial, but the rest of the record changes.
            state = dataclasses.replace(event.trial)
            self._record.background.later(self._names_of(state), functools.partial(self._write, state))
        elif isinstance(event, events.TrialEnded):
            self._record.background.settle(self._names_of(event.trial))
            self._end(event.trial)
        elif isinstance(event, events.SearchFinished):
            self._finish()

    def __enter__(self) -> TensorBoardListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError:
            # An error of the search is reported, not a second error by the same full disk.
            if error is None:
                raise
        finally:
            self._contexts.close()

    def _finish(self) -> None:
        """Show the result. A fault here is one line of progress, since the search has its result."""
        try:
            self._show_result()
        except Exception as error:
            progress(f"TensorBoard cannot show the result; the search is not affected: {reason(error)}")

    def _show_result(self) -> None:
        """Show the best model's predictions on test, or on valid if test has not been read.

        The projector also has the finalists as Stage 1 left them.
        """
        view = RunView.read(self._record)
        split = view.shown_split
        scored = view.scored(split)
        if scored is None:
            return
        step = sum(trial.finished for trials in view.trials.values() for trial in trials)
        values = png_values(scored, split, protocol=view.protocol, label_range=view.label_range)
        self._folder("best").add(values, step)
        self.close()
        shown: dict[str, tuple[str, Predictions]] = {split: (f"z_final of {split}", scored)}
        for number in view.info.finalists:
            states = view.finalist_scored(int(number))
            if states is not None:
                shown[f"finalist-{int(number):04d}"] = (f"finalist {int(number)}, z_final of valid", states)
        write_projector(self._place / "best", shown)

    def close(self) -> None:
        """Write what was added, and forget the folders."""
        while self._folders:
            self._folders.popitem()[1].flush(last=True)

    def _begin(self, event: events.StageStarted) -> None:
        if self._study is not None and not self._retraining:
            summary = self._folder(*self._names(event.stage), "summary")
            summary.add([self._study.experiment([event.stage])], 0)
            summary.flush()
        self._progress[event.stage] = _Progress()
        for trial in sorted(event.trials, key=lambda trial: trial.ended or ""):
            if trial.finished:
                self._end(trial)
            else:
                self._write(trial)

    def _write(self, trial: TrialRecord) -> None:
        self._added(trial).flush()

    def _added(self, trial: TrialRecord) -> EventFolder:
        """Return the folder of a trial after adding its start and epochs."""
        folder = self._folder(*self._names_of(trial))
        if folder.epochs is None:
            folder.epochs = 0
            if self._study is not None and not self._retraining and not folder.holds(SESSION_START_INFO_TAG, 0):
                folder.add([self._study.session_start(trial)], 0)
        for metrics, best in list(zip(trial.curve, best_so_far(trial), strict=True))[folder.epochs :]:
            folder.add(_scalars(dict(_tagged(metrics)) | best), metrics["epoch"])
        folder.epochs = trial.epoch
        return folder

    def _end(self, trial: TrialRecord) -> None:
        folder = self._added(trial)
        if not self._retraining:
            folder.add([session_end(trial)], 0)
            self._add_progress(trial)
        folder.flush(last=True)
        del self._folders[self._names_of(trial)]

    def _add_progress(self, trial: TrialRecord) -> None:
        """Write the best objective by number of ended trials and by their cost."""
        progress = self._progress[trial.stage]
        progress.ended, progress.passes = progress.ended + 1, progress.passes + trial.utterance_passes
        if (objective := trial.objective) is not None:
            known = [objective] if progress.best is None else [progress.best, objective]
            progress.best = min(known, key=functools.partial(minimised, trial.stage))
        if progress.best is None:
            return
        # Steps are whole numbers, and each end has its own.
        progress.step = max(round(progress.passes), progress.step + 1)
        summary = self._folder(*self._names(trial.stage), "summary")
        summary.add(_scalars({"search/best_by_trials": progress.best}), progress.ended)
        summary.add(_scalars({"search/best_by_utterance_passes": progress.best}), progress.step)
        summary.flush()

    def _names(self, stage: int) -> tuple[str, ...]:
        return (*(("seeds",) if self._retraining else ()), f"stage{stage}")

    def _names_of(self, trial: TrialRecord) -> tuple[str, ...]:
        return (*self._names(trial.stage), f"{trial.number:04d}")

    def _folder(self, *names: str) -> EventFolder:
        if names not in self._folders:
            self._folders[names] = EventFolder(self._place.at("/".join(names)), scratch=self._scratch)
        return self._folders[names]


def best_so_far(trial: TrialRecord) -> list[dict[str, float]]:
    """Return for each epoch both stages' objectives at the best epoch so far; empty before there is one."""
    scalars = []
    leader: dict[str, Any] | None = None
    for metrics in trial.curve:
        leader = best_epoch(trial.stage, [metrics] if leader is None else [leader, metrics])
        best = leader or {}
        task: Task = "classification" if "valid/bce" in best else "regression"
        values = {name: best.get(f"valid/{name}") for name in (objective_name(stage, task) for stage in (1, 2))}
        scalars.append({best_tag(name): value for name, value in values.items() if value is not None})
    return scalars


def _tagged(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if name == "epoch" or value is None:
            continue
        if name.startswith("loss/") or name not in TAGS:
            yield name, value
        if name in TAGS:
            yield TAGS[name], value


def _scalars(values: Mapping[str, float]) -> list[Summary.Value]:
    return [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]


def _held_values(place: StoragePath) -> set[tuple[str, int]]:
    """Return tag and step of each value in a folder's event files, truncated files included."""
    held: set[tuple[str, int]] = set()
    for name in place.names():
        if name.startswith(_EVENTS):
            with (place / name).reading() as path:
                # The loader fails on an empty file, which a driver that died at once may leave.
                events = LegacyEventFileLoader(str(path)).Load() if path.stat().st_size else ()
                held |= {(value.tag, event.step) for event in events for value in event.summary.value}
    return held
