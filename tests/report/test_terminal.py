"""The result of a search as its terminal shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report.stored import measured_as_mosi, record_of, seeds_content

from grcf_ray.report.summary import RunSummary
from grcf_ray.report.terminal import print_result
from grcf_ray.report.view import RunView


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
