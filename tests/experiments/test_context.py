"""Contexts without any training: what they refuse, what the paper prints, and which trials a pool asks for."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grcf_ray.config import RunConfig, build_config
from grcf_ray.errors import ConfigError, DataError
from grcf_ray.experiments.grids import retuned_arm
from grcf_ray.experiments.model_pool import Arm, Entry, ModelPool, configured, shape_name, shape_of
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from grcf_ray.experiments.context import ExperimentContext

MakeContext = Callable[..., "ExperimentContext"]
SHORT = Arm("no-stage1", "w/o Stage 1", {"stage1.epochs": 0})


def test_trials_of_an_abandoned_experiment_are_not_trained_by_the_next(tmp_path: Path) -> None:
    """Of six entries, an experiment that ended early began three in Stage 1 and one of them in Stage 2."""
    record = RunRecord(storage_path(tmp_path / "pool"))
    old = [Entry({"a": index}, {}, index) for index in range(6)]
    ModelPool(record, RunConfig()).add(old)
    for stage, number, params in ((1, 0, {}), (1, 1, {}), (1, 2, {}), (2, 0, {"finalist": "2"})):
        state = "complete" if number < 2 else "running"
        record.write_trial(TrialRecord(number=number, stage=stage, attempt=1, params=params, seed=0, state=state))
    new = Entry({"a": "new"}, {"b": 1}, 0)
    pool = ModelPool(record, RunConfig())
    pool.add([new])
    assert pool.entries == ModelPool(record, RunConfig()).entries == [*old[:3], new]
    trials = pool.given(42, [new])
    assert trials.params(1, []) == [{"a": 0}, {"a": 1}, {"a": 2}, {"a": "new"}]
    assert trials.params(2, ["0", "1", "3"]) == [{"finalist": "2"}, {"b": 1, "finalist": "3"}]
    assert [trial and trial.number for trial in pool.trials(1, [old[1], old[2], new])] == [1, None, None]


@pytest.mark.parametrize("whose", ["run", "pool"])
def test_an_encoder_with_other_weights_trains_nothing(whose: str, make_context: MakeContext) -> None:
    """Arms would be compared that began with different encoders under one name."""
    context = make_context(seeds=1)
    rank_only = Arm("rank-only", "w/o Stage 2", stage=1)
    record = context.record if whose == "run" else context.model_pool(rank_only).record
    encoder = {**context.record.read_run()["encoder"], "weights_sha256": "0"}
    record.write_run({**(record.read_run() if record.exists else {"state": "running"}), "encoder": encoder})
    remedy = "start from a search" if whose == "run" else "remove .*/reproduce/models/"
    with pytest.raises(ConfigError, match=f"weights .*{remedy}"):
        # Found out before the first shape is trained, whichever of them it is.
        context.models([SHORT, rank_only], "test")
    assert not list((Path(str(context.record)) / "reproduce").rglob("trials/*.json"))


def test_an_encoder_with_other_weights_is_not_searched_with(make_context: MakeContext, fresh: Path) -> None:
    context = make_context(seeds=1)
    context.record.update_run(encoder={**context.record.read_run()["encoder"], "weights_sha256": "0"})
    reads = (fresh / "best" / "provenance.json").read_bytes()
    with pytest.raises(ConfigError, match="weights"):
        retuned_arm(context, SHORT, "no-stage1")
    assert not (fresh / "reproduce").exists()
    assert (fresh / "best" / "provenance.json").read_bytes() == reads


def test_what_the_paper_prints_is_of_its_data_and_task(make_context: MakeContext) -> None:
    context = make_context()
    assert context.printed("ablation") == {} and not context.printed_results

    def printed_of(**changes: Any) -> tuple[Any, Any]:
        info = dataclasses.replace(context.store.info, name="mosi", **changes)
        other = context.on(dataclasses.replace(context.store, info=info), context.config, context.record.place)
        return other.printed("ablation"), other.printed_results

    ablation, results = printed_of()
    assert ablation["full"]["corr"] == 0.866 and results["mae"] == 0.581
    assert printed_of(task="classification") == ({}, {})
    # A rival's run stands beside the baselines, and not beside GRCF's own figures.
    context.config = configured(context.config, Arm("lmf", "LMF", {"model.name": "lmf"}))
    assert printed_of() == ({}, {})
    info = dataclasses.replace(context.store.info, name="mosi")
    rival = context.on(dataclasses.replace(context.store, info=info), context.config, context.record.place)
    assert "TMSON" in rival.printed("baselines")


def test_a_run_without_a_winner_is_refused(make_context: MakeContext, fresh: Path) -> None:
    shutil.rmtree(fresh / "best")
    with pytest.raises(DataError, match="winner"):
        make_context()


def test_folders_of_models_keep_their_names_over_releases() -> None:
    """The name is that of release 0.1, for its defaults and for settings that came later."""
    name = "deberta-v3-base-epochs-17-5-44f06147"
    for settings in ({}, {"checkpoint.minutes": 1}, {"train.precision": "float32"}, {"train.precision": "bfloat16"}):
        assert shape_name(shape_of(build_config(settings))) == name
    assert shape_name(shape_of(build_config({"train.precision": "float64"}))) != name
