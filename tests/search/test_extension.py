"""A finished search that is given more to do, and finalists whose weights are lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from same_training import save_checkpoint

from grcf_ray.errors import NoWinnerError
from grcf_ray.search.events import Event, FinalistsHeld, FinalistSkipped, TrialStarted
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.stopping import Stop
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from grcf_ray.search.stages import Search
    from tests.conftest import Recorded


class Told:
    """A listener: the trials that were started, and what was said of finalists."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.held: list[list[int]] = []
        self.skipped: list[tuple[int, str]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrialStarted):
            self.started.append((event.trial.stage, event.trial.number))
        elif isinstance(event, FinalistsHeld):
            self.held.append([trial.number for trial in event.trials])
        elif isinstance(event, FinalistSkipped):
            self.skipped.append((event.trial.number, event.why))


@pytest.fixture
def finished(recorded: Recorded, make_search: Callable[..., Search]) -> RunRecord:
    """The recorded run, to go on with; its Stage 1 scored so badly that whatever comes now is better."""
    record: RunRecord = make_search().record
    assert record.place.local is not None
    shutil.copytree(recorded.folder, record.place.local, dirs_exist_ok=True)
    for trial in record.trials(1):
        for metrics in trial.curve:
            metrics["valid/pairwise_acc"] *= 0.01
        record.write_trial(trial)
    return record


def files(record: RunRecord, stage: int) -> dict[str, int]:
    assert record.place.local is not None
    return {path.name: path.stat().st_mtime_ns for path in (record.place.local / f"stage{stage}/trials").glob("*.json")}


def test_a_finished_search_grows(finished: RunRecord, make_search: Callable[..., Search]) -> None:
    """Stage 1: its better trials wait until Stage 2 is reopened for them. (Stage 2 alone: test_stored_run.)"""
    record = finished
    before, first, second = record.read_run(), files(record, 1), files(record, 2)
    old, winner = before["finalists"], before["winner"]

    told = Told()
    more = {"search.stage1_trials": 8}
    search = make_search(more, told)
    assert f"stage2/{search.run().number}" == winner
    assert told.started == [(1, 6), (1, 7)]
    better = [trial.number for trial in record.ranked(1)[:2]]
    assert sorted(better) == [6, 7]
    assert told.held == [better]
    assert record.read_run() == before
    assert files(record, 2) == second
    # What has ended before has at most lost weights that cannot be chosen any more.
    assert {name: time for name, time in files(record, 1).items() if name in first} == first
    assert search.complete

    told = Told()
    again = make_search(more, told)
    assert f"stage2/{again.run().number}" == winner
    assert (told.started, told.held) == ([], [better])

    told = Told()
    search = make_search(more, told, reopen=True)
    best = search.run()
    handed = [*old, *(str(number) for number in better)]
    assert record.read_run()["finalists"] == handed
    assert record.read_run()["stage2_trials"] == 10
    assert told.started == [(2, number) for number in range(5, 10)]
    assert (told.held, told.skipped) == ([], [])
    assert best == record.ranked(2)[0]
    assert {trial.params["finalist"] for trial in record.trials(2)} <= set(handed)
    for number in better:
        assert record.trial(1, number).checkpoint == f"finalists/{number:04d}/model.safetensors"
    assert search.complete

    for reopen in (True, False):
        told = Told()
        search = make_search(more, told, reopen=reopen)
        assert search.run().number == best.number
        assert (told.started, told.held) == ([], [])
        assert record.read_run()["finalists"] == handed
        assert record.read_run()["stage2_trials"] == 10
        assert search.complete


def damage(record: RunRecord, trial: TrialRecord) -> None:
    assert trial.checkpoint is not None
    path = record.at(trial.checkpoint).local
    assert path is not None
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    # Beside and renamed: other checkpoints may be second names of this file.
    other = path.with_name("other")
    other.write_bytes(content)
    other.replace(path)


@pytest.fixture
def stage1(make_search: Callable[..., Search], tiny_features: Features) -> Callable[..., Search]:
    """Makes a search whose Stage 1 is over, with these results, and for whose Stage 2 there is no time."""

    def make(values: Sequence[float], told: Told, finalists: int) -> Search:
        settings = {"search.stage1_trials": len(values), "search.finalists": finalists, "stage1.epochs": 1}
        search: Search = make_search(settings, told, stop=Stop(time_budget=1e-9))
        for number, value in enumerate(values):
            trial = TrialRecord(
                number=number,
                stage=1,
                attempt=1,
                params=search.space.start(1),
                seed=number,
                state="complete",
                curve=[{"epoch": 1, "valid/pairwise_acc": value}],
                checkpoint=f"stage1/trials/{number:04d}/attempt-1/best-00001.safetensors",
            )
            seen = select_modalities(tiny_features, "all")
            model = initial_model(search.config.model, seen, seed=number)
            optimizer = torch.optim.AdamW(model.parameters())
            place = search.record.attempt_folder(trial) / "best-00001.safetensors"
            trial.checkpoint_sha256 = save_checkpoint(place, model, optimizer, {"epoch": 1, "curve": trial.curve})
            search.record.write_trial(trial)
        return search

    return make


@pytest.mark.parametrize("whole", [False, True])
def test_a_finalist_with_damaged_or_other_weights_is_left_out(stage1: Callable[..., Search], whole: bool) -> None:
    """It is told, and noted with the trial; the other finalist is taken. A mix-up of storage leaves a whole file."""
    told = Told()
    search = stage1([0.5, 0.9, 0.7], told, finalists=2)
    if whole:
        paths = [search.record.at(str(trial.checkpoint)).local for trial in search.record.trials(1)]
        shutil.copyfile(paths[0], paths[1])  # type: ignore[arg-type]
    else:
        damage(search.record, search.record.trial(1, 1))
    with pytest.raises(NoWinnerError, match="stage 2: no trial finished"):
        search.run()
    first, other, third = search.record.ranked(1)
    ((number, why),) = told.skipped
    assert number == first.number == 1
    assert ("not the recorded checkpoint" if whole else "damaged, its content has SHA-256") in why
    assert first.notes == [why]
    assert (first.checkpoint, first.checkpoint_sha256) == (None, None)
    assert not search.record.finalist_folder(1).exists()
    assert search.record.read_run()["finalists"] == [str(other.number)]
    assert other.checkpoint == "finalists/0002/model.safetensors"
    assert third.number == 0


def test_without_a_whole_finalist_there_is_no_winner(stage1: Callable[..., Search]) -> None:
    told = Told()
    search = stage1([0.5], told, finalists=1)
    damage(search.record, search.record.trial(1, 0))
    with pytest.raises(NoWinnerError, match="stage 1: ") as caught:
        search.run()
    assert caught.value.exit_code == 4
    assert [number for number, _ in told.skipped] == [0]
    assert "finalists" not in search.record.read_run()


@pytest.mark.parametrize("used", [False, True])
def test_a_finalist_that_was_cut_short_is_handed_over_anew_unless_stage_2_has_started_from_it(
    used: bool, stage1: Callable[..., Search]
) -> None:
    """Its time was up after an epoch; the next start trains it to its end."""
    search = stage1([0.5], Told(), finalists=1)
    record = search.record
    trial = record.trial(1, 0)
    trial.state = "running"
    record.write_trial(trial)
    with pytest.raises(NoWinnerError):
        search.run()
    before = read_checkpoint(record.finalist_folder(0) / "model.safetensors")
    assert record.trial(1, 0).checkpoint == trial.checkpoint, "it goes on from its own"
    if used:
        start = TrialRecord(number=0, stage=2, attempt=1, params={"finalist": "0"}, seed=0, state="running")
        record.write_trial(start)

    search = stage1([0.9], Told(), finalists=1)
    with pytest.raises(NoWinnerError):
        search.run()
    kept = (record.finalist_folder(0) / "trial.json").read_json()
    after = read_checkpoint(record.finalist_folder(0) / "model.safetensors", sha256=kept["sha256"])
    assert kept["objective"] == (0.5 if used else 0.9)
    assert (after.sha256 == before.sha256) == used
    ended = record.trial(1, 0)
    assert (ended.checkpoint, ended.checkpoint_sha256) == ("finalists/0000/model.safetensors", after.sha256)


def test_finalists_lie_where_no_trial_writes(recorded: Recorded) -> None:
    """They are files of their own, not second names of a checkpoint."""
    for path in Path(recorded.folder / "finalists").rglob("*.safetensors"):
        assert path.stat().st_nlink == 1
