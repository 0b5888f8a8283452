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
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG

from grcf_ray.config import Task
from grcf_ray.console import progress
from grcf_ray.errors import reason
from grcf_ray.files import scratch_folder
from grcf_ray.report.event_folder import EventFolder
from grcf_ray.report.hparams import Study, best_tag, session_end
from grcf_ray.report.images import png_values
from grcf_ray.report.projector import write_projector
from grcf_ray.report.view import Predictions, RunView
from grcf_ray.search.events import (
    EpochFinished,
    Event,
    RetrainingsStarted,
    SearchStarted,
    StageStarted,
    TrialEnded,
    TrialStarted,
)
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.train.curve import DIRECTIONS, best_epoch, objective_name

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
        self._ended: dict[int, list[TrialRecord]] = {1: [], 2: []}
        self._passes = {1: 0, 2: 0}

    def __call__(self, event: Event) -> None:
        """Write the event's values that are not written yet."""
        if isinstance(event, SearchStarted):
            self._study = Study.read(self._record)
            self._folder().add([self._study.experiment([stage for stage in (1, 2) if stage in event.budgets])], 0)
            self._close()
        elif isinstance(event, RetrainingsStarted):
            # The numbers of retrainings start at 0 again.
            self.close()
            self._retraining = True
        elif isinstance(event, StageStarted):
            self._begin(event)
        elif isinstance(event, (TrialStarted, EpochFinished)):
            self._write(event.trial)
        elif isinstance(event, TrialEnded):
            self._end(event.trial)

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

    def finish(self, view: RunView) -> None:
        """Show the best model's predictions on test, or on valid if test has not been read.

        The projector also has the finalists as Stage 1 left them. A fault here is one line of progress, since the
        search has its result.
        """
        try:
            self._show(view)
        except Exception as error:
            progress(f"TensorBoard cannot show the result; the search is not affected: {reason(error)}")

    def _show(self, view: RunView) -> None:
        split = view.shown_split
        scored = view.scored(split)
        if scored is None:
            return
        step = sum(trial.finished for trials in view.trials.values() for trial in trials)
        values = png_values(scored, split, protocol=view.protocol, label_range=view.label_range)
        self._folder("best").add(values, step)
        self._close("best")
        shown: dict[str, tuple[str, Predictions]] = {split: (f"z_final of {split}", scored)}
        for number in view.info.finalists:
            states = view.finalist_scored(int(number))
            if states is not None:
                shown[f"finalist-{int(number):04d}"] = (f"finalist {int(number)}, z_final of valid", states)
        write_projector(self._place / "best", shown)

    def close(self) -> None:
        """Flush and close the files."""
        for names in list(self._folders):
            self._close(*names)

    def _begin(self, event: StageStarted) -> None:
        names = self._names(event.stage)
        if self._study is not None and not self._retraining:
            self._folder(*names, "summary").add([self._study.experiment([event.stage])], 0)
            self._folder(*names, "summary").flush()
        self._ended[event.stage], self._passes[event.stage] = [], 0
        for trial in sorted(event.trials, key=lambda trial: trial.ended or ""):
            if trial.finished:
                self._end(trial)
            else:
                self._write(trial)

    def _write(self, trial: TrialRecord) -> None:
        folder = self._folder(*self._names(trial.stage), f"{trial.number:04d}")
        if self._study is not None and not self._retraining and not folder.holds(SESSION_START_INFO_TAG, 0):
            folder.add([self._study.session_start(trial)], 0)
        for metrics, best in zip(trial.curve, best_so_far(trial), strict=True):
            folder.add(_scalars(dict(_tagged(metrics)) | best), metrics["epoch"])
        folder.flush()

    def _end(self, trial: TrialRecord) -> None:
        self._write(trial)
        names = (*self._names(trial.stage), f"{trial.number:04d}")
        if not self._retraining:
            self._folder(*names).add([session_end(trial)], 0)
            self._progress(trial)
        self._close(*names)

    def _progress(self, trial: TrialRecord) -> None:
        """Write the best objective by number of ended trials and by their cost."""
        ended = self._ended[trial.stage]
        ended.append(trial)
        objectives = [t.objective for t in ended if t.objective is not None]
        if not objectives:
            return
        summary = self._folder(*self._names(trial.stage), "summary")
        best = max(objectives) if DIRECTIONS[trial.stage] == "max" else min(objectives)
        # Steps are whole numbers, and each end has its own.
        passes = max(round(sum(t.utterance_passes for t in ended)), self._passes[trial.stage] + 1)
        self._passes[trial.stage] = passes
        summary.add(_scalars({"search/best_by_trials": best}), len(ended))
        summary.add(_scalars({"search/best_by_utterance_passes": best}), passes)
        summary.flush()

    def _names(self, stage: int) -> tuple[str, ...]:
        return (*(("seeds",) if self._retraining else ()), f"stage{stage}")

    def _folder(self, *names: str) -> EventFolder:
        if names not in self._folders:
            place = self._place
            for name in names:
                place = place / name
            self._folders[names] = EventFolder(place, scratch=self._scratch)
        return self._folders[names]

    def _close(self, *names: str) -> None:
        self._folders.pop(names).close()


def best_so_far(trial: TrialRecord) -> list[dict[str, float]]:
    """Return for each epoch both stages' objectives at the best epoch so far; empty before there is one."""
    scalars = []
    for epoch in range(1, trial.epoch + 1):
        best = best_epoch(trial.stage, trial.curve[:epoch]) or {}
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
