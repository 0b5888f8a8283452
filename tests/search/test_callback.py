"""What keeps the record while trials run: launches, deaths of processes, hangs, failures, weights."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from grcf_ray.config import RunConfig, SearchConfig
from grcf_ray.errors import NoWinnerError
from grcf_ray.search import callback
from grcf_ray.search.callback import RETRIES, RecordCallback
from grcf_ray.search.events import EpochFinished, Event, TrialBroke, TrialEnded, TrialStarted
from grcf_ray.search.record import RunRecord, TrialRecord, rank
from grcf_ray.search.searcher import OptunaSearcher
from grcf_ray.search.space import Choice, Space, load_space
from grcf_ray.storage import storage_path
from grcf_ray.train.checkpoint import read_checkpoint
from tests.search.conftest import essence

if TYPE_CHECKING:
    from grcf_ray.search.stages import Search
    from tests.conftest import Recorded


def same_weights(ours: tuple[RunRecord, str], theirs: tuple[RunRecord, str]) -> bool:
    one, other = (read_checkpoint(record.at(path)).tensors for record, path in (ours, theirs))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def gone(pid: int) -> bool:
    """Whether the process has ended, waiting a while for it."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """The processes that gave results of a trial, by its number, in their order."""
    seen: dict[int, list[int]] = {}
    on_result = RecordCallback.on_trial_result

    def spy(self: Any, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        known = seen.setdefault(trial.config["number"], [])
        if result["pid"] not in known:
            known.append(result["pid"])
        on_result(self, iteration, trials, trial, result, **info)

    monkeypatch.setattr(RecordCallback, "on_trial_result", spy)
    return seen


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[OptunaSearcher, dict[str, Any]]]:
    """The proposals of each stage that runs, and what they were built from."""
    built: list[tuple[OptunaSearcher, dict[str, Any]]] = []

    begin = OptunaSearcher.__init__

    def note(self: OptunaSearcher, space: Any, **more: Any) -> None:
        begin(self, space, **more)
        built.append((self, {"space": space, **more}))

    monkeypatch.setattr(OptunaSearcher, "__init__", note)
    return built


def told(search: OptunaSearcher) -> list[tuple[Any, ...]]:
    """What Optuna has been told of each trial."""
    return [(t.number, t.params, t.state, t.values, t.intermediate_values) for t in search.study.trials]


class Weights:
    """A listener that, whenever a trial has ended, compares the weights on disk with those that are of use."""

    def __init__(self, record: Callable[[], RunRecord], choices: dict[int, int]) -> None:
        self._record, self._choices = record, choices
        self.odd: list[Any] = []
        self.looks = 0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, TrialEnded):
            return
        record, stage = self._record(), event.trial.stage
        trials = [trial for trial in record.trials(stage) if trial.finished]
        chosen = rank(trials)[: self._choices[stage]]
        wanted = {f"stage{stage}/trials/{t.number:04d}/attempt-{t.attempt}/best.safetensors" for t in chosen}
        folders = {path for t in trials if (path := record.trial_folder(t).local)}
        root = record.place.local
        assert root is not None
        found = {str(file.relative_to(root)) for folder in folders for file in folder.rglob("*") if file.is_file()}
        recorded = {t.checkpoint for t in trials if t.checkpoint}
        if not found == recorded == wanted:
            self.odd.append((event.trial.number, found, recorded, wanted))
        self.looks += 1


def test_trials_whose_processes_die_or_hang_go_on_as_if_nothing_had_happened(
    recorded: Recorded,
    make_search: Callable[..., Search],
    pids: dict[int, list[int]],
    studies: list[tuple[OptunaSearcher, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two deaths in a trial of Stage 1, a hang in the one of Stage 2 that wins: nothing of the search is changed.

    The process that hangs is stopped, so that it neither answers nor ends by itself; the keeper's clock then skips
    more than an epoch may take.
    """
    undisturbed = RunRecord(storage_path(recorded.folder))
    winner = undisturbed.ranked(2)[0]
    first = next(trial for trial in undisturbed.trials(1) if trial.epoch == 3)
    assert winner.epoch > 1
    deaths, hang = [(1, first.number, 1), (1, first.number, 2)], (2, winner.number, 1)
    skipped = [0.0]
    monkeypatch.setattr(callback, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + skipped[0]))
    hung: list[int] = []
    broke: list[tuple[int, int, int]] = []
    starts: list[tuple[int, int]] = []

    def disturb(event: Event) -> None:
        trial = getattr(event, "trial", None)
        if trial is None:
            return
        at = (trial.stage, trial.number, trial.epoch)
        if isinstance(event, EpochFinished) and at in deaths:
            os.kill(pids[trial.number][-1], signal.SIGKILL)
        elif isinstance(event, EpochFinished) and at == hang:
            hung.append(pids[trial.number][-1])
            os.kill(hung[0], signal.SIGSTOP)
            skipped[0] += 60 * 31
        elif isinstance(event, TrialBroke):
            broke.append(at)
        elif isinstance(event, TrialStarted) and at[:2] == (1, first.number):
            starts.append((trial.attempt, trial.epoch))

    weights = Weights(lambda: search.record, {1: 2, 2: 1})
    search = make_search({"search.hang_minutes": 30}, disturb, weights)
    try:
        search.run()
        assert gone(hung[0])
    finally:
        with suppress(IndexError, ProcessLookupError):
            os.kill(hung[0], signal.SIGKILL)
    record = search.record
    for stage in (1, 2):
        assert essence(record.trials(stage)) == essence(undisturbed.trials(stage))
    assert record.read_run()["finalists"] == undisturbed.read_run()["finalists"]
    assert broke == [*deaths, hang]

    died = record.trial(1, first.number)
    assert died.attempt == 3
    assert [(failure["attempt"], failure["cause"]) for failure in died.failures] == [
        (1, "process died"),
        (2, "process died"),
    ]
    assert all("died" in failure["error"] and "\n" not in failure["error"] for failure in died.failures)
    assert all(failure["time"] for failure in died.failures)
    assert (died.error, died.cause, died.notes) == (None, None, [])
    assert starts == [(1, 0), (2, 1), (3, 2)]
    assert len(set(pids[first.number])) >= 3

    best = record.ranked(2)[0]
    assert best.attempt == 2
    assert best.checkpoint == f"stage2/trials/{winner.number:04d}/attempt-2/best.safetensors"
    (failure,) = best.failures
    assert (failure["attempt"], failure["cause"]) == (1, "hung")
    assert failure["error"] == "no epoch ended within 30 minutes"
    assert pids[winner.number][-1] != hung[0]
    assert winner.checkpoint is not None
    assert same_weights((record, best.checkpoint), (undisturbed, winner.checkpoint))
    for number in record.read_run()["finalists"]:
        path = f"finalists/{int(number):04d}/model.safetensors"
        assert same_weights((record, path), (undisturbed, path))

    assert weights.looks == 11
    assert weights.odd == []
    # Optuna was told of each trial once, and of the same as a study that is built from the record.
    for (live, built), stage in zip(list(studies), (1, 2), strict=True):
        assert told(live) == told(OptunaSearcher(**{**built, "trials": record.trials(stage)}))
        assert len(live.study.trials) == built["budget"]


def test_a_trial_that_dies_too_often_fails_and_counts(
    make_search: Callable[..., Search],
    tiny_space: Path,
    pids: dict[int, list[int]],
    studies: list[tuple[OptunaSearcher, dict[str, Any]]],
) -> None:
    """Among trials that diverge and that are stopped early: the budget is exact, and Optuna is told as by a replay."""
    victims: list[int] = []
    ends: list[tuple[int, str]] = []

    def kill(event: Event) -> None:
        if isinstance(event, EpochFinished):
            # The first trial that has an epoch and is not the start.
            if not victims and event.trial.number > 0:
                victims.append(event.trial.number)
            if event.trial.number in victims:
                os.kill(pids[event.trial.number][-1], signal.SIGKILL)
        elif isinstance(event, (TrialBroke, TrialEnded)) and event.trial.number in victims:
            ends.append((event.trial.attempt, type(event).__name__))

    space = load_space(tiny_space)
    wild = Space(**{**vars(space), "stage1": {"stage1.head_lr": Choice((1e-3, 2e-3, 1e30), 1e-3)}})
    settings = {"stage2.epochs": 0, "stage1.epochs": 5, "search.stage1_trials": 9}
    search = make_search(settings, kill, space=wild)
    search.run()
    trials = search.record.trials(1)
    assert [trial.number for trial in trials] == list(range(9))
    assert all(trial.finished for trial in trials)
    (number,) = victims
    failed = trials[number]
    assert (failed.state, failed.attempt, failed.cause, failed.epoch) == ("failed", RETRIES + 1, "process died", 3)
    assert [failure["attempt"] for failure in failed.failures] == list(range(1, RETRIES + 2))
    assert failed.error == failed.failures[-1]["error"]
    assert (failed.checkpoint, failed.objective) == (None, None)
    assert not search.record.trial_folder(failed).exists()
    assert ends == [(1, "TrialBroke"), (2, "TrialBroke"), (3, "TrialEnded")]
    assert {"complete", "diverged", "failed"} <= {trial.state for trial in trials}
    ((live, built),) = studies
    assert told(live) == told(OptunaSearcher(**{**built, "trials": trials}))
    assert len(live.study.trials) == 9


def test_a_process_that_hangs_between_two_trials_is_killed_too(
    make_search: Callable[..., Search], pids: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never comes to the start of the next one, which waits for nothing else."""
    skipped = [0.0]
    hung: list[int] = []

    def monotonic() -> float:
        if hung and skipped[0] < 60 * 40:
            skipped[0] += 60 * 5
        return time.monotonic() + skipped[0]

    monkeypatch.setattr(callback, "time", SimpleNamespace(monotonic=monotonic))

    def stop(event: Event) -> None:
        if isinstance(event, TrialEnded) and event.trial.number == 0:
            hung.append(pids[0][-1])
            os.kill(hung[0], signal.SIGSTOP)

    settings = {
        "stage2.epochs": 0,
        "stage1.epochs": 1,
        "search.stage1_trials": 2,
        "search.hang_minutes": 30,
    }
    search = make_search(settings, stop)
    try:
        search.run()
        assert gone(hung[0])
    finally:
        with suppress(IndexError, ProcessLookupError):
            os.kill(hung[0], signal.SIGKILL)
    first, second = search.record.trials(1)
    assert (first.state, first.attempt, first.failures) == ("complete", 1, [])
    assert (second.state, second.attempt) == ("complete", 2)
    assert [failure["cause"] for failure in second.failures] == ["hung"]


REFUSED = '{"format": 99}'


def refuse(record: RunRecord, trial: TrialRecord) -> None:
    """Let the trial fail by itself: what it should go on from is of a newer release."""
    folder = record.attempt_folder(trial).local
    assert folder is not None
    digest = hashlib.sha256(REFUSED.encode()).hexdigest()
    save_file({}, folder / "last.safetensors", {"state": REFUSED, "sha256": digest})


def test_failures_in_a_row_end_the_search_and_the_next_start_has_another_chance(
    make_search: Callable[..., Search],
) -> None:
    """Good trials in between break the row; they are kept."""
    failing = {1, 2, 4, 5, 6}
    started: list[int] = []

    def fail(event: Event) -> None:
        if isinstance(event, TrialStarted):
            started.append(event.trial.number)
            if event.trial.number in failing:
                refuse(search.record, event.trial)

    settings = {
        "stage2.epochs": 0,
        "stage1.epochs": 1,
        "search.stage1_trials": 10,
        "search.failures_in_a_row": 3,
    }
    search = make_search(settings, fail)
    says = r"stage 1: 3 trials failed in a row, so the search is given up; 2 finished well and are kept\..* 5 x refused"
    with pytest.raises(NoWinnerError, match=says) as caught:
        search.run()
    assert caught.value.exit_code == 4
    assert started == list(range(7))
    trials = search.record.trials(1)
    assert [trial.state for trial in trials] == [
        "failed" if trial.number in failing else "complete" for trial in trials
    ]
    assert all((trial.cause, trial.failures) == ("refused", []) for trial in trials if trial.number in failing)
    good = [trial for trial in trials if trial.state == "complete"]
    assert all(trial.checkpoint and search.record.at(trial.checkpoint).exists() for trial in good)

    # Two more in a row are not three, whatever came before this start.
    failing, started = {7, 8}, []
    search = make_search(settings, fail)
    assert search.run().number in (0, 3, 9)
    assert started == [7, 8, 9]
    assert essence([trial for trial in search.record.trials(1) if trial.number in (0, 3)]) == essence(good)


# The keeper alone: what it writes, without Ray.


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord(storage_path(tmp_path / "run"))


def keep(
    record: RunRecord, *trials: TrialRecord, stage: Literal[1, 2] = 1, choices: int = 1, **search: Any
) -> tuple[RecordCallback, list[Event], list[tuple[int, bool]]]:
    """A keeper, the events that it tells, and what it says of trials whose processes died."""
    events: list[Event] = []
    settled: list[tuple[int, bool]] = []
    config = RunConfig(search=SearchConfig(**search))
    kept = RecordCallback(
        record,
        stage,
        trials=list(trials),
        config=config,
        protocol="mosi",
        seed_of=lambda params, number: 100 + number,
        epochs=3,
        choices=choices,
        config_of=lambda trial: config,
        tell=events.append,
    )
    kept.settle = lambda number, again: settled.append((number, again))
    return kept, events, settled


def tunes(number: int, error: str | None = None, folder: Path | None = None) -> Any:
    """A trial as Tune has it."""
    trial = SimpleNamespace(config={"number": number}, error_file=None, status="RUNNING")
    if error is not None:
        assert folder is not None
        path = folder / "error.txt"
        path.write_text(error)
        trial.error_file = str(path)
    return trial


def result(*values: float, done: bool = False, **more: Any) -> dict[str, Any]:
    curve = [
        {"epoch": epoch, "valid/pairwise_acc": value, "seconds": 2.0, "utterance_passes": 3.0}
        for epoch, value in enumerate(values, 1)
    ]
    return {"curve": curve, "notes": [], "checkpoint_sha256": "ab" * 32, "done": done, **more}


def files(record: RunRecord, trial: TrialRecord) -> dict[str, str]:
    folder = record.trial_folder(trial).local
    assert folder is not None
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.safetensors"))}


def write(record: RunRecord, trial: TrialRecord, **contents: str) -> None:
    for name, content in contents.items():
        (record.attempt_folder(trial) / f"{name}.safetensors").write_text(content)


def test_a_launch_is_on_record_before_its_process_starts(record: RunRecord) -> None:
    kept, events, _ = keep(record)
    config = kept.launch(3, {"stage1.head_lr": 1e-3})
    (trial,) = record.trials(1)
    assert (trial.number, trial.attempt, trial.state, trial.seed) == (3, 1, "running", 103)
    assert trial.params == {"stage1.head_lr": 1e-3}
    assert events == [TrialStarted(trial)]
    assert config["number"] == 3
    assert config["job"]["folder"] == record.attempt_folder(trial).uri
    assert (config["job"]["seed"], config["job"]["stage"]) == (103, 1)
    assert kept.unfinished == 1


def test_a_new_attempt_goes_on_from_copies(record: RunRecord) -> None:
    """A process of the old one that still lives writes to its own folder, by renames, and to no copy."""
    kept, _, _ = keep(record)
    kept.launch(0, {})
    (trial,) = record.trials(1)
    write(record, trial, last="2", previous="1", best="2")
    kept.launch(0, {})
    (again,) = record.trials(1)
    assert (again.attempt, again.started, again.seed) == (2, trial.started, trial.seed)
    write(record, trial, last="3", previous="2", best="3")
    assert files(record, trial) == {
        **{f"attempt-1/{name}.safetensors": content for name, content in (("best", "3"), ("last", "3"))},
        "attempt-1/previous.safetensors": "2",
        **{f"attempt-2/{name}.safetensors": content for name, content in (("best", "2"), ("last", "2"))},
        "attempt-2/previous.safetensors": "1",
    }


def test_deaths_count_over_all_starts(record: RunRecord, tmp_path: Path) -> None:
    """Of a trial that died twice under one driver, the next driver sees one more, and no other."""
    text = "Traceback\nray.exceptions.ActorDiedError: The actor died unexpectedly\n"
    for start in range(RETRIES + 1):
        kept, events, settled = keep(record, *record.trials(1))
        kept.launch(0, {})
        kept.on_trial_error(0, [], tunes(0, text, tmp_path))
        last = start == RETRIES
        assert settled == [(0, not last)]
        assert isinstance(events[-1], TrialEnded if last else TrialBroke)
        assert kept.failing == int(last)
    (trial,) = record.trials(1)
    assert (trial.state, trial.cause) == ("failed", "process died")
    assert trial.error == "ray.exceptions.ActorDiedError: The actor died unexpectedly"
    assert [failure["attempt"] for failure in trial.failures] == [1, 2, 3]


def test_an_end_without_words_is_the_death_of_the_process(record: RunRecord) -> None:
    kept, _, _ = keep(record)
    kept.launch(0, {})
    kept.on_trial_error(0, [], tunes(0))
    (trial,) = record.trials(1)
    (failure,) = trial.failures
    assert (failure["cause"], failure["error"]) == ("process died", "the trial's process died")


def test_an_epoch_is_on_record_before_the_trial_goes_on(record: RunRecord) -> None:
    kept, events, _ = keep(record)
    kept.launch(0, {})
    kept.on_trial_result(0, [], tunes(0), result(0.5, 0.6, notes=["odd"]))
    kept.on_trial_result(0, [], tunes(0), result(0.5, 0.6, 0.7, notes=["odd", "odder"]))
    (trial,) = record.trials(1)
    assert (trial.epoch, trial.seconds, trial.utterance_passes, trial.state) == (3, 6.0, 9.0, "running")
    assert trial.notes == ["odd", "odder"]
    assert (trial.checkpoint, trial.checkpoint_sha256) == ("stage1/trials/0000/attempt-1/best.safetensors", "ab" * 32)
    assert [type(event) for event in events] == [TrialStarted, EpochFinished, EpochFinished]


@pytest.mark.parametrize(
    ("last", "state", "cause"),
    [
        (result(0.5, 0.6, 0.7, done=True), "complete", None),
        (result(0.5, 0.6, done=True), "pruned", None),
        (result(0.5, done=True, failure="NaN", state="diverged", error="DivergedError"), "diverged", "not finite"),
        (result(done=True, failure="why", state="failed", error="DamagedError"), "failed", "damaged file"),
        (result(done=True, failure="why", state="failed", error="ClusterError"), "failed", "refused"),
    ],
)
def test_ends(record: RunRecord, last: dict[str, Any], state: str, cause: str | None) -> None:
    kept, events, settled = keep(record)
    kept.launch(0, {})
    kept.on_trial_result(0, [], tunes(0), last)
    (trial,) = record.trials(1)
    assert (trial.state, trial.cause, trial.error) == (state, cause, last.get("failure"))
    assert trial.ended
    assert trial.failures == []
    assert isinstance(events[-1], TrialEnded)
    assert kept.failing == int(cause is not None)
    assert (settled, kept.unfinished) == ([], 0)


def test_only_the_best_weights_of_those_that_may_be_chosen_stay(record: RunRecord) -> None:
    """Two may be: the third best loses what it has, the retried one its older attempts, the running one nothing."""
    kept, _, _ = keep(record, choices=2)
    values = {0: 0.5, 1: 0.6, 2: 0.4, 3: 0.7}
    kept.launch(9, {})
    write(record, record.trial(1, 9), last="9", previous="9", best="9")
    kept.on_trial_result(0, [], tunes(9), result(0.99))
    for number, value in values.items():
        kept.launch(number, {})
        write(record, record.trial(1, number), last="l", previous="p", best="b")
        if number == 1:
            kept.launch(number, {})
        kept.on_trial_result(0, [], tunes(number), result(0.1, 0.1, value, done=True))
    trials = {trial.number: trial for trial in record.trials(1)}
    assert {number: list(files(record, trial)) for number, trial in trials.items()} == {
        0: [],
        1: ["attempt-2/best.safetensors"],
        2: [],
        3: ["attempt-1/best.safetensors"],
        9: [f"attempt-1/{name}.safetensors" for name in ("best", "last", "previous")],
    }
    assert {number for number, trial in trials.items() if trial.checkpoint} == {1, 3, 9}
    assert all((trial.checkpoint is None) == (trial.checkpoint_sha256 is None) for trial in trials.values())
    assert not record.trial_folder(trials[0]).exists()


def test_the_last_weights_stay_where_stage_2_starts_from_them(record: RunRecord) -> None:
    kept, _, _ = keep(record)
    kept._keep = ("best", "last")
    kept.launch(0, {})
    write(record, record.trial(1, 0), last="l", previous="p", best="b")
    kept.on_trial_result(0, [], tunes(0), result(0.1, 0.2, 0.3, done=True))
    assert list(files(record, record.trial(1, 0))) == ["attempt-1/best.safetensors", "attempt-1/last.safetensors"]


def test_finalists_on_record_keep_their_weights(record: RunRecord) -> None:
    """Those of an extended search: others outrank them now, and Stage 2 still starts from them."""
    kept, _, _ = keep(record)
    kept.launch(0, {})
    kept.on_trial_result(0, [], tunes(0), result(0.1, 0.1, 0.1, done=True))
    trial = record.trial(1, 0)
    trial.checkpoint = "finalists/0000/model.safetensors"
    record.write_trial(trial)
    kept, _, _ = keep(record, trial)
    kept.launch(1, {})
    kept.on_trial_result(0, [], tunes(1), result(0.9, 0.9, 0.9, done=True))
    assert record.trial(1, 0).checkpoint == "finalists/0000/model.safetensors"


def test_silence_is_measured_from_the_start_of_the_process_and_of_each_epoch(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for a place in the cluster is no silence, and a process is killed once."""
    now, killed = [0.0], []
    monkeypatch.setattr(callback, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(callback.ray, "kill", killed.append)
    kept, _, _ = keep(record, hang_minutes=1)
    kept.launch(0, {})
    trial = tunes(0)
    trial.temporary_state = SimpleNamespace(ray_actor=None)
    trial.status = "PENDING"
    kept.on_step_end(0, [trial])
    now[0] = 1000.0
    kept.on_step_end(0, [trial])
    trial.temporary_state.ray_actor = "its process"
    kept.on_trial_start(0, [trial], trial)
    trial.status = "RUNNING"
    for step in (59.0, 59.0, 2.0):
        kept.on_step_end(0, [trial])
        assert killed == []
        if step == 59.0:
            now[0] += step
            kept.on_trial_result(0, [trial], trial, result(0.5))
    now[0] += 61.0
    kept.on_step_end(0, [trial])
    kept.on_step_end(0, [trial])
    assert killed == ["its process"]
    kept.on_trial_error(0, [trial], tunes(0))
    assert record.trial(1, 0).failures[0]["cause"] == "hung"
    # The next process has its own time.
    kept.launch(0, {})
    ended, trial.status = trial.status, "ERROR"
    again = tunes(0)
    again.temporary_state = SimpleNamespace(ray_actor="another process")
    again.status = "PENDING"
    kept.on_step_end(0, [trial, again])
    kept.on_trial_start(0, [trial, again], again)
    again.status = ended
    now[0] += 59.0
    kept.on_step_end(0, [trial, again])
    assert killed == ["its process"]
    now[0] += 2.0
    kept.on_step_end(0, [trial, again])
    assert killed == ["its process", "another process"]


def test_silence_before_the_start_counts_where_there_is_a_process(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was another trial's, and has not taken this one yet."""
    now, killed = [0.0], []
    monkeypatch.setattr(callback, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(callback.ray, "kill", killed.append)
    kept, _, _ = keep(record, hang_minutes=1)
    kept.launch(0, {})
    trial = tunes(0)
    trial.temporary_state, trial.status = SimpleNamespace(ray_actor="a process"), "PENDING"
    for seconds, dead in ((1000.0, 0), (59.0, 0), (2.0, 1)):
        now[0] += seconds
        kept.on_step_end(0, [trial])
        assert len(killed) == dead
