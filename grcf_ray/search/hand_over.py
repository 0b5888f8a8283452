"""Hand the best trials of Stage 1 over to Stage 2, whose trials start from their weights in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from grcf_ray.errors import DamagedError
from grcf_ray.search.events import FinalistsHeld, FinalistSkipped
from grcf_ray.search.record import TrialRecord, spent

if TYPE_CHECKING:
    from grcf_ray.search.stages import Search


class HandOver:
    """The finalists: trials of Stage 1 whose weights are copied to `finalists/`."""

    ranked: Callable[[], Sequence[TrialRecord]]
    """Returns the trials that may be handed over, best first. They are changed in place: a finalist's checkpoint is its
    copy."""

    def __init__(self, search: Search) -> None:
        self._search, self._record, self._limits = search, search.record, search.config.search
        second, info = self._record.trials(2), self._record.info()
        self.numbers: list[str] = info.finalists if second else []
        """All finalists so far. The list only grows once Stage 2 has trials."""
        self.budget = max(self._limits.stage2_trials, info.stage2_trials)
        """Trials of Stage 2; a reopened Stage 2 gets more."""
        self.over = spent(second) >= self.budget
        """Whether Stage 2 has spent its budget, and is not reopened."""
        self._used = {trial.params["finalist"] for trial in second}
        self._exported: set[int] = set()

    def begin(self) -> bool:
        """Hand over the best trials, unless Stage 2 is over and stays so; return whether there is a finalist."""
        if not self.over or self._search.reopen:
            self._update()
        return bool(self.numbers)

    def finalist(self, number: int) -> str:
        """Return the finalist of a new trial of Stage 2: the best ones of now in turn, the best one for trial 0."""
        self._update()
        handed = [str(trial.number) for trial in self.ranked() if str(trial.number) in self.numbers]
        # A trial that ran out of time may have been handed over and fail later.
        best = handed[: self._limits.finalists] or self.numbers
        self._used.add(chosen := best[number % len(best)])
        return chosen

    def tell_held(self) -> None:
        """Tell the listeners which of the best trials came too late for Stage 2."""
        best = self.ranked()[: self._limits.finalists]
        if better := [trial for trial in best if trial.checkpoint and str(trial.number) not in self.numbers]:
            self._search.tell(FinalistsHeld(tuple(better)))

    def _update(self) -> None:
        """Hand over those of the best trials that are not yet; a Stage 2 that is over gets a second budget for them."""
        best = [trial for trial in self.ranked()[: self._limits.finalists] if trial.number not in self._exported]
        new = [name for trial in best if self._export(trial) and (name := str(trial.number)) not in self.numbers]
        if new:
            if self.over:
                self.over, self.budget = False, self.budget + self._limits.stage2_trials
            self.numbers += new
            self._record.update_run(finalists=self.numbers, stage2_trials=self.budget)

    def _export(self, trial: TrialRecord) -> bool:
        """Copy a trial's weights to `finalists/`; return whether they are intact.

        A copy from which Stage 2 has started stays as it is.
        """
        folder, used = self._record.finalist_folder(trial.number), str(trial.number) in self._used
        # A trial that still has its own checkpoints ran out of time, and may have improved since.
        better = trial.checkpoint is not None and trial.checkpoint.startswith("stage1/") and not used
        if better or not (folder / "trial.json").exists():
            if trial.checkpoint is None:
                return False
            try:
                self._record.write_finalist(trial, self._search.export_finalist(trial))
            except DamagedError as error:
                trial.notes.append(str(error))
                trial.checkpoint = trial.checkpoint_sha256 = None
                self._record.write_trial(trial)
                self._search.tell(FinalistSkipped(trial, str(error)))
                return False
        kept = f"finalists/{trial.number:04d}/model.safetensors"
        # A trial that ran out of time resumes from its own checkpoints.
        if trial.finished and trial.checkpoint != kept:
            trial.checkpoint, trial.checkpoint_sha256 = kept, self._record.read_finalist(trial.number)["sha256"]
            self._record.write_trial(trial)
            # The attempts' other files, above all the optimizer state, are no longer needed.
            self._record.trial_folder(trial).delete()
        self._exported.add(trial.number)
        return True
