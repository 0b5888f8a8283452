"""The summary of a run, and the result of a search that its terminal shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report.stored import measured_as_mosi, record_of, seeds_content

from grcf_ray.data import datasets
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.summary import RunSummary
from grcf_ray.report.terminal import print_result
from grcf_ray.report.view import RunView

SINGLE = {"mean": 0.7, "deviation": None, "half_width": None}
THREE = {"mean": 0.7, "deviation": 0.02, "half_width": 0.05}


@pytest.fixture
def summary(stored_run: Path) -> RunSummary:
    return RunSummary.of(RunView.read(record_of(stored_run)))


def remarks(summary: RunSummary, **changes: Any) -> str:
    return "\n".join(RunSummary.model_validate({**summary.as_json(), **changes}).remarks())


def test_it_has_the_figures_the_states_and_the_cost_of_the_record(summary: RunSummary, stored_run: Path) -> None:
    values, record = summary.as_json(), record_of(stored_run)
    metrics = json.loads((stored_run / "best" / "metrics.json").read_text())
    for name in ("valid", "test", "paper", "not_comparable", "baselines"):
        assert values[name] == metrics[name]
    assert values["winner"]["trial"] == metrics["trial"]
    assert values["command"] == record.read_run()["starts"][-1]["command"]
    assert values["test_seen_before_selection_ended"] is False
    assert (summary.state, summary.seeds, summary.against_baseline) == ("finished", None, None)
    trials = [*record.trials(1), *record.trials(2)]
    assert summary.cost.epochs == sum(t.epoch for t in trials)
    assert summary.cost.utterance_passes == sum(t.utterance_passes for t in trials)
    for stage in (1, 2):
        part = summary.stages[f"stage{stage}"]
        assert part.trials == sum(part.states.values()) == len(record.trials(stage))
        assert [best.trial for best in part.best] == [t.number for t in record.ranked(stage)[:3]]
        assert part.failures == []


@pytest.mark.parametrize(
    ("task", "metric", "kind"), [("regression", "mae", "ridge"), ("classification", "bce", "logistic")]
)
def test_a_baseline_that_is_better_is_said_to_be(summary: RunSummary, task: str, metric: str, kind: str) -> None:
    name = f"{kind} regression on the frozen text vectors"
    baseline = {"name": name, "alpha": 1.0, "valid": {}, "test": {metric: 0.6}}
    better = f"{kind.capitalize()} regression has the better test {metric.upper()}: 0.6000 against"
    for winner, worse in ((0.7, True), (0.6, False), (0.5, False)):
        text = remarks(summary, task=task, baselines=[baseline], test={metric: winner})
        assert f"Baseline: {name} of the same encoder, alpha 1" in text
        assert (f"{better} {winner:.4f}." in text) == worse
        assert "ridge" not in text.lower() or kind == "ridge"
    changed = RunSummary.model_validate({**summary.as_json(), "baselines": [baseline]})
    assert list(changed.metric_columns()) == ["valid", "test", f"{kind} regression, test"]


def test_what_a_reader_has_to_know(summary: RunSummary) -> None:
    assert "optimistic: the best of 11 trials." in remarks(summary)
    assert "Test was seen" not in remarks(summary) and "Paper" not in remarks(summary)
    assert "Test was seen before selection ended" in remarks(summary, test_seen_before_selection_ended=True)
    paper = dict(datasets.get("mosi").paper_results)
    reasons = ["backbone tiny-bert", "no vision"]
    assert "Paper: not comparable: backbone tiny-bert; no vision." in remarks(
        summary, paper=paper, not_comparable=reasons
    )
    assert "Paper: one seed." in remarks(summary, paper=paper, not_comparable=[])
    whole = remarks(summary, test={"acc_whole": 0.54}, label_range=[1.0, 5.0])
    assert "scores and labels rounded to the nearest of 5 labels, 1, 2, 3, 4, 5." in whole
    assert datasets.TWO_READINGS in remarks(summary, paper=dict(datasets.get("sims_v2").paper_results))
    mosi = RunSummary.model_validate(measured_as_mosi(summary))
    assert list(mosi.metric_columns()) == ["valid", "test", "ridge regression, test", "paper, test"]
    assert ("acc2_non0", [None, 0.85, None, 0.903]) in mosi.metric_rows()


@pytest.mark.parametrize(
    ("estimate", "trained", "row", "few"),
    [
        (THREE, (3, 5), ("0.7000 ± 0.0200", "0.7500 ± 0.0200", "-0.0500 [-0.1000, +0.0000]"), True),
        (THREE, (5, 5), ("0.7000 ± 0.0200", "0.7500 ± 0.0200", "-0.0500 [-0.1000, +0.0000]"), False),
        # Of one seed there is neither a deviation nor an interval.
        (SINGLE, (1, 1), ("0.7000", "0.7500", "-"), True),
    ],
)
def test_estimates_stand_side_by_side(
    summary: RunSummary, estimate: dict[str, Any], trained: tuple[int, int], row: tuple[str, ...], few: bool
) -> None:
    """Those of retrainings, and those of the two-stage and the one-stage search."""
    first, second = {"mae": estimate}, {"mae": {**estimate, "mean": 0.75}}
    gain = {"mae": {**estimate, "mean": -0.05}}
    arms = {
        arm: {"trained": count, "valid": {}, "test": test}
        for arm, count, test in zip(("winner", "start"), trained, (first, second), strict=True)
    }
    seeds = {"schema_version": 2, "winner": "stage2/4", "complete": True, "models": [], "seeds": min(trained)}
    against = {"runs": {}, "seeds": min(trained), "two-stage": first, "direct": second, "gain": gain}
    changed = RunSummary.model_validate(
        {**summary.as_json(), "seeds": {**seeds, "arms": arms, "gain": gain}, "against_baseline": against}
    )
    assert changed.seeds is not None and changed.against_baseline is not None
    assert changed.seeds.comparison().text_rows() == [("MAE", *row)]
    assert changed.against_baseline.comparison("MAE").text_rows() == [("MAE", *row)]
    warning = f"Too few seeds for a claim: {min(trained)}; use at least 5." if few else None
    assert changed.seeds.warning == changed.against_baseline.warning == warning


def test_the_ensemble_stands_beside_the_winner(summary: RunSummary) -> None:
    assert summary.ensemble is None and "ensemble" not in "".join(summary.remarks()).lower()
    ensemble = {"members": ["stage2/4", "stage2/1", "stage2/0"], "valid": {"mae": 0.6}, "test": {"mae": 0.7}}
    changed = RunSummary.model_validate({**summary.as_json(), "ensemble": ensemble})
    assert changed.as_json()["ensemble"] == ensemble
    assert list(changed.metric_columns())[:3] == ["valid", "test", "ensemble of 3, test"]
    assert dict(changed.metric_rows())["mae"][2] == 0.7
    (remark,) = [remark for remark in changed.remarks() if remark.startswith("Ensemble: ")]
    assert "stage2/4, stage2/1 and stage2/0" in remark and "optimistic" in remark


def test_every_metric_of_the_paper_has_a_title() -> None:
    for name in datasets.names():
        assert datasets.get(name).paper_results.keys() <= METRIC_TITLES.keys()


@pytest.fixture
def values(runs: Path) -> dict[str, Any]:
    """The summary of the finished run in runs/, with the metrics of a run on MOSI."""
    return measured_as_mosi(RunSummary.of(RunView.read(record_of(runs / "recorded"))))


def printed(capsys: pytest.CaptureFixture[str], values: dict[str, Any], **changes: Any) -> str:
    print_result(RunSummary.model_validate({**values, **changes}))
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    return out


def test_the_metrics_stand_beside_the_baseline_and_the_paper(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, values)
    rows = {tuple(line.split()[:1]): line.split() for line in out.splitlines() if line}
    assert rows["metric",] == ["metric", "valid", "test", "ridge", "regression,", "test", "paper,", "test"]
    assert rows["MAE",] == ["MAE", "0.7100", "0.7200", "0.9000", "0.5810"]
    assert rows["Corr",] == ["Corr", "0.8000", "0.7900", "-", "0.8660"]
    assert rows["Acc2",] == ["Acc2", "(non-zero)", "-", "0.8500", "-", "0.9030"]
    for remark in RunSummary.model_validate(values).remarks():
        assert f"{remark}\n" in out
    out = printed(capsys, values, paper={}, not_comparable=[], baselines=[])
    assert "paper" not in out.lower() and "ridge" not in out.lower()


def test_it_names_the_winner_its_settings_its_places_and_the_next_commands(
    values: dict[str, Any], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, values)
    place = "runs/recorded"
    assert f"Winner: trial {record_of(runs / 'recorded').ranked(2)[0].name}\n" in out
    for path in ("stage2.head_lr", "ranking.intra_margin", "finalist"):
        assert f"\n{path} " in out
    for line in (
        f"Model:  {place}/best",
        f"Record: {place}/stage1/trials.jsonl, {place}/stage2/trials.jsonl",
        f"python -m grcf_ray.evaluate {place}",
        f"tensorboard --logdir {place}/tensorboard",
    ):
        assert line in out
    assert max(map(len, out.splitlines())) <= 120


def test_the_next_commands_can_be_typed_as_they_stand(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """With spaces in the run's folder, and with the endpoint that an object store is asked by."""
    assert printed(capsys, values, run="my runs/a", uri="my runs/a").splitlines()[-2:] == [
        "Next:   python -m grcf_ray.evaluate 'my runs/a'",
        "        tensorboard --logdir 'my runs/a/tensorboard'",
    ]
    store = "s3://bucket/runs/a"
    lines = printed(capsys, values, run=store, uri=f"{store}?endpoint_override=host:9000").splitlines()
    assert f"Model:  {store}/best" in lines
    assert lines[-2] == f"Next:   python -m grcf_ray.evaluate '{store}?endpoint_override=host:9000'"


def test_failures_are_listed_by_cause_with_the_command_that_runs_one_again(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    values["stages"]["stage1"]["failures"] = [
        {"cause": "hung", "trials": list(range(12)), "error": "no epoch ended within 1 minutes"},
        {"cause": "not finite", "trials": [13], "error": "the loss\nis no longer finite"},
    ]
    again = "  again: python -m grcf_ray.train --from runs/recorded --trial"
    assert (
        "\nhung: trial 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more: no epoch ended within 1 minutes\n"
        f"{again} stage1/11\nnot finite: trial 13: the loss is no longer finite\n{again} stage1/13\n"
    ) in printed(capsys, values)


def test_retrainings_and_the_one_stage_search_stand_side_by_side(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = seeds_content("stage2/4")
    first, second = (seeds["arms"][arm]["test"] for arm in ("winner", "start"))
    against = {"runs": {}, "seeds": 3, "two-stage": first, "direct": second, "gain": seeds["gain"]}
    out = printed(capsys, values, seeds=seeds, against_baseline=against)
    assert "under 3 fresh seeds" in out
    assert "Two stages against MAE alone" in out and "Stage 2 inherits" in out
    assert out.count("MAE     0.7000 ± 0.0200  0.7500 ± 0.0200  -0.0500 [-0.0700, -0.0300]") == 2
    assert out.count("\nToo few seeds for a claim: 3") == 2


def test_an_unfinished_search_says_how_to_resume(values: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    command = "python -m grcf_ray.search --dataset tiny"
    out = printed(capsys, values, state="time is up", command=command)
    assert f"The time was up before every trial had ended. To resume: {command}\n" in out
    assert "The time was up" not in printed(capsys, values)


def test_what_failures_outside_the_trials_left_is_said(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = "python -m grcf_ray.search --dataset tiny"
    out = printed(
        capsys, values, state="unfinished", command=command, left=["stage1/3", "stage2/0"], excluded=["a (10.0.0.1)"]
    )
    assert "Nodes that got no more trials after failures there: a (10.0.0.1).\n" in out
    assert "Left unfinished after failures of nodes, storage or hub: stage1/3, stage2/0." in out
    assert f"To run the unfinished trials: {command}\n" in out
    plain = printed(capsys, values)
    assert "Nodes that" not in plain and "unfinished" not in plain
