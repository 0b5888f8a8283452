"""Models at equal cost: the tables and the diagram of made-up models, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from grcf_ray.config import flatten
from grcf_ray.errors import ConfigError, NoWinnerError
from grcf_ray.experiments import rivals
from grcf_ray.experiments.main import main
from grcf_ray.experiments.model_pool import Arm, configured, entries_of
from grcf_ray.experiments.paper import TABLES
from grcf_ray.experiments.registry import Options
from grcf_ray.experiments.result import ExperimentResult
from grcf_ray.model.baselines import lmf, tfn
from grcf_ray.plugins import model_names
from grcf_ray.report.summary import Cost
from grcf_ray.report.view import RunView
from grcf_ray.search.predictions import Predictions
from grcf_ray.search.record import TrialRecord, now
from grcf_ray.search.session import Session
from grcf_ray.search.space import stage_epochs
from grcf_ray.search.winner import note_test_read
from grcf_ray.statistics import Difference, corrected, paired_p

NAMES = ("ef-lstm", "lf-dnn", "lmf", "tfn")
COST = Cost(trial_seconds=1800.0, epochs=6, utterance_passes=5.5)


@pytest.fixture
def planned(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> list[rivals.Contender]:
    """Let no search run: TFN does not learn the task, and the search of EF-LSTM finds nothing. Returns the plan."""
    plan: list[rivals.Contender] = []

    def searched(context: Any, contenders: Sequence[rivals.Contender]) -> list[rivals.Contender]:
        plan.extend(contenders)
        found = [dataclasses.replace(row, cost=COST) if row.search else row for row in contenders]
        lost = {"status": "no winner in its search", "reason": "all trials diverged", "cost": None}
        return [dataclasses.replace(row, **lost) if row.arm.name == "ef-lstm" else row for row in found]

    monkeypatch.setattr(tfn, "CARD", dataclasses.replace(tfn.CARD, networks={}))
    monkeypatch.setattr(lmf, "CARD", dataclasses.replace(lmf.CARD, source="its abstract"))
    monkeypatch.setattr(rivals, "_searched", searched)
    untrained.options = Options(models=NAMES, two_stage=True)
    untrained.printed = {"baselines": {"LMF": {"mae": 0.9}}}.__getitem__
    return plan


def rows_of(result: ExperimentResult, name: str) -> dict[str, Any]:
    return {row["title"]: row for table in result.tables if table.name == name for row in table.rows}


def test_every_rival_costs_what_the_runs_own_search_does(untrained: Any, planned: Any, few_draws: None) -> None:
    main(untrained)
    own = untrained.space.config()
    whole = own.stage1.epochs * own.search.stage1_trials + own.stage2.epochs * own.search.stage2_trials
    names = ["ef-lstm", "lf-dnn", "lmf", "tfn", "ef-lstm-two-stage", "lf-dnn-two-stage", "lmf-two-stage"]
    assert [row.arm.name for row in planned] == names
    for row in planned:
        if row.search is None:
            continue
        config = row.search.config
        cost = config.stage1.epochs * config.search.stage1_trials + config.stage2.epochs * config.search.stage2_trials
        assert abs(cost - whole) <= config.stage2.epochs / 2
        assert (config.stage1.epochs > 0) == (config.stage2.group_weight > 0) == (row.alone != "")
        assert config.model.name == row.arm.name.removesuffix("-two-stage")
        assert str(row.search.record).endswith(f"reproduce/retuned/{row.arm.name}")


def test_a_row_for_each_model_whether_it_was_trained_or_not(untrained: Any, planned: Any, few_draws: None) -> None:
    result = main(untrained)
    assert result.name == "main-models"
    rows = rows_of(result, "models")
    assert list(rows) == ["GRCF", "EF-LSTM", "LF-DNN", "LMF", "TFN"]
    states = ["no winner in its search", None, None, "not applicable"]
    assert [row["status"] for row in rows.values()] == [None, *states]
    (table,) = [table for table in result.tables if table.name == "models"]
    assert any("TFN does not learn regression" in note for note in table.notes)
    assert any("all trials diverged" in note for note in table.notes)
    assert [row["paper"] for row in rows.values()] == [None, None, None, 0.9, None]
    mae = rows_of(result, "mae")
    assert list(mae) == ["GRCF", "LF-DNN", "LMF"]
    for title, row in mae.items():
        assert (rows[title]["mae"], rows[title]["difference" if "difference" in row else "mae"]) == (
            row["mean"],
            row.get("difference", row["mean"]),
        )
    assert rows["TFN"]["mae"] is None and (rows["LMF"]["passes"], rows["LMF"]["minutes"]) == (5.5, 30)
    trials = untrained.view.all_trials
    assert rows["GRCF"]["passes"] == pytest.approx(sum(trial.utterance_passes for trial in trials))
    assert "| TFN |" in result.markdown() and "not applicable" in result.latex()
    # The paper's F1 of rivals is another one.
    assert any("weighted" in note for note in result.notes)
    said = [note for note in result.notes if "equations" in note]
    assert said == ["LMF: the paper's equations were not seen; written from its abstract."]


def test_two_stages_are_compared_with_the_same_rival_in_one(untrained: Any, planned: Any, few_draws: None) -> None:
    rows = rows_of(main(untrained), "stages")
    assert list(rows) == ["EF-LSTM", "LF-DNN", "LMF"]
    models = untrained.models([*untrained.models.arms.values()], "again")
    expected = {}
    for name in ("lf-dnn", "lmf"):
        one, two = (
            np.array([model.metrics["test"]["mae"] for model in models[arm]]) for arm in (name, f"{name}-two-stage")
        )
        row = next(row for row in rows.values() if row["name"] == name)
        assert (row["one"], row["two"]) == (pytest.approx(one.mean()), pytest.approx(two.mean()))
        assert row["difference"] == pytest.approx((two - one).mean())
        expected[name] = Difference((two - one).mean(), paired_p(two - one), 0.0, 0.0)
    holm = corrected(expected)
    assert [rows[title]["p_holm"] for title in ("LF-DNN", "LMF")] == pytest.approx(
        [holm[name].p_holm for name in ("lf-dnn", "lmf")]
    )
    assert "difference" not in rows["EF-LSTM"] and rows["EF-LSTM"]["status"] == "no winner in its search"


class Searches:
    """Stands in for the run of a session: one trial in each stage, with parameters other than the starting point's."""

    def __init__(self, template: TrialRecord, losing: str = "") -> None:
        self.template, self.losing, self.begun = template, losing, list[str]()
        self.ended = now()

    def __call__(self, session: Session, room: None) -> None:
        """Write the record that a finished search leaves."""
        record, space = session.record, session.space
        self.begun.append(record.place.name)
        session._open_record({})
        if record.place.name == self.losing:
            raise NoWinnerError("all trials diverged")
        finalist = {}
        for stage in stage_epochs(space.config()):
            params = {**space.start(stage), **{path: 2 for path in space.dimensions(stage) if path == "lmf.rank"}}
            trial = dataclasses.replace(self.template, stage=stage, number=0, params={**params, **finalist})
            record.write_trial(trial)
            if stage == 1:
                record.write_finalist(trial, "0" * 64)
                finalist = {"finalist": "0"}
        record.update_run(state="finished", ended=self.ended)


def test_a_search_is_run_once_and_its_winner_is_what_is_trained(
    untrained: Any, few_draws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = Searches(untrained.view.winner, losing="tfn")
    monkeypatch.setattr(Session, "check", lambda session: None)
    monkeypatch.setattr(Session, "run", lambda session, room: searches(session, room))
    untrained.options = Options(models=("lmf", "tfn"))
    rows = rows_of(main(untrained), "models")
    assert searches.begun == ["lmf", "tfn"]
    assert [row["status"] for row in rows.values()] == [None, None, "no winner in its search"]
    assert rows["LMF"]["passes"] == untrained.view.winner.utterance_passes

    # The search that failed is asked again; of the others only what is new.
    searches.begun.clear()
    untrained.options = Options(models=("lmf", "tfn", "lf-dnn"), two_stage=True)
    result = main(untrained)
    assert searches.begun == ["lf-dnn", "tfn", "lf-dnn-two-stage", "lmf-two-stage", "tfn-two-stage"]
    assert rows_of(result, "stages").keys() == {"LF-DNN", "LMF", "TFN"}
    assert not any("after test had been read" in note for note in result.notes)
    arms, own = untrained.models.arms, untrained.config
    for name, epochs in (("lmf", 0), ("lmf-two-stage", own.stage1.epochs)):
        config = configured(own, arms[name])
        assert (config.model.name, flatten(config)["lmf.rank"], config.stage1.epochs) == ("lmf", 2, epochs)
        assert config.search == own.search
        # The pool trains that configuration.
        pool = untrained.model_pool(arms[name])
        (entry,) = entries_of(config, [0])
        pool.add([entry])
        search = {path: value for path, value in flatten(config).items() if path.startswith("search.")}
        assert pool.space(search, "tiny").config({**entry.stage1, **entry.stage2}) == config

    # A model that follows after the others were measured is named.
    note_test_read(untrained.record.place / "best", "reproduce main --models", ["reproduce/models/x/stage2/0"])
    untrained.view = RunView.read(untrained.record)
    searches.ended = "2999-01-01T00:00:00+00:00"
    untrained.options = Options(models=("lmf", "ef-lstm"))
    (note,) = [note for note in main(untrained).notes if "after test had been read" in note]
    assert "EF-LSTM" in note and "LMF" not in note


def test_a_bar_joins_models_within_the_critical_difference() -> None:
    """Four seeds, five models in the same order under each: ranks 1 to 5, and 3.05 between two that differ."""
    labels = np.array([-1.0, 1.0])
    test = Predictions(("a", "b"), ("", ""), labels, labels, np.zeros((2, 0), np.float32))
    context: Any = SimpleNamespace(protocol="mosi", store=SimpleNamespace(info=None))
    arms = [Arm(name, name.upper()) for name in "ebcda"]
    models: Any = {
        name: [
            SimpleNamespace(index=index, metrics={"test": {"mae": place + index}}, scored=lambda split: test)
            for index in range(4)
        ]
        for place, name in enumerate("abcde")
    }
    (picture,) = rivals.rank_pictures(context, arms, models)
    data = picture.data
    assert [(row["title"], row["rank"]) for row in data["rows"]] == [(name, n + 1) for n, name in enumerate("ABCDE")]
    # q of five at 5 % is 2.728 in Demsar's table.
    assert data["critical"] == pytest.approx(2.728 * (5 * 6 / (6 * 4)) ** 0.5, abs=1e-3)
    assert data["groups"] == [(0, 3), (1, 4)]
    assert len(picture.draw(data).axes[0].lines) == 1 + 2 + 1

    # A seed that one model lacks counts for none, and two models have no diagram.
    models["a"].pop(0)
    assert "3 seeds" in rivals.rank_pictures(context, arms, models)[0].caption
    assert rivals.rank_pictures(context, arms[:2], models) == []


def test_what_cannot_be_compared_is_refused(untrained: Any) -> None:
    untrained.options = Options(models=("tfm",))
    with pytest.raises(ConfigError, match="--models tfm: no such model; did you mean tfn"):
        main(untrained)
    with pytest.raises(ConfigError, match="--models names"):
        Options(two_stage=True).check("main")
    untrained.options = Options(models=("all",), two_stage=True)
    base = untrained.config
    untrained.config = configured(base, Arm("direct", "direct", {"stage1.epochs": 0}))
    with pytest.raises(ConfigError, match="one stage"):
        main(untrained)
    untrained.config = configured(base, Arm("lmf", "LMF", {"model.name": "lmf"}))
    assert flatten(untrained.config)["model.name"] == "lmf"
    with pytest.raises(ConfigError, match="this run is a search of LMF"):
        main(untrained)


def test_each_model_has_the_papers_row_of_its_name(untrained: Any) -> None:
    """The rows without a model are systems that are not implemented; MulT is in none of the paper's tables."""
    others = {"AtCAF", "AV-MC", "CaMIB", "DEVA", "DLF", "DMD", "EMOE", "KuDA", "Multimodal Boosting"}
    rows = {row for table in TABLES["baselines"].values() for row in table}
    printed = {row: {"mae": float(number)} for number, row in enumerate(sorted(rows))}
    untrained.printed = {"baselines": printed}.__getitem__
    found = rivals._printed(untrained, model_names()[1:])
    assert {row for row, figures in printed.items() if figures in found.values()} == rows - others
    assert {*model_names()} - found.keys() == {"grcf", "mult"}
    assert found["mag"] == printed["MAG-BERT"]
