from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import cpu_clock
import end_to_end
import naive_trial
import pytest
import torch
from cpu_clock import CpuClock
from end_to_end import Parts, Stage

from grcf_ray.bench.step import new_loop
from grcf_ray.config import build_config
from grcf_ray.errors import ConfigError, GrcfError
from grcf_ray.metrics import split_metrics
from grcf_ray.search.record import TrialRecord
from grcf_ray.train.stage import predict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from grcf_ray.bench.setup import Setup
    from grcf_ray.data.features import Features

CPU = torch.device("cpu")
BURN = """
import time
while time.process_time() < {seconds}:
    sum(range(10_000))
"""


def sample(**changes: float) -> Parts:
    values = {"process": 8.0, "building": 1.0, "step": 0.5, "validation": 2.0, "saving": 0.25, "steps": 4.5, **changes}
    return Parts(**values)


def test_rows_of_known_parts() -> None:
    first = Stage(
        stage=1, trials=14, slots=2, whole=42, ran=20, samples=(sample(), sample(process=10.0, step=0.7), sample())
    )
    second = Stage(stage=2, trials=3, slots=3, whole=12, ran=12, samples=(sample(saving=0.75),))
    assert first.parts.process == pytest.approx(26 / 3)
    epoch_1, epoch_2 = 4.5 * 1.7 / 3 + 2.25, 4.5 * 0.5 + 2.75
    every = 14 * (26 / 3 + 1) + 42 * epoch_1 + 3 * 9 + 12 * epoch_2
    stopped = every - 22 * epoch_1
    kept = stopped - 12 * 26 / 3
    rows = end_to_end.variant_rows([first, second], 40.0)
    assert [row["seconds"] for row in rows] == pytest.approx([every, stopped, kept, 40.0])
    assert [row["ratio"] for row in rows] == pytest.approx([every / 40, stopped / 40, kept / 40, 1.0])
    assert [row["epochs"] for row in rows] == [54, 32, 32, 32]
    assert [row["processes"] for row in rows] == [17, 17, 5, 5]
    assert {row["trials"] for row in rows} == {17}


def test_sampled_trials_are_spread_evenly() -> None:
    trials = [TrialRecord(number=n, stage=1, attempt=1, params={}, seed=n, state="complete") for n in range(14)]
    assert [trial.number for trial in end_to_end.spread(trials, 3)] == [0, 6, 13]
    assert [trial.number for trial in end_to_end.spread(trials[:2], 3)] == [0, 1]
    assert [trial.number for trial in end_to_end.spread(trials, 1)] == [0]


WAIT = "subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"
LEAVE = "subprocess.Popen([sys.executable, '-c', sys.argv[1]], close_fds=False); time.sleep(0.3)"


@pytest.mark.parametrize(
    "parent",
    [f"signal.signal(signal.SIGCHLD, signal.SIG_IGN); {WAIT}", WAIT, LEAVE],
    ids=["ignores", "waits", "leaves"],
)
def test_time_of_processes_that_have_ended(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grandchild's: its parent waits for it, ignores its end like Ray's raylet, or leaves it an orphan."""
    monkeypatch.setattr(cpu_clock, "INTERVAL_S", 0.02)
    words = [sys.executable, "-c", f"import signal, subprocess, sys, time; {parent}", BURN.format(seconds=0.8)]
    read, write = os.pipe()
    with CpuClock() as clock:
        subprocess.run(words, check=True, pass_fds=(write,))
        os.close(write)
        # The orphan keeps the pipe open to its end.
        os.read(read, 1)
    os.close(read)
    # Python's own start comes on top.
    assert 0.7 < clock.shares["daemons"] < 1.8
    assert clock.unseen < 1
    assert clock.seconds == sum(clock.shares.values())


def test_time_before_does_not_count() -> None:
    words = [sys.executable, "-u", "-c", f"{BURN.format(seconds=0.5)}\nprint()\ninput()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with CpuClock() as clock:
            begun = time.process_time()
            while time.process_time() - begun < 0.3:
                sum(range(10_000))
        process.communicate("\n")
    assert clock.shares["daemons"] < 0.2
    assert 0.2 < clock.shares["driver"] < 0.6


def test_naive_validation_has_the_same_metrics(
    tiny_features: Features, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = {"train.precision": "float64", "features.max_tokens": 50, "pairs.micro_batch_tokens": 150}
    config = build_config({"model.backbone": str(tiny_backbone), "model.text_vector": "mean", **exact})
    sizes = []
    loop = new_loop(tiny_features, config, CPU, {})
    encode = loop.model.encode
    monkeypatch.setattr(
        loop.model, "encode", lambda batch: (sizes.append(tuple(batch.token_BL.shape)), encode(batch))[1]
    )
    metrics = naive_trial.validate(loop, 50)
    n = len(tiny_features.valid)
    assert sizes == [(3, 50)] * (n // 3) + [(n % 3, 50)] * (n % 3 > 0)
    assert loop.model.training
    score_N = predict(loop.model, tiny_features, tiny_features.valid, device=CPU, token_budget=1024)
    assert metrics == pytest.approx(
        split_metrics(score_N, tiny_features.valid.label_N, protocol="mosi", limit=tiny_features.half_range)
    )


def test_a_process_that_fails() -> None:
    with pytest.raises(GrcfError, match="exit code 3"):
        end_to_end.run_process([sys.executable, "-c", "raise SystemExit(3)"], {})


def test_a_process_is_measured_to_its_end() -> None:
    at_exit = f"import atexit\n@atexit.register\ndef _():\n    exec({BURN.format(seconds=0.5)!r})\nprint('said')"
    answer, seconds = end_to_end.run_process([sys.executable, "-c", at_exit], {})
    assert answer == "said\n"
    assert 0.5 <= seconds < 1.5


def test_a_naive_trial_imports_no_ray() -> None:
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='imported'); assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, naive_trial.__file__], check=True)


def test_only_processes_of_this_machine(setup_of: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="gpus_per_worker=0"):
        end_to_end.end_to_end_tables(setup_of({"search.gpus_per_worker": 1.0}))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(ConfigError, match="RAY_ADDRESS = head:6379"):
        end_to_end.end_to_end_tables(setup_of())


@pytest.mark.integration
@pytest.mark.usefixtures("ray_session")
def test_time_of_a_worker_that_was_killed() -> None:
    import ray

    @ray.remote
    class Burner:
        def begin(self) -> None:
            """Return once Ray has started the process."""

        def burn(self) -> None:
            exec(BURN.format(seconds=time.process_time() + 1))

    burner = Burner.remote()
    ray.get(burner.begin.remote())
    with CpuClock() as clock:
        ray.get(burner.burn.remote())
        ray.kill(burner)
        time.sleep(2 * cpu_clock.INTERVAL_S)
    assert 0.7 < clock.shares["workers"] < 5


@pytest.mark.integration
@pytest.mark.usefixtures("ray_session")
def test_tables_of_a_whole_search(
    setup_of: Callable[..., Setup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_to_end, "SAMPLED", 1)
    settings = {"search.stage1_trials": 4, "search.stage2_trials": 2, "stage1.epochs": 2, "stage2.epochs": 1}
    settings["search.concurrent"] = 1
    whole, parts = end_to_end.end_to_end_tables(setup_of(settings))
    every, stopped, kept, measured = whole.rows
    assert every["trials"] == every["processes"] == 4 + 2
    assert every["epochs"] == 2 * 4 + 2
    assert every["epochs"] >= stopped["epochs"] == kept["epochs"] == measured["epochs"]
    assert kept["processes"] < 6
    assert every["seconds"] >= stopped["seconds"] > kept["seconds"] > 0
    assert measured["seconds"] > 0
    assert measured["ratio"] == 1
    assert [(row["name"], row["sampled"]) for row in parts.rows] == [("1", 1), ("2", 1)]
    assert all(row["process"] > row["step"] > 0 and row["steps"] == 3 for row in parts.rows)
    assert not list(tmp_path.glob("naive-*"))
    assert json.dumps([whole.as_dict(), parts.as_dict()])
