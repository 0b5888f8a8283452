"""TensorBoard as a listener: every epoch's scalars of every trial, a folder per trial."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard.writer import SummaryWriter

from grcf_ray.search.events import EpochFinished, Event, StageStarted, TrialEnded
from grcf_ray.search.record import TrialRecord

__all__ = ["TensorBoardListener"]


class TensorBoardListener:
    """Writes `tensorboard/stage1/0007` and so on from the events of a search, in the driver alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[tuple[int, int], SummaryWriter] = {}
        self._written: dict[tuple[int, int], int] = {}

    def __call__(self, event: Event) -> None:
        """Write the epochs of the event's trial that are not written yet."""
        if isinstance(event, StageStarted):
            for trial in event.trials:
                self._written[trial.stage, trial.number] = trial.epoch
        elif isinstance(event, (EpochFinished, TrialEnded)):
            self._write(event.trial)
            if isinstance(event, TrialEnded):
                self._close((event.trial.stage, event.trial.number))

    def __enter__(self) -> TensorBoardListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for key in list(self._writers):
            self._close(key)

    def _write(self, trial: TrialRecord) -> None:
        key = (trial.stage, trial.number)
        if key not in self._writers:
            folder = self._folder / f"stage{trial.stage}" / f"{trial.number:04d}"
            self._writers[key] = SummaryWriter(str(folder))
        writer = self._writers[key]
        for metrics in trial.curve[self._written.get(key, 0) :]:
            for name, value in metrics.items():
                if name != "epoch" and value is not None:
                    writer.add_scalar(name, value, metrics["epoch"])
        writer.flush()
        self._written[key] = trial.epoch

    def _close(self, key: tuple[int, int]) -> None:
        if key in self._writers:
            self._writers.pop(key).close()
