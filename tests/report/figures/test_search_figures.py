"""The figures of a search: what they say is what the record has, and nothing in a record breaks them."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any, Literal

import numpy as np
import pytest
from report.figures.synthetic import CHOICES, EPOCHS, SPACE, STORED, WEIGHTS, first_stage, second_stage, trial, view_of

from grcf_ray.report.figures.cost import UNITS, cost_data, failures_data
from grcf_ray.report.figures.importance import importance_data, importance_warning
from grcf_ray.report.figures.parameters import (
    draw_parallel,
    draw_slices,
    parallel_data,
    searched,
    slices_data,
)
from grcf_ray.report.figures.search import curves_data, handoff_data, handoff_plot, history_data, search_plots
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.record import RunRecord, TrialRecord, rank
from grcf_ray.search.space import recorded_space
from grcf_ray.storage import storage_path

ONE_STAGE = ("history", "importance", "parallel", "slices", "curves")
HOSTILE = '<a href="https://evil.example">x</a><b>%{y}</b>\x1b[31m\u202e\ud800' + "long" * 50


@pytest.fixture(scope="module")
def view() -> RunView:
    """A finished search of 60 and 40 trials, some of which were stopped, diverged or failed."""
    first = first_stage(60, full=False)
    finalists = rank(first)[:3]
    second = second_stage(40, finalists)
    names = [str(finalist.number) for finalist in finalists]
    return view_of({1: first, 2: second}, finalists=names, winner=f"stage2/{rank(second)[0].number}")


@pytest.fixture(scope="module")
def plots(view: RunView) -> list[Plot]:
    return search_plots(view)


def points(figure: Any, **wanted: Any) -> int:
    """How many points the traces with these attributes have."""
    traces = [trace for trace in figure.data if all(trace[name] == value for name, value in wanted.items())]
    return sum(sum(y is not None for y in trace.y) for trace in traces)


def assert_sound(plots: list[Plot]) -> None:
    """Every plot's data is plain JSON, and alone makes a figure that is JSON too."""
    for plot in plots:
        again = json.loads(json.dumps(plot.data, allow_nan=False))
        assert again == plot.data, plot.name
        drawn = plot.draw(again)
        json.dumps(drawn.to_plotly_json(), default=list, allow_nan=False)
        assert drawn.layout.width is None
        assert plot.summary.strip() and plot.caption.strip() and plot.title


def test_the_figures_come_in_the_order_of_the_page(plots: list[Plot]) -> None:
    staged = [f"{name}-stage{k}" for name in ("history", "importance", "parallel", "slices") for k in (1, 2)]
    later = ["handoff", "curves-stage1", "curves-stage2", "cost", "failures"]
    assert [plot.name for plot in plots] == staged + later
    assert_sound(plots)


def test_history_has_every_trial_and_the_best_so_far(view: RunView, plots: list[Plot]) -> None:
    for stage, better in ((1, max), (2, min)):
        plot = next(plot for plot in plots if plot.name == f"history-stage{stage}")
        trials, data = view.trials[stage], plot.data
        seen = [t.objective for t in trials]
        best = [better((v for v in seen[: k + 1] if v is not None), default=None) for k in range(len(seen))]
        assert [(t["number"], t["state"], t["objective"], t["best"]) for t in data["trials"]] == [
            (t.number, t.state, t.objective, so_far) for t, so_far in zip(trials, best, strict=True)
        ]
        assert data["cost"][-1]["best"] == best[-1]
        assert data["cost"][-1]["passes"] == pytest.approx(sum(t.utterance_passes for t in trials))
        drawn = plot.draw(data)
        assert points(drawn, mode="markers") == len(trials)
        assert points(drawn, yaxis="y2") == sum(value is None for value in seen)


def test_cost_counts_in_the_order_of_end() -> None:
    """Trial 0 ended last."""
    early, late = trial(1, 1, {}, [0.5, 0.7]), trial(0, 1, {}, [0.6])
    late.ended = "2026-02-01T00:00:00+00:00"
    data = history_data(view_of({1: [late, early]}), 1)
    assert data["cost"] == [{"number": 1, "passes": 4.5, "best": 0.7}, {"number": 0, "passes": 6.75, "best": 0.7}]
    assert [t["best"] for t in data["trials"]] == [0.6, 0.7]


def test_importance_finds_the_weights_by_all_methods() -> None:
    trials = first_stage(100)
    data = importance_data(trials, 1, recorded_space(SPACE, "space"))
    assert data["trials"] == 100 and data["enough"] and data["explained"] > 0.8 and importance_warning(data) is None
    assert data["parameters"] == sorted(WEIGHTS, key=lambda path: -WEIGHTS[path])
    assert set(data["methods"]) == {"forest", "fanova", "ped_anova"}
    for shares in data["methods"].values():
        assert sum(shares["mean"]) == pytest.approx(1)
        assert shares["mean"] == sorted(shares["mean"], reverse=True)
        assert shares["mean"][0] > 2 * shares["mean"][1] and shares["mean"][3] < 0.05


def test_importance_is_of_full_length_trials_that_differ() -> None:
    trials = first_stage(60, full=False)
    for each in trials:
        each.params["stage1.weight_decay"] = 0.02
    data = importance_data(trials, 1, recorded_space(SPACE, "space"))
    assert data["trials"] == sum(each.state == "complete" for each in trials)
    assert data["constant"] == ["stage1.weight_decay"]
    warning = importance_warning(data)
    assert warning is not None and f"only {data['trials']} trials" in warning


def test_importance_of_noise_says_so() -> None:
    trials = first_stage(80)
    rng = np.random.default_rng(3)
    for each in trials:
        each.curve[-1]["valid/pairwise_acc"] = 0.9 + 0.01 * rng.random()
    data = importance_data(trials, 1, recorded_space(SPACE, "space"))
    assert data["enough"]
    assert "R²" in (importance_warning(data) or "")


def test_importance_keeps_quiet_where_nothing_can_be_said() -> None:
    space = recorded_space(SPACE, "space")
    assert importance_data(first_stage(3), 1, space)["methods"] == {}
    same = [trial(number, 1, dict(first_stage(1)[0].params), [0.5 + number / 100]) for number in range(9)]
    assert importance_data(same, 1, space)["methods"] == {}
    level = [dataclasses.replace(each, curve=[{"epoch": 1, "valid/pairwise_acc": 0.5}]) for each in first_stage(9)]
    assert importance_data(level, 1, space)["methods"] == {}


def test_importance_of_stage_2_counts_the_finalist_and_repeats(view: RunView, plots: list[Plot]) -> None:
    data = importance_data(view.trials[2], 2, view.space)
    assert data["parameters"][0] == "finalist" and len(data["parameters"]) == 3
    assert data == next(plot.data for plot in plots if plot.name == "importance-stage2")


def test_parallel_axes_are_those_that_were_searched(view: RunView) -> None:
    data = parallel_data(view, 1)
    assert [axis["path"] for axis in data["parameters"]] == list(SPACE["stage1"])
    assert [axis["log"] for axis in data["parameters"]] == [True, False, False, True]
    by_number = {t.number: t for t in view.trials[1]}
    assert len(data["trials"]) == len(view.ranked(1)) > 0
    for row in data["trials"]:
        assert [row[path] for path in by_number[row["number"]].params] == list(by_number[row["number"]].params.values())
        assert row["objective"] == by_number[row["number"]].objective
    drawn = draw_parallel(data).data[0]
    assert all(len(axis["values"]) == len(data["trials"]) for axis in drawn.dimensions)
    assert drawn.dimensions[0].range == (-6, -2) and drawn.dimensions[0].ticktext[0] == "1e-06"
    assert drawn.dimensions[1].ticktext == CHOICES
    complete = [t.objective for t in view.trials[1] if t.state == "complete"]
    assert (drawn.line.cmin, drawn.line.cmax) == (min(complete), view.ranked(1)[0].objective)
    assert not drawn.line.reversescale and draw_parallel(parallel_data(view, 2)).data[0].line.reversescale


def test_slices_have_every_result_and_the_trend(view: RunView) -> None:
    data = slices_data(view, 1)
    usable = [t for t in view.trials[1] if t.objective is not None]
    for panel in data["panels"]:
        assert [(p["number"], p["value"], p["objective"]) for p in panel["points"]] == [
            (t.number, t.params[panel["path"]], t.objective) for t in usable
        ]
        assert sum(group["trials"] for group in panel["trend"]) == sum(t.state == "complete" for t in usable)
    figure = draw_slices(data)
    for index in range(1, 5):
        axis = f"x{index if index > 1 else ''}"
        drawn = sum(len(t.x) for t in figure.data if t.xaxis == axis and t.name != "median of complete")
        assert drawn == len(usable)
    assert [figure.layout[f"xaxis{k}"].type for k in ("", 3, 4)] == ["log", None, "log"]
    assert all(len(figure.layout[f"xaxis{k}"].ticktext) > 1 for k in ("", 4))


def test_the_trends_of_slices_follow_the_weights() -> None:
    data = slices_data(view_of({1: first_stage(200)}), 1)
    ranges = {panel["path"]: panel["range"] for panel in data["panels"]}
    assert sorted(ranges, key=lambda path: -ranges[path]) == sorted(WEIGHTS, key=lambda path: -WEIGHTS[path])
    lr = next(panel["trend"] for panel in data["panels"] if panel["path"] == "stage1.encoder_lr")
    assert [group["objective"] for group in lr] == sorted(group["objective"] for group in lr)


def test_the_hand_off_has_each_finalist_with_its_trials(view: RunView) -> None:
    data = handoff_data(view)
    ranked = view.ranked(1)
    assert [(f["number"], f["objective"], f["rank"]) for f in data["finalists"]] == [
        (ranked[index].number, ranked[index].objective, index + 1) for index in range(3)
    ]
    assert sum(len(f["trials"]) for f in data["finalists"]) == 40
    for finalist in data["finalists"]:
        trials = [t for t in view.trials[2] if t.params["finalist"] == str(finalist["number"])]
        assert finalist["best"] == min(t.objective for t in trials if t.objective is not None)
        assert finalist["median"] == np.median([t.objective for t in trials if t.state == "complete"])
    assert data["order"]["best"] == {"rho": 1.0, "p": pytest.approx(1 / 3), "n": 3}
    plot = handoff_plot(view)
    assert plot is not None and plot.warning is not None and "6 possible orders" in plot.warning
    figure = plot.draw(plot.data)
    assert points(figure, mode="markers") == 40 and points(figure, mode="markers+text") == 3


def test_curves_are_the_winners_and_its_finalists(view: RunView) -> None:
    winner = view.winner
    assert winner is not None
    for stage, role, number in ((2, "winner", winner.number), (1, "finalist", int(winner.params["finalist"]))):
        stage_: Literal[1, 2] = 1 if stage == 1 else 2
        data = curves_data(view, stage_)
        assert data is not None and (data["role"], data["number"]) == (role, number)
        kept = next(t for t in view.trials[stage] if t.number == number)
        assert set(data["terms"]) == {"bound", "group", "reg" if stage == 1 else "mae", "total"}
        for term, values in data["terms"].items():
            assert values == [metrics[f"loss/{term}"] for metrics in kept.curve]
        assert data["best_epoch"] == EPOCHS
        others = {t.number: t.epoch for t in view.trials[stage] if t.number != number and t.epoch}
        assert {t["number"]: len(t["objective"]) for t in data["others"]} == others


def test_an_undefined_epoch_is_a_gap() -> None:
    data = curves_data(view_of({1: [trial(0, 1, {}, [0.5, None, 0.7])]}), 1)
    assert data is not None and data["objective"] == [0.5, None, 0.7] and data["role"] == "best so far"


def test_cost_adds_up_and_what_stops_saved_is_the_epochs_not_run(view: RunView) -> None:
    for stage in cost_data(view)["stages"]:
        trials = view.trials[stage["stage"]]
        spent = {unit: sum(cost[unit] for cost in stage["states"].values()) for unit in ("trials", *UNITS)}
        assert (spent["trials"], spent["epochs"]) == (len(trials), sum(t.epoch for t in trials))
        for unit in ("utterance_passes", "seconds"):
            assert spent[unit] == pytest.approx(sum(getattr(t, unit) for t in trials))
        left = sum(EPOCHS - t.epoch for t in trials if t.state == "pruned")
        assert stage["saved"] == {"epochs": left, "utterance_passes": 2.25 * left, "seconds": 10.0 * left}


def test_failures_tell_lost_trials_from_attempts_that_went_on() -> None:
    def broke(cause: str, error: str) -> dict[str, Any]:
        return {"attempt": 1, "cause": cause, "error": error, "time": ""}

    ended = {"error": "e2", "cause": "disk full", "failures": [broke("hung", "s"), broke("disk full", "e2")]}
    trials = [
        trial(0, 1, {}, [0.5], failures=[broke("hung", "silent")]),
        trial(1, 1, {}, [], "failed", **ended),
        trial(2, 1, {}, [0.5], "diverged", error="nan", cause="not finite"),
        trial(3, 1, {}, [0.5]),
    ]
    data = failures_data(view_of({1: trials}))
    assert {c["cause"]: (c["lost"], c["retried"], c["error"]) for c in data["causes"]} == {
        "disk full": ([1], [], "e2"),
        "not finite": ([2], [], "nan"),
        "hung": ([], [0, 1], "s"),
    }


def test_a_record_of_a_real_search_is_shown_to_the_last_digit() -> None:
    view = RunView.read(RunRecord(storage_path(STORED)))
    before = copy.deepcopy(view.trials)
    plots = {plot.name: plot for plot in search_plots(view)}
    assert view.trials == before
    assert_sound(list(plots.values()))
    assert {"history-stage1", "history-stage2", "slices-stage1", "curves-stage2", "cost"} <= plots.keys()
    for stage in (1, 2):
        kept = list(map(json.loads, (STORED / f"stage{stage}" / "trials.jsonl").read_text().splitlines()))
        data = plots[f"history-stage{stage}"].data
        assert [t["number"] for t in data["trials"]] == [t["number"] for t in kept]
        metric, better = ("valid/pairwise_acc", max) if stage == 1 else ("valid/mae", min)
        assert [t["objective"] for t in data["trials"]] == [better(m[metric] for m in t["curve"]) for t in kept]
        cost = plots["cost"].data["stages"][stage - 1]
        assert sum(c["epochs"] for c in cost["states"].values()) == sum(len(t["curve"]) for t in kept)
        for panel in plots[f"slices-stage{stage}"].data["panels"]:
            assert [p["value"] for p in panel["points"]] == [t["params"][panel["path"]] for t in kept]
    assert view.winner is not None and plots["curves-stage2"].data["number"] == view.winner.number


@pytest.mark.parametrize("space", [SPACE, {**SPACE, "stage1": {}, "stage2": {}}], ids=["space", "empty space"])
def test_a_run_with_nothing_to_show_yet(space: dict[str, Any]) -> None:
    assert search_plots(view_of({}, space=space)) == []
    started = trial(0, 1, first_stage(1)[0].params, [], "running")
    assert [plot.name for plot in search_plots(view_of({1: [started]}, space=space))] == ["history-stage1"]


def test_a_running_search_shows_what_it_has() -> None:
    first = first_stage(24, full=False)
    assert first[-1].state == "running"
    plots = search_plots(view_of({1: first}))
    assert [plot.name for plot in plots] == [*(f"{name}-stage1" for name in ONE_STAGE), "cost", "failures"]
    assert_sound(plots)


def test_a_search_of_one_stage_alone() -> None:
    """The direct baseline has a Stage 2 without finalists."""
    second = second_stage(20, first_stage(1))
    for each in second:
        del each.params["finalist"]
    winner = f"stage2/{rank(second)[0].number}"
    plots = search_plots(view_of({2: second}, space=SPACE | {"stage1": {}}, winner=winner))
    assert [plot.name for plot in plots] == [*(f"{name}-stage2" for name in ONE_STAGE), "cost"]
    assert_sound(plots)


def test_a_search_on_classes_is_judged_by_its_own_metric() -> None:
    second = second_stage(20, first_stage(1))
    for each in second:
        each.curve = [metrics | {"valid/bce": metrics.pop("valid/mae")} for metrics in each.curve]
    view = view_of({2: second}, data={"task": "classification", "label_range": [0.0, 1.0]})
    plots = {plot.name: plot for plot in search_plots(view)}
    assert plots["history-stage2"].data["metric"] == "bce" and "BCE" in plots["history-stage2"].caption
    assert plots["history-stage2"].data["trials"][-1]["best"] == view.ranked(2)[0].objective
    assert_sound(list(plots.values()))


def test_a_search_of_which_all_trials_failed() -> None:
    params = first_stage(1)[0].params
    lost = [trial(k, 1, params, [], "failed", error="boom", cause="error") for k in range(3)]
    lost += [trial(3, 1, params, [0.5], "diverged", error="nan", cause="not finite")]
    plots = search_plots(view_of({1: lost}))
    assert [plot.name for plot in plots] == ["history-stage1", "cost", "failures"]
    assert_sound(plots)
    drawn = plots[0].draw(plots[0].data)
    assert points(drawn, yaxis="y2") == 4 and points(drawn, yaxis="y") == 0


def test_hostile_text_is_data_and_is_drawn_literally() -> None:
    first = first_stage(24)
    for index, each in enumerate(first):
        each.params["model.modalities"] = HOSTILE if index % 2 else "all"
        each.params[HOSTILE] = float(index)
    bad = {"error": HOSTILE, "cause": HOSTILE}
    first.append(trial(24, 1, {"stage1.encoder_lr": "1e-5", "model.modalities": [1]}, [], "failed", **bad))
    first.append(trial(25, 1, {"stage1.encoder_lr": -1.0}, [0.5]))
    first.append(trial(26, 1, {"stage1.encoder_lr": float("nan"), HOSTILE: float("inf")}, [0.5]))
    for metrics in first[0].curve:
        metrics[f"loss/{HOSTILE}"] = 1.0
    for other in first[1:]:
        other.curve = [metrics | {"valid/pairwise_acc": 0.1} for metrics in other.curve[:2]]
    view = view_of({1: first})
    plots = search_plots(view)
    assert_sound(plots)
    by_name = {plot.name: plot for plot in plots}
    assert HOSTILE in by_name["parallel-stage1"].data["parameters"][1]["choices"]
    assert by_name["failures"].data["causes"][0]["error"] == HOSTILE
    assert HOSTILE in by_name["curves-stage1"].data["terms"]
    for plot in plots:
        drawn = json.dumps(plot.draw(plot.data).to_plotly_json(), default=list)
        assert "<a" not in drawn and "<b>" not in drawn, plot.name
        assert "\\u001b" not in drawn and "\\u202e" not in drawn and "\\ud800" not in drawn, plot.name
    templates = {
        trace.hovertemplate for plot in plots for trace in plot.draw(plot.data).data if "hovertemplate" in trace
    }
    assert all("evil" not in template for template in templates if template)


def test_labels_lose_their_section_where_none_is_mistaken() -> None:
    params = {"stage1.head_lr": 0.1, "stage1.margin": 0.2, "ranking.margin": 0.3, "finalist": "10"}
    unsearched = recorded_space({"dataset": "tiny", "fixed": {}, "stage1": {}, "stage2": {}}, "space")
    parameters = searched([trial(0, 1, params, [0.5]), trial(1, 1, params | {"finalist": "9"}, [0.5])], 1, unsearched)
    assert [parameter.label for parameter in parameters] == ["head_lr", "stage1.margin", "ranking.margin", "finalist"]
    assert parameters[3].scale == ("9", "10")


@pytest.mark.slow
def test_a_thousand_trials_in_either_stage() -> None:
    """With fANOVA at full depth the test would run into its timeout."""
    trials = {stage: _many(1000, stage) for stage in (1, 2)}
    scale = {"low": 1e-6, "high": 1e-2, "log": True, "start": 1e-4}
    sections = {f"stage{stage}": dict.fromkeys(many[0].params, scale) for stage, many in trials.items()}
    plots = search_plots(view_of(trials, space={"dataset": "tiny", "fixed": {}, **sections}, epochs=18))
    assert_sound(plots)
    assert len(plots) == 11


def _many(count: int, stage: int) -> list[TrialRecord]:
    rng = np.random.default_rng(stage)
    trials = []
    for number in range(count):
        unit = rng.random(10)
        params = {f"stage{stage}.p{k}": float(10 ** (-6 + 4 * u)) for k, u in enumerate(unit)}
        values: list[float | None] = [float(0.5 + unit[0] / 4 + unit[1] / 8 + rng.normal() / 50)] * 18
        trials.append(trial(number, 1 if stage == 1 else 2, params, values))
    return trials
