"""The summary of a run, from which the terminal, the page and the card are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report.stored import measured_as_mosi, record_of

from grcf_ray.data import datasets
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.summary import RunSummary
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
    warning = f"Too few seeds for a claim: {min(trained)}, and 5 are the least." if few else None
    assert changed.seeds.warning == changed.against_baseline.warning == warning


def test_every_metric_of_the_paper_has_a_title() -> None:
    for name in datasets.names():
        assert datasets.get(name).paper_results.keys() <= METRIC_TITLES.keys()
