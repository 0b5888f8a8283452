from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grcf_ray.report.tensorboard import TensorBoardListener
from grcf_ray.search.events import EpochFinished, SeedsStarted, StageStarted, TrialEnded, TrialStarted
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import place_at

if TYPE_CHECKING:
    from tests.conftest import Recorded


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of every event in a folder, none left out."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def trial(epochs: int, *, number: int = 0, stage: Literal[1, 2] = 1, state: Any = "running") -> TrialRecord:
    curve = [{"epoch": k, "valid/mae": 1 / k, "valid/corr": None if k == 2 else 0.5} for k in range(1, epochs + 1)]
    return TrialRecord(number=number, stage=stage, attempt=1, params={}, seed=0, state=state, curve=curve)


def test_every_scalar_of_every_epoch_of_every_trial_is_there(recorded: Recorded) -> None:
    record = RunRecord(place_at(recorded.folder))
    for stage in (1, 2):
        folders = {path.name for path in (recorded.folder / "tensorboard" / f"stage{stage}").iterdir()}
        assert folders == {f"{t.number:04d}" for t in record.trials(stage)}
        for kept in record.trials(stage):
            written = scalars(recorded.folder / "tensorboard" / f"stage{stage}" / f"{kept.number:04d}")
            expected: dict[str, list[tuple[int, Any]]] = {}
            for metrics in kept.curve:
                for name, value in metrics.items():
                    if name != "epoch" and value is not None:
                        expected.setdefault(name, []).append((metrics["epoch"], pytest.approx(value, rel=1e-6)))
            assert written == expected
            assert {"loss/total", "lr/head", "seconds"} <= written.keys()


def test_epochs_are_written_as_they_end(tmp_path: Path) -> None:
    """Readable while the trial runs: nothing waits in a buffer."""
    with TensorBoardListener(place_at(tmp_path)) as listener:
        listener(StageStarted(1, 1, 3, ()))
        listener(TrialStarted(trial(0)))
        listener(EpochFinished(trial(1)))
        assert scalars(tmp_path / "stage1" / "0000")["valid/mae"] == [(1, 1.0)]
        listener(EpochFinished(trial(2)))
        assert scalars(tmp_path / "stage1" / "0000") == {
            "valid/mae": [(1, 1.0), (2, 0.5)],
            "valid/corr": [(1, 0.5)],
        }


def test_a_resumed_stage_adds_no_duplicates(tmp_path: Path) -> None:
    with TensorBoardListener(place_at(tmp_path)) as listener:
        listener(StageStarted(2, 2, 4, ()))
        listener(TrialEnded(trial(4, stage=2, state="complete")))
        listener(EpochFinished(trial(2, number=1, stage=2)))
    with TensorBoardListener(place_at(tmp_path)) as listener:
        recorded = (trial(4, stage=2, state="complete"), trial(2, number=1, stage=2))
        listener(StageStarted(2, 2, 4, recorded))
        listener(TrialStarted(trial(2, number=1, stage=2)))
        listener(EpochFinished(trial(3, number=1, stage=2)))
        listener(TrialEnded(trial(4, number=1, stage=2, state="complete")))
    for number in (0, 1):
        steps = [step for step, _ in scalars(tmp_path / "stage2" / f"{number:04d}")["valid/mae"]]
        assert steps == [1, 2, 3, 4]


def test_epochs_that_only_the_checkpoint_knew_are_written(tmp_path: Path) -> None:
    """The driver died before it heard of epoch 2; the trial went on from its checkpoint."""
    with TensorBoardListener(place_at(tmp_path)) as listener:
        listener(EpochFinished(trial(1)))
    with TensorBoardListener(place_at(tmp_path)) as listener:
        listener(StageStarted(1, 1, 3, (trial(1),)))
        listener(TrialEnded(trial(3, state="complete")))
    assert [step for step, _ in scalars(tmp_path / "stage1" / "0000")["valid/mae"]] == [1, 2, 3]


def test_retrainings_have_folders_of_their_own(tmp_path: Path) -> None:
    """Their numbers begin anew, and the search's trials keep theirs."""
    with TensorBoardListener(place_at(tmp_path)) as listener:
        listener(StageStarted(1, 1, 2, ()))
        listener(TrialEnded(trial(2, state="complete")))
        # The time was up before this one had ended.
        listener(EpochFinished(trial(1, number=1)))
        listener(SeedsStarted(1))
        listener(StageStarted(1, 2, 3, ()))
        listener(TrialEnded(trial(3, state="complete")))
        listener(TrialEnded(trial(3, number=1, state="complete")))
    for folder, epochs in ((tmp_path, [2, 1]), (tmp_path / "seeds", [3, 3])):
        for number in (0, 1):
            steps = [step for step, _ in scalars(folder / "stage1" / f"{number:04d}")["valid/mae"]]
            assert steps == list(range(1, epochs[number] + 1))
