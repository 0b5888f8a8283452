"""The study of real searches: its units of work, and its tables from known figures."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

import pytest
import real_searches
from real_searches import BEST_SEED, OTHERS, REPEATED, Bench
from recording import Source
from scipy import stats
from simulated_searches import Prediction, pooled_deviation, simulation_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from grcf_ray.data.store import DatasetStore

TESTS = {
    "default": (0.80, 0.82, 0.84),
    "random search": (0.81, 0.84, 0.84),
    BEST_SEED: (0.82, 0.83, 0.86),
    **{policy.name: (0.83,) for policy in OTHERS},
}


def figures(test: float, passes: float = 100.0) -> dict[str, Any]:
    """The figures of a search; its errors, those of a training besides."""
    return {
        "valid": test - 0.01,
        "test": test,
        "passes": passes,
        "seconds": 3 * passes,
        "trial_seconds": 5 * passes,
        "ensemble": {"valid": test - 0.02, "test": test * 0.95},
        "errors": {"valid": [test - 0.01, 0.01 - test], "test": [test, -test]},
    }


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder in which every search and training is finished."""
    for name, tests in TESTS.items():
        for repeat, test in enumerate(tests, 1):
            if name != BEST_SEED:
                place = tmp_path / f"{name.replace(' ', '-')}-{repeat}.json"
                place.write_text(json.dumps(figures(test)))
                continue
            # Three trainings of 30 passes fit 100. The last one is the best.
            for number in range(4):
                place = tmp_path / f"start-{repeat}-{number}.json"
                place.write_text(json.dumps(figures(test + 0.1 * (2 - number), passes=30.0)))
    return tmp_path


@pytest.mark.parametrize("as_is", [False, True])
def test_what_is_finished_is_not_done_again(work: Path, as_is: bool) -> None:
    results = Bench(Source("demo", None, None, work), 2, as_is).results(3, 1)
    assert {name: [f["test"] for f in of.values()] for name, of in results.items()} == {
        name: pytest.approx(tests) for name, tests in TESTS.items()
    }
    best = results[BEST_SEED][1]
    assert {name: best[name] for name in ("valid", "test", "passes", "seconds")} == pytest.approx(
        {"valid": 0.81, "test": 0.82, "passes": 90, "seconds": 135}
    )
    # The three trainings have 0.82, 0.92 and 1.02 on test.
    assert best["ensemble"] == pytest.approx({"valid": 0.91, "test": 0.92})


def test_what_is_not_finished_is_left_out_or_done(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("random-search-3", "start-2-1"):
        (work / f"{name}.json").unlink()
    source, started = Source("demo", None, None, work), []
    results = Bench(source, 2, as_is=True).results(3, 1)
    assert list(results["random search"]) == [1, 2]
    assert list(results[BEST_SEED]) == [1, 3]

    def search(words: Sequence[str], folder: Path) -> None:
        started.append(words)
        folder.mkdir(parents=True)

    def train(_: Any, jobs: Sequence[tuple[Any, ...]], **__: Any) -> None:
        for _, _, place in jobs:
            started.append(place.stem)
            place.write_text(json.dumps(figures(0.5, passes=30.0)))

    monkeypatch.setattr(real_searches, "_run", search)
    monkeypatch.setattr(real_searches, "run_all", train)
    monkeypatch.setattr(real_searches, "open_run", lambda folder: folder)
    monkeypatch.setattr(real_searches, "figures_of", lambda folder: figures(0.7))
    results = Bench(source, 2).results(3, 1)
    assert results["random search"][3]["test"] == 0.7 and results[BEST_SEED][2]["test"] == 0.5
    training, words = started
    assert training == "start-2-1"
    assert words[0] == REPEATED[1].program[0] and words[-1] == "random-search-3"
    assert words[words.index("--seed") + 1] == "3"
    assert not (work / "runs" / "random-search-3").exists()


def test_settings_are_given_as_the_command_reads_them(tmp_path: Path) -> None:
    bench = Bench(Source("demo", tmp_path, None, tmp_path), 2)
    assert bench._options(OTHERS[0], 4)[-4:] == ["--data", str(tmp_path), "--set", "search.pruning=false"]


def test_delivered_models_are_compared_by_repeat(work: Path) -> None:
    results = Bench(Source("demo", None, None, work), 2, as_is=True).results(3, 1)
    rows, ensembles = (
        {row["name"]: row for row in table.rows} for table in real_searches.delivered_tables(results, "MAE")
    )
    gain = stats.ttest_rel(TESTS["random search"], TESTS["default"]).confidence_interval(0.95)
    assert (rows["random search"]["low"], rows["random search"]["high"]) == pytest.approx(gain)
    assert rows["random search"]["difference"] == pytest.approx(0.01)
    assert rows["default"]["deviation"] == pytest.approx(0.02) and "difference" not in rows["default"]
    assert rows["one finalist"]["searches"] == 1 and "deviation" not in rows["one finalist"]
    assert rows[BEST_SEED]["passes"] == 90
    ensemble = rows[f"default: {real_searches.ENSEMBLE}"]
    assert (ensemble["test"], ensemble["valid"], ensemble["difference"]) == pytest.approx((0.779, 0.80, -0.041))
    assert list(ensembles) == ["default", "random search", BEST_SEED]
    assert ensembles["default"]["test"] == pytest.approx(0.779) and "difference" not in ensembles["default"]
    gain = stats.ttest_rel([0.92, 0.93, 0.96], [0.76, 0.779, 0.798]).confidence_interval(0.95)
    assert (ensembles[BEST_SEED]["low"], ensembles[BEST_SEED]["high"]) == pytest.approx(gain)


def test_interval_holds_the_next_value_as_often_as_it_says() -> None:
    values = stats.norm.rvs(size=(2000, 6), random_state=0)
    held = [Prediction.of(row[:5].tolist()).covers(row[5]) for row in values]
    assert statistics.fmean(held) == pytest.approx(0.9, abs=0.02)


def test_deviation_within_groups() -> None:
    assert pooled_deviation([[1.0, 3.0], [10.0, 10.0, 13.0], [7.0]]) == pytest.approx(((2 + 6) / 3) ** 0.5)
    assert pooled_deviation([[1.0], [2.0]]) == 0


def test_simulated_searches_against_real_ones() -> None:
    def searches(*valid_and_passes: tuple[float, float], pace: float = 1.0) -> list[dict[str, float]]:
        return [
            {"valid": valid, "passes": passes, "seconds": pace * passes / 2, "trial_seconds": pace * passes}
            for valid, passes in valid_and_passes
        ]

    def by_repeat(found: Sequence[Mapping[str, float]]) -> dict[int, Mapping[str, float]]:
        return dict(enumerate(found, 1))

    real = {
        "default": by_repeat(searches((0.80, 100), (0.82, 110), pace=4)),
        "random search": by_repeat(searches((0.90, 120), pace=4)),
        "one finalist": by_repeat(searches((0.84, 130), pace=4)),
    }
    simulated = {
        "default": searches((0.80, 100), (0.81, 104), (0.82, 108)),
        "random search": searches((0.81, 118), (0.82, 120), (0.83, 122)),
        "one finalist": searches((0.83, 128), (0.84, 130), (0.85, 132)),
    }
    policies, verdict = simulation_tables(real, simulated, "MAE")
    passes, seconds, valid = verdict.rows
    assert [row["covered"] for row in verdict.rows] == ["4 of 4", "4 of 4", "3 of 4"]
    assert passes["order"] == pytest.approx(1) and valid["order"] == pytest.approx(0.5)
    half_widths = [stats.t.ppf(0.95, 2) * (4 / 3) ** 0.5 * deviation for deviation in (4, 2, 2)]
    real_half_width = stats.norm.ppf(0.95) * statistics.stdev((100, 110))
    assert passes["width"] == pytest.approx(statistics.fmean(half_widths) / (2 * real_half_width))
    # A real pass takes four times as long; with that known, the seconds are those of the passes.
    assert seconds["width"] == pytest.approx(passes["width"])
    rows = {(row["figure"], row["name"]): row for row in policies.rows}
    assert rows["MAE on valid", "random search"]["covered"] == "0 of 1"
    assert rows["passes", "default"]["real"] == "105" and rows["seconds", "default"]["real"] == "210"
    # One policy has no order, and one search no spread.
    alone = simulation_tables(
        {"one finalist": real["one finalist"]}, {"one finalist": simulated["one finalist"]}, "MAE"
    )
    assert [(row["width"], row["order"]) for row in alone[1].rows] == [(None, None)] * 3


def test_a_training_of_the_starting_point(tiny_store: DatasetStore, tiny_space: Path, tmp_path: Path) -> None:
    source, place = Source("tiny", tiny_store.folder, tiny_space, tmp_path), tmp_path / "start-1-0.json"
    real_searches.train_start(source, [1, 0], place)
    (trained,) = Bench(source, 2)._trainings([1, 0])
    assert trained.keys() == {"valid", "test", "passes", "seconds", "errors"}
    assert trained["valid"] != trained["test"] and min(trained["passes"], trained["seconds"]) > 0
    for split, errors in trained["errors"].items():
        assert len(errors) == tiny_store.info.splits[split]
        assert statistics.fmean(map(abs, errors)) == pytest.approx(trained[split], abs=1e-3)
