"""One start of a search by its command: time budgets, what counts as finished, and what is noted of test."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import ClusterError
from grcf_ray.search import stopping, winner
from grcf_ray.search.events import Event, RetrainingsStarted, SearchFinished, TrialEnded, TrialStarted
from grcf_ray.search.lease import is_held
from grcf_ray.search.preflight import Capacity, Room
from grcf_ray.search.record import RunRecord
from grcf_ray.search.run_lookup import grown
from grcf_ray.search.session import Session
from grcf_ray.search.space import load_space
from grcf_ray.search.stopping import STAGE_SHARES, Stop
from grcf_ray.search.winner import versions
from grcf_ray.storage import storage_path
from grcf_ray.train import precision
from tests.search.conftest import Run, copy_recorded, listen

if TYPE_CHECKING:
    from tests.conftest import Recorded

ROOM = Capacity(nodes=1, cpus=1, gpus=0, concurrent=1, most=1, notes=(), fitting=Room({}))


@pytest.fixture
def words(tiny_argv: list[Any]) -> list[Any]:
    """A search of three trials of one epoch in each stage."""
    argv = [*tiny_argv, "--name", "n", "--stage1-trials", 3, "--stage2-trials", 3, "--concurrent", 1, "--finalists", 1]
    for setting in ("stage1.epochs=1", "stage2.epochs=1", "search.ridge_baseline=false"):
        argv += ["--set", setting]
    return argv


def test_when_its_time_is_up_a_search_has_an_answer_and_goes_on(
    run: Run, ray_session: None, words: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the time is up after two trials of Stage 1, most of it after one of Stage 2."""
    now = [0.0]
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def take_time(event: Event) -> None:
        if isinstance(event, TrialEnded):
            now[0] = {(1, 1): 3600 * STAGE_SHARES[1], (2, 0): 3600 * STAGE_SHARES[2]}.get(
                (event.trial.stage, event.trial.number), now[0]
            )

    listen(monkeypatch, take_time)
    code, out, err = run(*words, "--time-budget", "1h")
    assert code == 0, err
    folder = tmp_path / "runs" / "n"
    described = json.loads((folder / "run.json").read_text())
    assert (described["state"], described["cut"]) == ("time is up", [1, 2])
    assert set(described["starts"][0]["stage_ends"]) == {"1", "2"}
    assert described["winner"] == "stage2/0"
    for stage, left_out in ((1, 1), (2, 2)):
        (line,) = [line for line in err.splitlines() if line.startswith(f"Stage {stage} ended by the time budget")]
        assert f"{left_out} of 3 trials unfinished" in line
    last = out.rstrip().splitlines()
    (told,) = [line for line in last if line.startswith("The time was up before every trial had ended. To resume: ")]
    assert told.endswith(described["starts"][0]["command"])
    record = RunRecord(storage_path(folder))
    assert [t.number for t in record.trials(1) if t.finished] == [0, 1]
    assert [t.number for t in record.trials(2) if t.finished] == [0]
    handed = described["finalists"]
    measured = json.loads((folder / "best" / "metrics.json").read_text())
    assert measured["trial"] == "stage2/0"

    code, out, err = run(*words, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["state"], summary["test_seen_before_selection_ended"]) == ("finished", True)
    described = json.loads((folder / "run.json").read_text())
    assert (described["state"], described["test_seen"], len(described["starts"])) == ("finished", True, 2)
    assert (described["cut"], "stage_ends" in described["starts"][1]) == ([], False)
    for stage in (1, 2):
        assert [(t.number, t.state) for t in record.trials(stage)] == [(k, "complete") for k in range(3)]
    # The trials of Stage 2 name finalists of this list, so it may only grow.
    assert described["finalists"][: len(handed)] == handed
    assert summary["winner"]["trial"] == f"stage2/{record.ranked(2)[0].number}"
    # Measured again, since others are among the best.
    reads = json.loads((folder / "best" / "provenance.json").read_text())["test_reads"]
    best = [trial.name for trial in record.ranked(2)[:3]]
    assert [read["models"] for read in reads] == [["stage2/0"], best]
    assert summary["ensemble"]["members"] == best


def test_the_seeds_of_a_command(run: Run, recorded: Recorded, tmp_path: Path) -> None:
    """After a search without; the same again trains nothing, and fewer are no reason to start."""
    argv = copy_recorded(recorded, tmp_path)
    code, out, err = run(*argv, "--seeds", 1)
    assert code == 0, err
    assert "Retraining the winner and the starting point under 1 fresh seeds" in err
    assert err.count("Winner: trial") == 1
    seeds = json.loads(out)["seeds"]
    assert (seeds["seeds"], len(seeds["models"])) == (1, 2)
    folder = tmp_path / "recorded"
    card = (folder / "best" / "README.md").read_text()
    assert "### Under 1 fresh seeds" in card
    assert f"{seeds['arms']['winner']['test']['mae']['mean']:.4f}" in card
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for more in (["--seeds", 1], []):
        code, out, err = run(*argv, *more)
        assert (code, json.loads(out)["seeds"]) == (0, seeds)
        assert err == f"{folder} is finished; this is its result\n"
    code, out, err = run(*(word for word in argv if word != "--json"))
    assert "under 1 fresh seeds" in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    # To look again is a look again, and no model was chosen by it.
    reads = json.loads((folder / "best" / "provenance.json").read_text())["test_reads"]
    assert [read["command"] for read in reads] == ["search", "search --seeds"]
    assert "test_seen" not in json.loads((folder / "run.json").read_text())


def test_force_takes_another_name(run: Run, recorded: Recorded, ray_session: None) -> None:
    code, _, err = run(*recorded.argv, "--seed", 7, "--force", "--dry-run")
    assert code == 0
    assert err.rstrip().endswith("recorded-2")
    code, _, err = run(*recorded.argv, "--seed", 7, "--dry-run")
    assert code == 2
    assert "--force" in err and "recorded-2" in err


@pytest.fixture
def session(recorded: Recorded, tiny_space: Path, tmp_path: Path) -> Session:
    """The recorded run, asked for again."""
    shutil.copytree(recorded.folder, tmp_path / "run")
    return Session(
        record=RunRecord(storage_path(tmp_path / "run")),
        space=load_space(tiny_space).with_settings({"search.concurrent": 1}),
        store=DatasetStore.open(recorded.data),
        seeds=0,
        reopen=False,
        time_budget=None,
        command="python -m grcf_ray.search",
        write_card=lambda record, info: None,
    )


def test_what_counts_as_finished(session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def again(settings: dict[str, Any] | None = None, **changes: Any) -> bool:
        space = session.space.with_settings(settings or {})
        return dataclasses.replace(session, space=space, **changes).finished()

    assert again()
    assert again(time_budget=60.0)
    assert not again(seeds=1)
    assert not again(reopen=True)
    assert not again({"search.stage1_trials": 7})
    assert not again({"search.stage2_trials": 6})
    session.record.update_run(seeds=3)
    assert again(), "nobody asks for the retrainings, which are gone"
    assert not again(seeds=3)
    for state in ("running", "interrupted", "failed", "time is up"):
        session.record.update_run(state=state)
        assert not again()
    assert not again(record=RunRecord(storage_path(tmp_path / "nothing")))
    session.record.update_run(state="finished")
    best = tmp_path / "run" / "best"
    (best / "model.safetensors").unlink()
    assert not again()
    assert str(best) in capsys.readouterr().err
    shutil.rmtree(best)
    assert not again()
    assert again(measures=False), "its trials are all there"
    assert not again({"search.stage2_trials": 6}, measures=False)
    assert winner.test_was_read(session.record)


def test_a_new_run_is_of_the_precision_of_its_nodes(
    session: Session, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `check` finds out is what run.json and all trials get; a run that exists keeps what it has."""
    space = session.space.with_settings({"train.precision": "auto"})
    for record, able, resolved in (
        (RunRecord(storage_path(tmp_path / "new")), True, "bfloat16"),
        (RunRecord(storage_path(tmp_path / "new")), False, "float32"),
        (session.record, True, "float32"),
    ):
        monkeypatch.setattr(precision, "native_bfloat16", lambda able=able, **_: able)
        started = dataclasses.replace(session, record=record, space=grown(record, space))
        started.check()
        assert started.config.train.precision == resolved
        assert started.space.as_dict()["fixed"]["train.precision"] == resolved


def test_a_full_cache_is_told_from_a_full_run(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("GRCF_CACHE", "/cache/of/this/test")
    monkeypatch.setattr("grcf_ray.search.session.prepare_features", full)
    with pytest.raises(ClusterError, match=r"/cache/of/this/test.*No space left.*GRCF_CACHE"):
        session._search(ROOM, Stop())


def test_the_winner_is_saved_and_measured_again_from_the_record(
    run: Run, recorded: Recorded, ray_session: None, tmp_path: Path
) -> None:
    """The same command, with best/ gone: the same figures, and both looks at test on record; then without the way."""
    folder = Path(shutil.copytree(recorded.folder, tmp_path / "recorded"))
    argv = list(recorded.argv)
    argv[argv.index("--storage") + 1] = str(tmp_path)
    shutil.rmtree(folder / "best")
    code, out, err = run(*argv)
    assert code == 0, err
    assert json.loads(out)["test"] == json.loads(recorded.out)["test"]
    reads = json.loads((folder / "best" / "provenance.json").read_text())["test_reads"]
    assert [read["command"] for read in reads] == ["search, best/ lost since", "search"]
    assert "test_seen" not in json.loads((folder / "run.json").read_text())

    trial = json.loads((folder / "run.json").read_text())["winner"].replace("/", "/trials/000")
    checkpoint = json.loads((folder / f"{trial}.json").read_text())["checkpoint"]
    shutil.rmtree(folder / "best")
    (folder / checkpoint).unlink()
    code, out, err = run(*argv)
    assert (code, out) == (3, "")
    assert f"error: {folder / checkpoint}: no such checkpoint" in err


def test_trials_after_the_look_at_test_are_noted_but_no_retrainings(session: Session) -> None:
    trial = session.record.trials(2)[0]
    for events in ([TrialEnded(trial)], [RetrainingsStarted("anew", {1: 6, 2: 6}), TrialStarted(trial)]):
        note = session._note_trials_after_test()
        for event in events:
            note(event)
        assert "test_seen" not in session.record.read_run()
    session._note_trials_after_test()(TrialStarted(trial))
    assert session.record.read_run()["test_seen"] is True


def test_what_follows_a_search_is_still_the_drivers(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page and the charts of the result; of a search that ends early, nothing follows."""
    held: list[bool | None] = []

    def note(event: Event) -> None:
        assert isinstance(event, SearchFinished)
        held.append(is_held(session.record.place))

    session = dataclasses.replace(session, listeners=(note,))
    monkeypatch.setattr(Session, "_search", lambda *_: None)
    session.run(ROOM)
    assert held == [True]
    assert is_held(session.record.place) is False

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "_search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.run(ROOM)
    assert held == [True]


def test_a_state_that_cannot_be_written_hides_no_error(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunRecord, "update_run", fail)
    session._leave("Interrupted")
    assert capsys.readouterr().err == (
        "Interrupted; every finished epoch is kept. To resume: python -m grcf_ray.search\n"
    )


def test_the_commit_is_on_record_where_there_is_one(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout's own, not that of a repository which an installed package happens to lie in."""
    noted = json.loads((recorded.folder / "run.json").read_text())["versions"]
    git = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a"}
    for name, value in git.items():
        monkeypatch.setenv(name, value)
    module = tmp_path / "checkout" / "grcf_ray" / "search" / "winner.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(winner, "__file__", str(module))
    assert versions() == {name: value for name, value in noted.items() if name != "commit"}
    for words in ("init", "add .", "commit -m first"):
        subprocess.run(["git", *words.split()], cwd=tmp_path / "checkout", check=True, capture_output=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=module.parent, check=True, capture_output=True, text=True)
    assert versions()["commit"] == head.stdout.strip()
    module.write_text("changed")
    assert versions()["commit"] == f"{head.stdout.strip()}-dirty"


def test_a_search_whose_ray_is_gone_says_how_to_go_on(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    session._lose_cluster("this node's raylet is gone")
    assert codes == [5]
    assert session.record.read_run()["state"] == "interrupted"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: this node's raylet is gone; ") and line.endswith(f"To resume: {session.command}")
