"""One rank or two: the same gradients, the same metrics, one checkpoint."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from same_training import TIMES, assert_same_checkpoints, best_in, checkpoint_in, files_of, relative, timeless
from torch import Tensor

from grcf_ray.config import flatten
from grcf_ray.data.features import Features

if TYPE_CHECKING:
    from tests.train.conftest import NewConfig

RANKS = Path(__file__).with_name("ranks.py")
STEPS = {"uneven": 3, "uneven-all-pairs": 3, "short": 2, "idle": 1, "uneven-twice": 3, "idle-twice": 1} | {
    "uneven-out-of-memory": 3,
    "uneven-bfloat16": 3,
    "own-terms": 3,
    "own-terms-idle": 1,
    "rival": 3,
}
"""Steps of an epoch of each scenario in ranks.py."""
ROUNDING = {"uneven-bfloat16": 0.03}
"""Relative differences that a low precision makes, as the ranks sum and batch in another order."""
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, new_config: NewConfig, tiny_features: Features) -> Path:
    """The files of one rank, computed here, and of two that compute together in processes of their own."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "features.pkl").write_bytes(pickle.dumps(tiny_features))
    settings = flatten(new_config(train__precision="float64", stage1__epochs=1, stage2__epochs=1))
    (folder / "settings.json").write_text(json.dumps(settings))
    workers = [
        subprocess.Popen(
            [sys.executable, str(RANKS), str(folder), str(rank), "2"],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(RANKS.parents[1])},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        runpy.run_path(str(RANKS))["measure"](folder, 0, 1)
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    return folder


def tensors_of(folder: Path, rank: int, world: int, scenario: str) -> dict[str, Tensor]:
    outcome = load_file(folder / f"{rank}-of-{world}.safetensors")
    return {name: tensor for name, tensor in outcome.items() if name.split(".")[0] == scenario}


@pytest.mark.parametrize("scenario", STEPS)
def test_gradients_do_not_depend_on_the_ranks(ranks: Path, scenario: str) -> None:
    alone = tensors_of(ranks, 0, 1, scenario)
    assert len([name for name in alone if "gradient" in name]) == STEPS[scenario]
    for rank in range(2):
        together = tensors_of(ranks, rank, 2, scenario)
        assert together.keys() == alone.keys()
        for name, tensor in alone.items():
            # Adam divides by the gradient's size, which makes rounding errors of tiny ones larger.
            limit = ROUNDING.get(scenario, 1e-12 if "gradient" in name else 1e-9)
            assert relative(together[name], tensor) < limit, name
    assert all(
        torch.equal(tensor, tensors_of(ranks, 1, 2, scenario)[name])
        for name, tensor in tensors_of(ranks, 0, 2, scenario).items()
    )


@pytest.mark.parametrize("scenario", ["uneven", "idle"])
@pytest.mark.parametrize("world", [1, 2])
def test_gradients_do_not_depend_on_what_is_kept(ranks: Path, scenario: str, world: int) -> None:
    kept, twice = (tensors_of(ranks, 0, world, name) for name in (scenario, f"{scenario}-twice"))
    for name, tensor in kept.items():
        if "gradient" in name:
            assert relative(twice[name.replace(scenario, f"{scenario}-twice")], tensor) < 1e-12


@pytest.mark.parametrize("scenario", STEPS)
def test_metrics_do_not_depend_on_the_ranks(ranks: Path, scenario: str) -> None:
    alone, *together = (
        json.loads((ranks / f"{rank}-of-{world}.json").read_text())[scenario]
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    compared = [name for name in alone if name not in (*TIMES, "utterance_passes")]
    assert {"valid/mae", "valid/pairwise_acc", "loss/total", "grad_norm", "active_pairs"} <= set(compared)
    for metrics in together:
        limit = ROUNDING.get(scenario, 1e-9)
        assert {name: metrics[name] for name in compared} == pytest.approx({n: alone[n] for n in compared}, rel=limit)
        # An utterance that two ranks need is encoded by both.
        assert metrics["utterance_passes"] >= alone["utterance_passes"]


def test_a_rank_that_runs_out_of_memory_does_not_disturb_the_other(ranks: Path) -> None:
    """It computes its activations twice; the gradients are compared above."""
    first, last = (json.loads((ranks / f"{rank}-of-2.json").read_text())["notes"] for rank in range(2))
    assert not any(first.values())
    assert [name for name, notes in last.items() if notes] == ["uneven-out-of-memory"]
    assert len(last["uneven-out-of-memory"]) == 1


def test_ranks_write_one_checkpoint(ranks: Path) -> None:
    for scenario in STEPS:
        folders = [ranks / f"{scenario}-{world}" for world in (2, 1)]
        assert files_of(folders[0]) == files_of(folders[1]) == ["best-00001.safetensors"]
        actual, reference = (load_file(folder / "best-00001.safetensors") for folder in folders)
        assert actual.keys() == reference.keys()


def test_more_ranks_than_groups_are_refused(ranks: Path) -> None:
    said = [json.loads((ranks / f"{rank}-of-2.json").read_text())["too many"] for rank in range(2)]
    assert said == ["pairs.groups_per_step = 1 is too small for 2 workers; use at most 1 workers"] * 2
    assert json.loads((ranks / "0-of-1.json").read_text())["too many"] == ""


def jobs_of(folder: Path, rank: int) -> dict[str, list[dict[str, Any]]]:
    """A rank's results of the jobs in ranks.py, but for times."""
    jobs: dict[str, list[dict[str, Any]]] = json.loads((folder / f"{rank}-of-2.json").read_text())["jobs"]
    for results in jobs.values():
        for result in results:
            result["curve"] = timeless(result["curve"])
    return jobs


def test_ranks_report_the_same_epochs_and_the_first_one_the_checkpoint(ranks: Path) -> None:
    first, second = (jobs_of(ranks, rank)["whole"] for rank in range(2))
    assert [result["epoch"] for result in first] == [1, 2, 3]
    best = best_in(ranks / "whole")
    assert (first[-1]["checkpoint"], first[-1]["checkpoint_sha256"]) == (best.name, checkpoint_in(best).sha256)
    assert [result | {"checkpoint": None, "checkpoint_sha256": None} for result in first] == second


@pytest.mark.parametrize(
    ("job", "error", "said"),
    [
        ("alone", "DamagedError", "missing/last.safetensors: no such checkpoint"),
        ("newer", "DataError", "whole-00001.safetensors: a newer grcf_ray wrote it"),
    ],
)
def test_what_fails_on_one_rank_fails_on_all(ranks: Path, job: str, error: str, said: str) -> None:
    """One that went on would wait for the other for ever."""
    for rank in range(2):
        (result,) = jobs_of(ranks, rank)[job]
        assert (result["state"], result["error"], result["done"]) == ("failed", error, True)
        assert said in result["failure"]


def test_ranks_go_on_together_from_the_checkpoint_before_a_damaged_one(ranks: Path) -> None:
    whole = jobs_of(ranks, 0)["whole"]
    for rank in range(2):
        resumed = jobs_of(ranks, rank)["damaged"]
        assert [result["epoch"] for result in resumed] == [2, 3]
        assert resumed[-1]["curve"] == whole[-1]["curve"]
    (note,) = jobs_of(ranks, 0)["damaged"][-1]["notes"]
    assert note.startswith(f"{ranks / 'damaged' / 'whole-00002.safetensors'}: not a whole checkpoint")
    assert note.endswith("; trained again from epoch 2")
    assert_same_checkpoints(ranks / "damaged", ranks / "whole")
