"""TensorBoard as a listener: every epoch's scalars of every trial, a folder per trial."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard.writer import SummaryWriter

from grcf_ray.search.events import EpochFinished, Event, SeedsStarted, StageStarted, TrialEnded
from grcf_ray.search.record import TrialRecord
from grcf_ray.storage import Place

__all__ = ["TensorBoardListener"]


class TensorBoardListener:
    """Writes `tensorboard/stage1/0007` and so on from the events of a search, in the driver alone.

    Files grow, which objects cannot: for object storage they grow in a folder of temporary files, and are uploaded
    after each epoch.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._scratch = None if place.local else Path(tempfile.mkdtemp(prefix="grcf-tensorboard-"))
        self._below: tuple[str, ...] = ()
        self._writers: dict[tuple[int, int], SummaryWriter] = {}
        self._written: dict[tuple[int, int], int] = {}

    def __call__(self, event: Event) -> None:
        """Write the epochs of the event's trial that are not written yet."""
        if isinstance(event, SeedsStarted):
            # Their numbers begin anew.
            self._close_all()
            self._below, self._written = ("seeds",), {}
        elif isinstance(event, StageStarted):
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
        self._close_all()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _write(self, trial: TrialRecord) -> None:
        key = (trial.stage, trial.number)
        names = (*self._below, f"stage{trial.stage}", f"{trial.number:04d}")
        if key not in self._writers:
            root = self._scratch or self._place.local
            assert root is not None
            self._writers[key] = SummaryWriter(str(root.joinpath(*names)))
        writer = self._writers[key]
        for metrics in trial.curve[self._written.get(key, 0) :]:
            for name, value in metrics.items():
                if name != "epoch" and value is not None:
                    writer.add_scalar(name, value, metrics["epoch"])
        writer.flush()
        self._written[key] = trial.epoch
        if self._scratch:
            self._upload(names)

    def _upload(self, names: tuple[str, ...]) -> None:
        assert self._scratch is not None
        place, folder = self._place, self._scratch.joinpath(*names)
        for name in names:
            place = place / name
        for file in folder.iterdir():
            with (place / file.name).writing() as path:
                shutil.copyfile(file, path)

    def _close_all(self) -> None:
        for key in list(self._writers):
            self._close(key)

    def _close(self, key: tuple[int, int]) -> None:
        if key in self._writers:
            self._writers.pop(key).close()
