"""Whatever is killed, whenever: the same command goes on, and the record shows that nothing was lost or done twice.

Moments and victims are chosen by a seed. After each kill the record is compared with what it was before; at the end the
search has to be the one that nothing interrupted: parameters, curves, winner and weights, bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import command
from processes import kill_marked
from repetition import essence

from grcf_ray.cli.search import app
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from tests.conftest import Recorded

DRIVER = Path(__file__).with_name("driver.py")
ROOT = DRIVER.parents[2]
BUDGETS = {1: 6, 2: 5}
KILLS, STARTS = 30, 12
"""Kills in all, and starts of one search at most before nothing more is killed."""
Shot = tuple[str, int, str]
"""Moment, count and victim; see `driver`."""
HANG_S = 300
"""A start that takes longer counts as hung; an undisturbed one takes half a minute."""

EVENTS = ("StageStarted", "TrialStarted", "EpochFinished", "TrialEnded")
WRITES = ("trial", "run.json", "trial.json", "model.safetensors", "trials.jsonl", "provenance.json", "metrics.json")


def draw_shots(rng: random.Random, workers: int) -> list[Shot]:
    """The shots of one start: one at the driver or all of it, before that perhaps one at a trial's process."""
    moments = [(f"{event} {stage}", rng.randint(1, 4)) for event in EVENTS for stage in (1, 2)]
    moments += [(f"{when} {name}", rng.randint(1, 3)) for name in WRITES for when in ("before", "after")]
    moments += [("before trial", rng.randint(1, 12)), ("after trial", rng.randint(1, 12)), ("StageEnded 1", 1)]
    moments += [("StageEnded 2", 1), ("WinnerFixed 2", 1)]
    shots = [(*rng.choice(moments), rng.choice(("driver", "driver", "driver", "raylet", "machine")))]
    if rng.random() < 0.6:
        victim = "worker" if workers > 1 and rng.random() < 0.5 else "trial"
        shots.append((f"EpochFinished {rng.choice((1, 2))}", rng.randint(1, 4), victim))
    return shots


def start(shots: list[Shot], argv: list[str], victims: Counter[str]) -> int:
    """One start of the command; its exit code. Counts the victims, and leaves no process behind."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, "GRCF_CHAOS": mark, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, str(DRIVER), json.dumps(shots), "--", *argv]
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=HANG_S
        )
    finally:
        # What outlived its driver must not live on, as it would not when a machine has gone.
        kill_marked(mark)
    shot = re.findall("^SHOT (.*)$", done.stderr, re.MULTILINE)
    victims.update(shot)
    assert shot or done.returncode == 0, f"the search failed by itself:\n{done.stderr[-3000:]}"
    return done.returncode


def trials(run: Path) -> dict[tuple[int, int], TrialRecord]:
    """The recorded trials by stage and number."""
    record = RunRecord(storage_path(run))
    return {(stage, trial.number): trial for stage in (1, 2) for trial in record.trials(stage)}


def compare(before: dict[tuple[int, int], TrialRecord], run: Path) -> None:
    """Hold the record after a start against the one before it."""
    now = trials(run)
    for key, old in before.items():
        new = now[key]
        assert (new.params, new.seed) == (old.params, old.seed)
        if old.finished:
            assert essence([new]) == essence([old])
            assert (new.attempt, new.ended) == (old.attempt, old.ended), "it was repeated"
        else:
            # An epoch that is on record stays there, and is what it was.
            assert essence([new])[0][-1][: old.epoch] == essence([old])[0][-1]
    for stage, budget in BUDGETS.items():
        numbers = [number for at, number in now if at == stage]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) <= budget


def weights(run: Path) -> bytes:
    return (run / "best" / "model.safetensors").read_bytes()


def compare_whole(run: Path, reference: Path) -> None:
    """Hold a finished run against one that nothing disturbed."""
    disturbed, expected = trials(run), trials(reference)
    assert disturbed.keys() == expected.keys() and essence(disturbed.values()) == essence(expected.values())
    described, undisturbed = (json.loads((folder / "run.json").read_text()) for folder in (run, reference))
    assert described["winner"] == undisturbed["winner"]
    assert described["finalists"] == undisturbed["finalists"]
    assert weights(run) == weights(reference)


def arguments(recorded: Recorded, storage: Path, workers: int) -> list[str]:
    """The recorded search's, in another place."""
    argv = [word for word in recorded.argv if word != "--json"]
    argv[argv.index("--storage") + 1] = str(storage)
    return [*argv, "--workers", str(workers)] if workers > 1 else argv


@pytest.mark.cluster
def test_a_killed_search_resumes_as_if_nothing_had_happened(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial is killed in Stage 1, and everything at once in Stage 2. The next start is this process's."""
    shots: list[Shot] = [("EpochFinished 1", 3, "trial"), ("EpochFinished 2", 3, "machine")]
    argv, run, victims = arguments(recorded, tmp_path, 1), tmp_path / "recorded", Counter[str]()
    start(shots, argv, victims)
    assert victims == {"trial": 1, "machine": 1}
    before = trials(run)
    assert before[2, 0].curve
    code, _, err = command(app, capsys)(*argv)
    assert code == 0, err
    compare(before, run)
    compare_whole(run, recorded.folder)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workers", [1, 2])
def test_chaos(recorded: Recorded, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    """At least `KILLS` kills; `GRCF_CHAOS_SEED` chooses which."""
    seed = int(os.environ.get("GRCF_CHAOS_SEED", "0"))
    rng, reference = random.Random(f"{seed}/{workers}"), recorded.folder
    if workers > 1:
        assert start([], arguments(recorded, tmp_path / "undisturbed", workers), Counter()) == 0
        reference = tmp_path / "undisturbed" / "recorded"
    storage, victims = tmp_path / "runs", Counter[str]()
    argv = arguments(recorded, storage, workers)
    while victims.total() < KILLS:
        shutil.rmtree(storage, ignore_errors=True)
        run = storage / "recorded"
        for shots in (*(draw_shots(rng, workers) for _ in range(STARTS)), []):
            before = trials(run)
            code = start(shots, argv, victims)
            compare(before, run)
            if code == 0:
                break
        assert code == 0
        compare_whole(run, reference)
    with capsys.disabled():
        print(f"\nchaos, seed {seed}, {workers} worker(s): {dict(victims)}")
    # A victim that is not found would be the driver.
    assert {"driver", "trial", *(["worker"] if workers > 1 else [])} <= victims.keys()
