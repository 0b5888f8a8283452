"""What the gain of a search is worth: the estimates of a run, and the sentences that tell them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.figures.synthetic import trial, view_of
from report.stored import seeds_content
from synthetic_run import Run

from grcf_ray.report.coordinates import Coordinates
from grcf_ray.report.figures.worth import worth_plot
from grcf_ray.report.summary import Retrainings, RunSummary
from grcf_ray.report.text import text_report
from grcf_ray.report.view import RunView
from grcf_ray.report.worth import Interval, Worth, best_of
from grcf_ray.search.comparisons import compare, model_place, seeds_record
from grcf_ray.search.record import rank
from grcf_ray.statistics import expected_maximum


def finished(folder: Path, second: str, **more: Any) -> RunView:
    """A run with its best trial in best/."""
    run = Run(folder).start().trials(1, "c" * 4).trials(2, second)
    best = rank(run.record.trials(2))[0]
    return RunView.read(run.finish(best.name, **more).record)


def worth_of(view: RunView) -> Worth:
    worth = Worth.of(view)
    assert worth is not None
    return worth


def retrain(view: RunView, winner: list[float], start: list[float]) -> RunView:
    """Add retrainings of both sides with these validation MAEs; test is 0.1 worse."""
    assert view.winner is not None
    models = [
        {"arm": arm, "index": index, "seed": index, "valid": {"mae": mae}, "test": {"mae": mae + 0.1}}
        for arm, figures in (("winner", winner), ("start", start))
        for index, mae in enumerate(figures)
    ]
    content = {**seeds_content(view.winner.name), "models": models, "seeds": len(winner)}
    (view.record.place / "seeds" / "metrics.json").write_json({**content, **compare(models)})
    return RunView.read(view.record)


def test_a_search_with_enough_trials_is_taken_apart(tmp_path: Path) -> None:
    view = finished(tmp_path / "run", "c" * 24 + "pd")
    worth = worth_of(view)
    assert (worth.metric, worth.candidates, worth.trials, worth.complete, worth.retrainings) == ("mae", 25, 25, 24, 0)
    assert view.winner is not None and worth.figure == view.winner.objective
    assert worth.share and worth.seed_deviation and worth.corrected and worth.start and worth.best_start
    # The MAE follows the learning rate, with a noise of 0.005.
    assert worth.share.low > 0.9
    assert 0.003 < worth.seed_deviation.mean < 0.01
    assert worth.figure < worth.corrected.mean + 0.005
    first = view.trials[2][0].objective
    assert first is not None and worth.start.mean == pytest.approx(first, abs=0.02)
    # 4 and 24 trials of 3 epochs and two of 1 epoch, each epoch one pass, over 3 and 3 epochs of the starting point.
    assert worth.affordable == round(86 / 6)
    assert worth.best_start.mean < worth.start.mean
    assert worth.utterances == 40 and worth.paired_deviation is None and worth.validation_share is None
    plot = worth_plot(worth)
    assert plot is not None
    assert [row["value"] for row in plot.data["rows"]] == [
        worth.figure,
        worth.corrected.mean,
        worth.start.mean,
        worth.best_start.mean,
    ]
    assert plot.draw(plot.data).layout.height < 300
    lines = text_report(view).splitlines()
    for sentence in worth.sentences():
        assert len(sentence) <= 120 and sentence in " ".join(line.strip() for line in lines)
    assert RunSummary.of(view).as_json()["worth"] == worth.model_dump()


def test_nothing_is_told_apart_with_few_or_equal_trials(tmp_path: Path) -> None:
    view = finished(tmp_path / "few", "c" * 11 + "p" * 9)
    worth = worth_of(view)
    known = (worth.share, worth.seed_deviation, worth.corrected, worth.start, worth.best_start)
    assert known == (None,) * 5
    first, *_ = worth.sentences()
    assert first == "Too few trials to tell parameters from seeds: 11 trials are complete, 12 are needed."
    assert worth_plot(worth) is None
    whole = finished(tmp_path / "equal", "c" * 14)
    for one in whole.trials[2]:
        one.curve[:] = whole.trials[2][0].curve
        view.record.write_trial(one)
    equal = worth_of(whole)
    assert equal.share is None
    assert next(equal.sentences()).startswith("Parameters cannot be told from seeds")


def test_of_many_trials_enough_complete_ones_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random share of 15 of 60 trials, of which 13 are complete."""
    monkeypatch.setattr("grcf_ray.report.worth._MOST_TRIALS", 15)
    worth = worth_of(finished(tmp_path / "run", "c" + "p" * 47 + "c" * 12))
    assert worth.complete == 13 and worth.share


def test_without_a_measured_winner_there_is_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").start().trials(1, "cc").trials(2, "c" * 20)
    assert Worth.of(RunView.read(run.record)) is None
    assert RunSummary.of(RunView.read(run.record)).worth is None


def test_retrainings_measure_what_the_model_would_estimate(tmp_path: Path) -> None:
    few = retrain(finished(tmp_path / "few", "ccc"), [0.70, 0.72, 0.68], [0.75, 0.74, 0.76])
    worth = worth_of(few)
    assert worth.retrainings == 6 and worth.share is None
    assert worth.seed_deviation and worth.corrected and worth.start and worth.best_start and worth.affordable
    # Squares of 0.0008 and 0.0002 with 4 degrees of freedom.
    assert worth.seed_deviation.low < (0.001 / 4) ** 0.5 < worth.seed_deviation.high
    assert worth.corrected.mean == pytest.approx(0.70, abs=0.001)
    assert worth.start.mean == pytest.approx(0.75, abs=0.001)
    expected = worth.start.mean - expected_maximum(worth.affordable) * worth.seed_deviation.mean
    assert worth.best_start.mean == pytest.approx(expected)
    assert "(6 retrainings)" in " ".join(worth.sentences())
    many = worth_of(retrain(finished(tmp_path / "many", "c" * 24), [0.70, 0.72, 0.68], [0.75, 0.74, 0.76]))
    assert many.share and many.corrected and many.corrected.mean == pytest.approx(0.70, abs=0.002)
    single = worth_of(retrain(finished(tmp_path / "single", "ccc"), [0.70], [0.75]))
    assert single.seed_deviation is None and single.corrected is None and single.retrainings == 0


def test_the_best_of_the_seeds_is_chosen_on_valid(tmp_path: Path) -> None:
    view = retrain(finished(tmp_path / "run", "ccc"), [0.70, 0.68], [0.75, 0.76])
    seeds = RunSummary.of(view).seeds
    assert seeds is not None
    assert seeds.model_rows("mae") == [
        ("winner's parameters, best on valid", 0.68, pytest.approx(0.78)),
        ("starting point, best on valid", 0.75, pytest.approx(0.85)),
    ]
    lines = text_report(view).splitlines()
    rows = [" ".join(line.split()) for line in lines]
    assert rows[rows.index("from 2 seeds valid MAE test MAE") + 1] == "winner's parameters, best on valid 0.6800 0.7800"
    # Of a metric that rises, the largest.
    models = [
        {"arm": "winner", "index": index, "seed": 0, "valid": {"pairwise_acc": value}, "test": {}}
        for index, value in enumerate((0.7, 0.8))
    ]
    rising = Retrainings.model_validate({**seeds_content("stage1/0"), "models": models})
    assert rising.model_rows("pairwise_acc") == [("winner's parameters, best on valid", 0.8, None)]
    ensemble = {"start": {"valid": {"pairwise_acc": 0.9}, "test": {"pairwise_acc": 0.85}}}
    both = Retrainings.model_validate({**rising.model_dump(), "ensembles": ensemble})
    assert both.model_rows("pairwise_acc")[1:] == [("starting point, mean score", 0.9, 0.85)]


def test_retrained_models_tell_the_noise_of_a_difference(tmp_path: Path) -> None:
    view = retrain(finished(tmp_path / "run", "ccc"), [0.70, 0.72], [0.75, 0.74])
    assert view.winner is not None
    best = view.record.place / "best" / "predictions" / "valid.parquet"
    record = seeds_record(view.record, view.winner.name)
    content = Path(str(best)).read_bytes()
    # Stage 2's trial 1 is the winner's, since it starts from a winner's trial of Stage 1; trial 0 is the other arm's.
    for number, finalist in enumerate(("3", "2")):
        one = dataclasses.replace(view.trials[2][0], number=number, params={"finalist": finalist})
        record.write_trial(one)
        folder = model_place(record, one, last=2)
        (folder / "metrics.json").write_json({})
        with (folder / "predictions" / "valid.parquet").writing() as path:
            path.write_bytes(content if finalist == "2" else b"not read")
    # The same predictions have no difference.
    worth = worth_of(view)
    assert worth.paired_deviation == pytest.approx(0, abs=1e-9) and worth.validation_share == pytest.approx(0)
    assert list(worth.sentences())[-1].endswith(", and differences by 0.000 (0% of the noise of seeds).")
    assert worth.seed_deviation is not None
    noisy = worth.model_copy(update={"paired_deviation": worth.seed_deviation.mean})
    assert noisy.validation_share == pytest.approx(0.5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_best_of_some_seeds_lies_in_its_interval(sign: float) -> None:
    rng = np.random.default_rng(0)
    best = best_of(8, sign, np.full(4000, 0.8), np.full(4000, 0.02), rng)
    drawn = 0.8 + 0.02 * rng.standard_normal((4000, 8))
    truth = drawn.min(axis=1) if sign > 0 else drawn.max(axis=1)
    assert best.mean == pytest.approx(truth.mean(), abs=0.001)
    assert np.mean((best.low <= truth) & (truth <= best.high)) == pytest.approx(0.95, abs=0.02)


def test_coordinates_are_places_in_the_searched_ranges() -> None:
    firsts = [trial(number, 1, {}, [0.6 + 0.1 * number]) for number in range(3)]
    params = [
        {"stage2.encoder_top_lr": 1e-6, "stage2.head_lr": 1e-3, "finalist": "2"},
        {"stage2.encoder_top_lr": 1e-4, "stage2.head_lr": 1e-3, "finalist": "1"},
        {"stage2.encoder_top_lr": 1e-2, "stage2.head_lr": 1e-3, "finalist": "2"},
    ]
    seconds = [trial(number, 2, values, [0.8]) for number, values in enumerate(params)]
    places = Coordinates(view_of({1: firsts, 2: seconds}), 2, seconds)
    # head_lr is the same everywhere; a finalist is its Stage 1 objective.
    assert [places.of(one) for one in seconds] == [pytest.approx(at) for at in ([0, 1], [0.5, 0], [1, 1])]
    # The starting point of both stages has Stage 1's first trial, which is below the worst finalist.
    assert places.start is not None and places.of(places.start) == pytest.approx([0, 0])
    assert places.of(dataclasses.replace(seconds[0], params={"finalist": "2"})) is None
    choices = [trial(number, 1, {"model.modalities": name}, [0.7]) for number, name in enumerate(("text", "all"))]
    places = Coordinates(view_of({1: choices}), 1, choices)
    apart = np.array(places.of(choices[0])) - np.array(places.of(choices[1]))
    assert np.linalg.norm(apart) == pytest.approx(1)
    same = Coordinates(view_of({1: choices[:1]}), 1, choices[:1])
    assert same.of(choices[0]) == [0.0]


def test_an_interval_is_written_as_the_reports_do() -> None:
    assert Interval(mean=0.8291, low=0.815, high=0.842).text() == "0.829 [0.815, 0.842]"
    assert Interval(mean=0.4, low=0.1, high=0.7).text(".0%") == "40% [10%, 70%]"
