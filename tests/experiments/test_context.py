"""Models of experiments: trained once, paired by seed, and resumed after an interruption."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.experiments.fake_context import StartedTrials

if TYPE_CHECKING:
    from grcf_ray.experiments.context import ExperimentContext
    from grcf_ray.search.events import Event

MakeContext = Callable[..., "ExperimentContext"]


def arms() -> list[Any]:
    from grcf_ray.experiments.model_pool import Arm

    return [
        Arm("full", "full"),
        Arm("static", "static margin", {"ranking.dynamic_margin": False}),
        Arm("rank-only", "w/o Stage 2", stage=1),
        Arm("no-stage1", "w/o Stage 1", {"stage1.epochs": 0}),
    ]


def test_arms_are_trained_once_and_paired_by_seed(make_context: MakeContext, copied: Path) -> None:
    started = StartedTrials()
    context = make_context(listeners=(started,))
    models = context.models(arms(), "test")
    assert all([model.index for model in arm_models] == [0, 1] for arm_models in models.values())
    # Full and static take 2 trials in each stage; no-stage1 takes two of Stage 2, rank-only none of its own.
    assert sorted(started) == sorted(["1/0", "1/1", "1/2", "1/3", "2/0", "2/1", "2/2", "2/3", "2/0", "2/1"])
    figures = metrics_by_arm(models)
    assert len({str(value) for value in figures.values()}) == 4, "every arm is a training of its own"

    started.clear()
    again = make_context(listeners=(started,)).models(arms(), "another")
    assert started == [], "no model is trained twice, whichever experiment asks"
    assert metrics_by_arm(again) == figures

    # One seed more, and one arm more: only those are trained, and what was there stays as it is.
    from grcf_ray.experiments.model_pool import Arm

    more = [arms()[0], Arm("strict", "strict,5", {"ranking.groups": "strict,5"})]
    grown = make_context(listeners=(started,), seeds=3).models(more, "test")
    assert [m.index for m in grown["strict"]] == [0, 1, 2]
    assert len(started) == 2 * (1 + 3)
    assert metrics_by_arm(grown)["full"][:2] == figures["full"] != metrics_by_arm(grown)["strict"][:2]


def test_the_full_arm_is_the_winner_as_seeds_retrain_it(make_context: MakeContext) -> None:
    """The same parameters under the same seeds as `search --seeds`, whatever else is trained beside it."""
    from grcf_ray.search.seeds import fresh_seed

    context = make_context()
    (model, _) = context.models([arms()[0]], "test")["full"]
    trial = next(
        t
        for folder in (context.record.place / "reproduce" / "models").names()
        for t in _record(context, folder).trials(2)
        if (_record(context, folder).place / "models" / f"{t.number:04d}").uri == model.place.uri
    )
    assert trial.seed == fresh_seed(context.config.seed, 2, 0)
    winner = context.view.winner
    assert winner is not None
    assert {path: trial.params[path] for path in winner.params if path != "finalist"} == {
        path: value for path, value in winner.params.items() if path != "finalist"
    }


def test_predictions_of_a_model_are_those_of_its_figures(make_context: MakeContext) -> None:
    from grcf_ray.metrics import split_metrics

    context = make_context()
    for model in context.models([arms()[0]], "test")["full"]:
        for split in ("valid", "test"):
            scored = model.scored(split)
            metrics = split_metrics(
                scored.score_N,
                scored.label_N,
                protocol=context.protocol,
                limit=context.half_range,
                center=context.center,
            )
            assert {name: metrics[name] for name in model.metrics[split]} == dict(model.metrics[split])


def test_reading_test_is_on_record(make_context: MakeContext, fresh: Path) -> None:
    import json

    make_context(fresh).models([arms()[2]], "margins")
    reads = json.loads((fresh / "best" / "provenance.json").read_text())["test_reads"]
    assert [read["command"] for read in reads] == ["search", "reproduce margins"]
    assert len(reads[1]["models"]) == 2
    assert all(name.startswith("reproduce/models/tiny-bert-epochs-") for name in reads[1]["models"])


def test_an_interrupted_experiment_goes_on(make_context: MakeContext, fresh: Path) -> None:
    """Ctrl-C in the middle of Stage 2: what follows trains the rest, and ends with the same figures."""
    from grcf_ray.search.events import TrialEnded

    whole = make_context().models(arms()[:2], "test")
    resumed = StartedTrials()

    def interrupt(event: Event) -> None:
        if isinstance(event, TrialEnded) and event.trial.stage == 2:
            cut._stop.request()

    cut = make_context(fresh, listeners=(interrupt,))
    with pytest.raises(KeyboardInterrupt):
        cut.models(arms()[:2], "test")
    models = make_context(fresh, listeners=(resumed,)).models(arms()[:2], "test")
    assert 0 < len(resumed) < 4 and all(name.startswith("2/") for name in resumed)
    assert metrics_by_arm(models) == metrics_by_arm(whole)


@pytest.mark.parametrize("stage", [1, 2])
def test_an_experiment_that_was_given_up_is_not_trained_by_the_next(
    stage: int, make_context: MakeContext, fresh: Path
) -> None:
    """Many arms are asked for and stopped in one of the stages; then one arm is trained, and nothing but it."""
    from grcf_ray.experiments.model_pool import Arm
    from grcf_ray.search.events import TrialEnded

    many = [Arm(f"{value}", f"{value}", {"stage1.reg_weight": value}) for value in (0.2, 0.3, 0.4)]
    started = StartedTrials()

    def interrupt(event: Event) -> None:
        if isinstance(event, TrialEnded) and event.trial.stage == stage:
            cut._stop.request()

    cut = make_context(fresh, listeners=(interrupt,), seeds=2)
    with pytest.raises(KeyboardInterrupt):
        cut.models(many, "stability")
    begun = {of: sum(len(_record(cut, name).trials(of)) for name in _shapes(cut)) for of in (1, 2)}
    assert begun[stage] < 6
    (model,) = make_context(fresh, listeners=(started,), seeds=1).models([arms()[0]], "main")["full"]
    assert model.metrics["test"]
    # Both stages of its own, and of the others those that were cut short.
    new = [name for name in started if int(name[2:]) >= begun[int(name[0])]]
    assert new == [f"1/{begun[1]}", f"2/{begun[2]}"] and len(started) <= 4


@pytest.mark.parametrize("whose", ["run", "pool"])
def test_an_encoder_with_other_weights_trains_nothing(whose: str, make_context: MakeContext, fresh: Path) -> None:
    """Arms would be compared that began with different encoders under one name."""
    from grcf_ray.errors import ConfigError

    context = make_context(fresh, seeds=1)
    record = context.record if whose == "run" else context.model_pool(arms()[2]).record
    encoder = context.record.read_run()["encoder"]
    record.write_run(
        {
            **(record.read_run() if record.exists else {"state": "running"}),
            "encoder": {**encoder, "weights_sha256": "0"},
        }
    )
    remedy = "start from a search" if whose == "run" else "remove .*/reproduce/models/"
    with pytest.raises(ConfigError, match=f"weights .*{remedy}"):
        # Found out before the first shape is trained, whichever of them it is.
        context.models([arms()[3], arms()[2]], "test")
    assert all(_record(context, name).trials(stage) == [] for name in _shapes(context) for stage in (1, 2))


def test_an_encoder_with_other_weights_is_not_searched_with(make_context: MakeContext, fresh: Path) -> None:
    from grcf_ray.errors import ConfigError
    from grcf_ray.experiments.retuned import retuned_arm

    context = make_context(fresh, seeds=1)
    context.record.update_run(encoder={**context.record.read_run()["encoder"], "weights_sha256": "0"})
    reads = (fresh / "best" / "provenance.json").read_bytes()
    with pytest.raises(ConfigError, match="weights"):
        retuned_arm(context, arms()[3], "no-stage1")
    assert not (fresh / "reproduce").exists()
    assert (fresh / "best" / "provenance.json").read_bytes() == reads


def test_arms_that_come_to_nothing_leave_the_others(make_context: MakeContext, fresh: Path) -> None:
    """One arm diverges under every seed: the rest is trained and measured; without the reference nothing is said."""
    from grcf_ray.errors import NoWinnerError
    from grcf_ray.experiments.model_pool import Arm

    wild = Arm("wild", "wild", {"stage1.head_lr": 1e30, "stage1.encoder_lr": 1e30})
    rates = {f"stage2.{name}": 1e30 for name in ("head_lr", "encoder_top_lr", "encoder_base_lr")}
    # In a search of its own, in which nothing ends well.
    alone = Arm("alone", "alone", {**rates, "stage1.epochs": 0})
    context = make_context(fresh, seeds=1)
    models = context.models([arms()[0], wild, alone], "test")
    assert [model.index for model in models["full"]] == [0] and models["wild"] == models["alone"] == []
    with pytest.raises(NoWinnerError, match="wild"):
        context.models([wild], "test")


def test_what_the_paper_prints_is_of_its_data_and_task(make_context: MakeContext) -> None:
    import dataclasses

    table = {"mosi": {"mae": 0.5}}
    context = make_context()
    assert context.printed(table) == {}
    info = dataclasses.replace(context.store.info, name="mosi")
    other = context.on(dataclasses.replace(context.store, info=info), context.config, context.record.place)
    assert other.printed(table) == {"mae": 0.5} and other.printed_results["mae"] == 0.581
    classes = dataclasses.replace(info, task="classification")
    other = context.on(dataclasses.replace(context.store, info=classes), context.config, context.record.place)
    assert other.printed(table) == {} and not other.printed_results


def test_a_run_without_a_winner_is_refused(make_context: MakeContext, fresh: Path) -> None:
    from grcf_ray.errors import DataError

    shutil.rmtree(fresh / "best")
    with pytest.raises(DataError, match="winner"):
        make_context(fresh)


def metrics_by_arm(models: dict[str, list[Any]]) -> dict[str, list[dict[str, float]]]:
    """Return the test metrics of every model, by arm."""
    return {name: [dict(model.metrics["test"]) for model in arm_models] for name, arm_models in models.items()}


def _shapes(context: ExperimentContext) -> list[str]:
    return (context.record.place / "reproduce" / "models").names()


def _record(context: ExperimentContext, folder: str) -> Any:
    from grcf_ray.search.record import RunRecord

    return RunRecord(context.record.place / "reproduce" / "models" / folder)
