"""Whole searches on Ray, on the tiny data set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grcf_ray.config import flatten
from grcf_ray.errors import NoWinnerError
from grcf_ray.search import callback
from grcf_ray.search.callback import RecordCallback
from grcf_ray.search.events import Event, TrialBroke, TrialStarted
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.space import Choice, Space, load_space
from grcf_ray.search.stages import config_of
from grcf_ray.search.stopping import Stop
from grcf_ray.storage import LocalPath, StoragePath, storage_path
from grcf_ray.train.checkpoint import read_checkpoint
from grcf_ray.train.stage import stage_seed

if TYPE_CHECKING:
    from grcf_ray.search.stages import Search
    from tests.conftest import Recorded

STAGE1_TRIALS, STAGE2_TRIALS, EPOCHS, FINALISTS = 6, 5, 3, 2
SEED = 42
NEWER = '{"format": 99}'
"""The state of a checkpoint that a newer release wrote."""


@pytest.fixture(scope="module")
def record(recorded: Recorded) -> RunRecord:
    return RunRecord(storage_path(recorded.folder))


@pytest.fixture(scope="module")
def space(tiny_space: Path) -> Space:
    return load_space(tiny_space)


def path_of(place: StoragePath) -> Path:
    assert isinstance(place, LocalPath)
    return place.local


def numbers(trials: list[TrialRecord]) -> list[int]:
    return [trial.number for trial in trials]


def test_budgets_are_met_exactly(record: RunRecord) -> None:
    for stage, budget in ((1, STAGE1_TRIALS), (2, STAGE2_TRIALS)):
        trials = record.trials(stage)
        assert numbers(trials) == list(range(budget))
        assert {trial.state for trial in trials} == {"complete", "pruned"}
        for trial in trials:
            assert (trial.epoch == EPOCHS) == (trial.state == "complete")
            assert [metrics["epoch"] for metrics in trial.curve] == list(range(1, trial.epoch + 1))
            assert trial.attempt == 1
            assert trial.started
            assert trial.ended
            assert trial.seconds == pytest.approx(sum(metrics["seconds"] for metrics in trial.curve))
            assert trial.utterance_passes == pytest.approx(sum(m["utterance_passes"] for m in trial.curve))
            assert trial.seed == stage_seed(SEED, stage, trial.number)
        assert len({trial.seed for trial in trials}) == budget


def test_first_trials_are_the_starting_points(record: RunRecord, space: Space) -> None:
    assert record.trials(1)[0].params == space.start(1)
    assert record.trials(2)[0].params == {**space.start(2), "finalist": str(record.ranked(1)[0].number)}


def test_finalists_are_the_best_of_stage_1_and_all_that_stage_2_starts_from(record: RunRecord) -> None:
    best = record.ranked(1)[:FINALISTS]
    assert record.read_run()["finalists"] == [str(trial.number) for trial in best]
    assert [int(name) for name in (record.place / "finalists").names()] == sorted(numbers(best))
    for trial in best:
        folder = record.finalist_folder(trial.number)
        kept = (folder / "trial.json").read_json()
        assert (kept["trial"], kept["params"], kept["objective"]) == (trial.number, trial.params, trial.objective)
        weights = read_checkpoint(folder / "model.safetensors", sha256=kept["sha256"])
        assert trial.best is not None
        assert weights.state["epoch"] == trial.best["epoch"]
        assert not [name for name in weights.tensors if name.startswith("optimizer")]
        # It is all that is left of the trial.
        assert trial.checkpoint == f"finalists/{trial.number:04d}/model.safetensors"
        assert trial.checkpoint_sha256 == kept["sha256"]
    assert {trial.params["finalist"] for trial in record.trials(2)} <= {str(trial.number) for trial in best}


def test_stage_2_inherits_what_its_finalist_searched(record: RunRecord, space: Space, recorded: Recorded) -> None:
    winner = record.ranked(2)[0]
    finalist = next(t for t in record.trials(1) if str(t.number) == winner.params["finalist"])
    inherited = {path: value for path, value in finalist.params.items() if not path.startswith("stage1.")}
    assert {path.partition(".")[0] for path in inherited} == {"model", "ranking"}
    for name in ("config.json", "provenance.json"):
        settings = json.loads((recorded.folder / "best" / name).read_text())["settings"]
        searched = {path: value for path, value in winner.params.items() if path != "finalist"}
        # `auto` in the space; the machine decides.
        machine = {path: settings[path] for path in ("search.gpus_per_worker", "train.precision")}
        assert tuple(machine.values()) in ((0.0, "float32"), (1.0, "float32"), (1.0, "bfloat16"))
        assert settings == {**flatten(space.config()), "search.concurrent": 1, **machine, **finalist.params, **searched}
    assert inherited.items().isdisjoint(space.start(1).items() - {("model.modalities", "all")})


def test_the_winner_has_the_best_validation_mae_and_best_is_its_model(record: RunRecord, recorded: Recorded) -> None:
    maes = {(t.number, m["epoch"]): m["valid/mae"] for t in record.trials(2) for m in t.curve}
    number, epoch = min(maes, key=lambda key: maes[key])
    summary = json.loads(recorded.out)
    assert summary["winner"]["trial"] == record.read_run()["winner"] == f"stage2/{number}"
    assert summary["stages"]["stage2"]["best"][0]["objective"] == maes[number, epoch]
    # Measured again with the machine's threads, from the file on its own.
    assert summary["valid"]["mae"] == pytest.approx(maes[number, epoch], rel=1e-5)
    winner = record.ranked(2)[0]
    assert winner.checkpoint is not None
    trained = read_checkpoint(record.at(winner.checkpoint), sha256=winner.checkpoint_sha256).tensors
    exported = load_file(recorded.folder / "best" / "model.safetensors")
    assert all(torch.equal(tensor, trained[f"model.{name}"]) for name, tensor in exported.items())


def test_weights_are_kept_of_the_ensemble_alone(record: RunRecord, recorded: Recorded) -> None:
    """And of their attempts the best epoch's alone: what training would go on from is of no more use."""
    kept = {str(path.relative_to(recorded.folder)) for path in recorded.folder.rglob("*.safetensors")}
    members = record.ranked(2)[:3]
    assert kept == {
        "best/model.safetensors",
        *(f"ensemble/stage2-{trial.number}/model.safetensors" for trial in members[1:]),
        *(trial.checkpoint for trial in members),
        *(f"finalists/{trial.number:04d}/model.safetensors" for trial in record.ranked(1)[:FINALISTS]),
    }
    for stage, holders in ((1, record.ranked(1)[:FINALISTS]), (2, members)):
        assert [t.number for t in record.trials(stage) if t.checkpoint] == sorted(numbers(holders))
        # Nothing else is left of the others' attempts either.
        folders = [name for name in (record.place / f"stage{stage}" / "trials").names() if "." not in name]
        assert folders == ([] if stage == 1 else [f"{number:04d}" for number in sorted(numbers(members))])


def test_events_come_in_order(recorded: Recorded) -> None:
    assert recorded.events[:2] == ("SearchStarted", "StageStarted")
    assert recorded.events.count("StageStarted") == recorded.events.count("StageEnded") == 2
    for name in ("TrialStarted", "TrialEnded"):
        assert recorded.events.count(name) == STAGE1_TRIALS + STAGE2_TRIALS
    fixed = recorded.events.index("WinnerFixed")
    assert recorded.events[fixed - 1] == "StageEnded"
    assert set(recorded.events[fixed + 1 : -1]) == {"StepStarted"}
    assert recorded.events[-1] == "SearchFinished"


def test_a_finished_search_runs_no_trial_again(recorded: Recorded, make_search: Callable[..., Search]) -> None:
    events: list[str] = []
    again = make_search(None, lambda event: events.append(type(event).__name__))
    folder = path_of(again.record.place)
    shutil.rmtree(folder)
    shutil.copytree(recorded.folder, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    assert f"stage2/{again.run().number}" == again.record.read_run()["winner"]
    assert events == ["StageStarted", "StageEnded", "StageStarted", "StageEnded", "WinnerFixed"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_bad_trials_are_recorded_and_the_search_goes_on(
    make_search: Callable[..., Search], space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time: learning rates that diverge; a process that raises at every start; known failures; damage."""
    monkeypatch.setattr(callback, "RETRIES", 1)
    pids: dict[int, set[int]] = {}
    on_result = RecordCallback.on_trial_result

    def spy_result(self: Any, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        pids.setdefault(trial.config["number"], set()).add(result["pid"])
        on_result(self, iteration, trials, trial, result, **info)

    monkeypatch.setattr(RecordCallback, "on_trial_result", spy_result)
    launches: Counter[int] = Counter()
    broke: list[int] = []

    def break_at_start(event: Event) -> None:
        if isinstance(event, TrialBroke):
            broke.append(event.trial.number)
            path_of(search.record.attempt_folder(event.trial)).unlink()
        if isinstance(event, TrialStarted):
            number, attempt = event.trial.number, path_of(search.record.attempt_folder(event.trial))
            launches[number] += 1
            if number == 1:
                # A link to itself cannot be read: nothing that a trial knows how to report.
                attempt.rmdir()
                attempt.symlink_to(attempt)
            elif number in (2, 4):
                digest = hashlib.sha256(NEWER.encode()).hexdigest()
                save_file({}, attempt / "whole-00001.safetensors", {"state": NEWER, "sha256": digest})
            elif number == 3:
                (attempt / "whole-00001.safetensors").write_text("not a checkpoint")

    wild = dataclasses.replace(space, stage1={"stage1.head_lr": Choice((1e-3, 1e30), 1e30)})
    settings = {"stage2.epochs": 0, "stage1.epochs": 2, "search.stage1_trials": 7, "search.pruning": False}
    search = make_search(settings, break_at_start, space=wild, concurrent=2)
    winner = search.run()
    trials = search.record.trials(1)
    assert numbers(trials) == list(range(7))

    diverged = [t for t in trials if t.params["stage1.head_lr"] == 1e30 and t.number not in (1, 2, 4)]
    assert numbers(diverged)[0] == 0
    for trial in diverged:
        assert (trial.state, trial.cause) == ("diverged", "not finite")
        assert "no longer finite" in str(trial.error)
        assert (trial.epoch, trial.objective, trial.checkpoint) == (0, None, None)
    assert (trials[1].state, trials[1].cause) == ("failed", "error")
    assert "[Errno " in str(trials[1].error)
    assert "\n" not in str(trials[1].error)
    assert [failure["attempt"] for failure in trials[1].failures] == [1, 2]
    assert trials[1].failures[-1]["error"] == trials[1].error
    # The end of a trial is told as such, not as a break after which it starts again.
    assert broke == [1]
    for trial in (trials[2], trials[4]):
        assert (trial.state, trial.cause) == ("failed", "refused")
        assert "newer grcf_ray" in str(trial.error)
    (note,) = trials[3].notes
    assert "not a whole checkpoint" in note
    assert "trained again from epoch 1" in note
    assert launches == Counter({number: 2 if number == 1 else 1 for number in range(7)})
    sound = [t for t in trials if t.number not in (1, 2, 4) and t.params["stage1.head_lr"] == 1e-3]
    assert {t.state for t in sound} == {"complete"}
    assert all(t.notes == [] for t in trials if t.number != 3)
    assert all(t.failures == [] for t in trials if t.number != 1)
    assert winner.number == search.record.ranked(1)[0].number
    assert winner.number in numbers(sound)
    # Divergence and known failures leave the process to the next trial: two, and those of the trial that raised.
    # Were each of the others, three and more, to take its process with it, there would be seven.
    assert len([2, 4, *diverged]) >= 3
    assert len(set().union(*pids.values())) <= 2 + 2


def test_a_budget_of_failures_has_no_winner(make_search: Callable[..., Search]) -> None:
    """Each is on record with its parameters and error, and they are told as one cause."""
    settings = {"train.device": "cuda", "search.stage1_trials": 8, "search.failures_in_a_row": 1000}
    search = make_search(settings)
    with pytest.raises(NoWinnerError, match=r"stage 1: none of 8 trials has .*: 8 x refused: train\.device = cuda"):
        search.run()
    trials = search.record.trials(1)
    assert numbers(trials) == list(range(8))
    assert {(trial.state, trial.cause, trial.attempt) for trial in trials} == {("failed", "refused", 1)}
    # The starting point and different ones are asked for, not one again and again.
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == 8
    assert not list(path_of(search.record.place).rglob(".*"))


def test_without_stage_1_and_with_nothing_to_search_the_start_is_run(
    make_search: Callable[..., Search], space: Space
) -> None:
    """The ablation with all settings fixed: no finalists, the starting point, trials that differ by their seeds."""
    bare = dataclasses.replace(space, stage2={})
    search = make_search({"stage1.epochs": 0, "search.stage2_trials": 2, "stage2.epochs": 1}, space=bare)
    winner = search.run()
    assert winner.stage == 2
    assert search.record.trials(1) == []
    assert not (search.record.place / "finalists").exists()
    trials = search.record.trials(2)
    assert [(t.params, t.state) for t in trials] == [({}, "complete")] * 2
    assert trials[0].curve[0]["valid/mae"] != trials[1].curve[0]["valid/mae"]
    config = flatten(config_of(search.space, search.record, winner))
    assert {path: config[path] for path in space.stage1} == space.start(1)


def test_stages_that_overlap_go_on_after_an_interruption(make_search: Callable[..., Search]) -> None:
    """Two at a time: the last trial of Stage 1 leaves a slot, and Ctrl-C comes when Stage 2 takes it."""
    settings = {
        "search.stage1_trials": 3,
        "search.stage2_trials": 4,
        "search.finalists": 1,
        "search.pruning": False,
        "stage1.epochs": 4,
        "stage2.epochs": 2,
    }
    stop, events = Stop(), []

    def interrupt(event: Event) -> None:
        events.append(type(event).__name__)
        if isinstance(event, TrialStarted) and event.trial.stage == 2:
            stop.requested = True

    search = make_search(settings, interrupt, concurrent=2, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        search.run()
    assert events.count("StageStarted") == 2 and "StageEnded" not in events
    before = [*search.record.trials(1), *search.record.trials(2)]
    left = [trial.name for trial in before if not trial.finished]
    # Trials of Stage 1 may overtake each other while a process starts.
    assert len(left) == 2 and left[0].startswith("stage1/") and left[1] == "stage2/0"

    started: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, TrialStarted):
            started.append(event.trial.name)

    search = make_search(settings, note, concurrent=2)
    search.run()
    assert search.complete
    assert started == [*left, "stage2/1", "stage2/2", "stage2/3"]
    after = [*search.record.trials(1), *search.record.trials(2)]
    assert {trial.state for trial in after} == {"complete"}
    for trial, earlier in zip(after, before, strict=False):
        assert trial.params == earlier.params
    best = search.record.ranked(1)[0]
    handed = search.record.read_run()["finalists"]
    # The last trials start from the best one, also if it ended late.
    assert search.record.trials(2)[-1].params["finalist"] == str(best.number)
    assert {trial.params["finalist"] for trial in search.record.trials(2)} <= set(handed)
    for trial in search.record.trials(1):
        weights = None
        if str(trial.number) in handed:
            weights = f"finalists/{trial.number:04d}/model.safetensors"
            read_checkpoint(search.record.at(weights), sha256=trial.checkpoint_sha256)
        assert trial.checkpoint == weights


def test_stage_2_starts_from_the_weights_of_its_finalist(make_search: Callable[..., Search]) -> None:
    """With learning rates of nothing, its first epoch scores as the finalist did at the epoch that was asked for."""
    settings = {
        **dict.fromkeys(("stage2.head_lr", "stage2.encoder_top_lr", "stage2.encoder_base_lr"), 1e-30),
        "stage2.start": "last",
        "stage1.epochs": 4,
        # A rate at which the last epoch is not the best one.
        "stage1.head_lr": 3e-2,
        "stage2.epochs": 1,
        "search.stage1_trials": 1,
        "search.stage2_trials": 1,
        "search.finalists": 1,
    }
    search = make_search(settings)
    winner = search.run()
    (finalist,) = search.record.trials(1)
    assert finalist.best is not None
    assert finalist.best["valid/mae"] != finalist.curve[-1]["valid/mae"]
    assert winner.curve[0]["valid/mae"] == finalist.curve[-1]["valid/mae"]
