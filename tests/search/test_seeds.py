"""The retrainings under fresh seeds: what they are, what they come to, and that they go on as a search does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from grcf_ray.data.store import DatasetStore
from grcf_ray.search.comparisons import (
    against_baseline,
    arm_of,
    compare,
    model_place,
    retrainings,
    seeds_record,
    winner_models,
)
from grcf_ray.search.events import Event, RetrainingsStarted, TrialEnded, TrialStarted
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.schema import ModelMetricsFile, read_file
from grcf_ray.search.seeds import SeedTrials, retrain
from grcf_ray.search.stages import config_of
from grcf_ray.search.stopping import Stop
from grcf_ray.search.winner import MEASURED
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from grcf_ray.search.stages import Search
    from tests.conftest import Recorded

ARMS = {"winner": {1: {"a": 1}, 2: {"b": 2}}, "start": {1: {"a": 10}, 2: {"b": 20}}}


def models(winner: dict[int, float], start: dict[int, float]) -> list[dict[str, Any]]:
    """Of each arm the test MAE by index; validation is twice as good."""
    return [
        {"arm": arm, "index": index, "test": {"mae": value}, "valid": {"mae": value / 2}}
        for arm, entries in (("winner", winner), ("start", start))
        for index, value in entries.items()
    ]


def test_a_worked_example() -> None:
    """Gains of -0.05, -0.02 and -0.08; the t quantile of two degrees of freedom is 4.3027."""
    compared = compare(models({0: 0.70, 1: 0.72, 2: 0.68}, {0: 0.75, 1: 0.74, 2: 0.76}))
    assert compared["arms"]["winner"]["trained"] == 3
    winner, start = (compared["arms"][arm]["test"]["mae"] for arm in ("winner", "start"))
    assert (winner["mean"], winner["deviation"]) == (pytest.approx(0.70), pytest.approx(0.02))
    assert (start["mean"], start["deviation"]) == (pytest.approx(0.75), pytest.approx(0.01))
    gain = compared["gain"]["mae"]
    assert gain["mean"] == pytest.approx(-0.05)
    assert gain["deviation"] == pytest.approx(0.03)
    assert gain["half_width"] == pytest.approx(4.302653 * 0.03 / 3**0.5, rel=1e-6)
    assert compared["arms"]["winner"]["valid"]["mae"]["mean"] == pytest.approx(0.35)


def test_only_pairs_make_a_gain() -> None:
    """A retraining may diverge; its partner still counts in its arm. A metric that some lack is left out."""
    entries = models({0: 0.70, 1: 0.72, 2: 0.68}, {0: 0.75, 2: 0.76})
    for entry in entries[1:]:
        entry["test"]["corr"] = 0.5
    compared = compare(entries)
    assert (compared["arms"]["winner"]["trained"], compared["arms"]["start"]["trained"]) == (3, 2)
    assert compared["arms"]["winner"]["test"]["mae"]["mean"] == pytest.approx(0.70)
    assert compared["gain"]["mae"]["mean"] == pytest.approx((-0.05 - 0.08) / 2)
    assert [set(compared["arms"][arm]["test"]) for arm in ("winner", "start")] == [{"mae"}, {"mae", "corr"}]
    assert set(compared["gain"]) == {"mae"}


def test_one_pair_has_a_mean_alone_and_none_has_nothing() -> None:
    single = compare(models({0: 0.70}, {0: 0.75}))
    assert single["gain"]["mae"] == {"mean": pytest.approx(-0.05), "deviation": None, "half_width": None}
    none = compare([])
    assert none["gain"] == {}
    assert none["arms"]["winner"] == {"trained": 0, "valid": {}, "test": {}}


def test_even_numbers_are_the_winner_and_odd_ones_the_start_under_the_same_seed() -> None:
    trials = SeedTrials(42, 3, ARMS)
    first = trials.params(1, ())
    assert [params["a"] for params in first] == [1, 10] * 3
    seeds = [trials.seed_for(1, params, number) for number, params in enumerate(first)]
    assert seeds[0::2] == seeds[1::2]
    assert len(set(seeds)) == 3
    # As Stage 1 ranked them; one arm of the second seed has not come through.
    second = trials.params(2, ("4", "0", "5", "1", "2"))
    assert second == [
        {"b": 2, "finalist": "4"},
        {"b": 2, "finalist": "0"},
        {"b": 20, "finalist": "5"},
        {"b": 20, "finalist": "1"},
        {"b": 2, "finalist": "2"},
    ]
    # More finalists leave the earlier trials where they are.
    assert trials.params(2, ("4", "0")) == second[:2]
    by_finalist = {int(p["finalist"]): trials.seed_for(2, p, number) for number, p in enumerate(second)}
    assert by_finalist[0] == by_finalist[1]
    assert by_finalist[4] == by_finalist[5]
    assert len({*seeds, *by_finalist.values()}) == 6
    # Without Stage 1.
    assert SeedTrials(42, 2, ARMS).params(2, ()) == [{"b": 2}, {"b": 20}] * 2


def test_seeds_are_the_runs_and_none_of_its_trials(recorded: Recorded) -> None:
    first, second = SeedTrials(42, 5, ARMS), SeedTrials(43, 5, ARMS)
    seeds = {t.seed_for(stage, {}, number) for t in (first, second) for stage in (1, 2) for number in range(10)}  # type: ignore[arg-type]
    assert len(seeds) == 2 * 2 * 5
    record = RunRecord(storage_path(recorded.folder))
    assert not seeds & {trial.seed for stage in (1, 2) for trial in record.trials(stage)}


@pytest.fixture
def store(recorded: Recorded) -> DatasetStore:
    return DatasetStore.open(recorded.data)


@pytest.fixture
def finished(
    recorded: Recorded, make_search: Callable[..., Search], tmp_path: Path
) -> Callable[..., tuple[Search, TrialRecord]]:
    """The recorded search, to retrain its winner for an epoch each; what it made before is kept."""
    shutil.copytree(recorded.folder, tmp_path / "run")

    def make(*listeners: Any, **more: Any) -> tuple[Search, TrialRecord]:
        search = make_search({"stage1.epochs": 2, "stage2.epochs": 2}, *listeners, **more)
        return search, search.record.ranked(2)[0]

    return make


def test_retraining(finished: Callable[..., tuple[Search, TrialRecord]], store: DatasetStore) -> None:
    """Stopped in Stage 2 of one seed, gone on with under two, and asked for again."""
    stop = Stop()
    seen: list[Event] = []

    def stop_in_stage_2(event: Event) -> None:
        seen.append(event)
        if isinstance(event, TrialEnded) and event.trial.stage == 2:
            stop.requested = True

    search, winner = finished(stop_in_stage_2, stop=stop)
    reads = search.record.place / "best" / "provenance.json"
    assert len(reads.read_json()["test_reads"]) == 1
    with pytest.raises(KeyboardInterrupt):
        retrain(search, winner, 1, store)
    record = seeds_record(search.record, f"stage2/{winner.number}")
    assert isinstance(seen[0], RetrainingsStarted)
    assert [t.state for t in record.trials(1)] == ["complete"] * 2
    assert [t.finished for t in record.trials(2)][:1] == [True]
    assert retrainings(search.record, f"stage2/{winner.number}") is None
    assert len(reads.read_json()["test_reads"]) == 1

    # The time budget is the search's: with none left, no trial of it starts, and every retraining does.
    seen.clear()
    search, winner = finished(seen.append, stop=Stop(time_budget=0))
    searched = [trial.number for stage in (1, 2) for trial in search.record.trials(stage)]
    assert search.run() == winner
    before = {(t.stage, t.number): (t.seed, t.params, t.curve) for stage in (1, 2) for t in record.trials(stage)}
    metrics = retrain(search, winner, 2, store)
    assert [trial.number for stage in (1, 2) for trial in search.record.trials(stage)] == searched
    assert [(t.stage, t.number) for t in started_of(seen)] == [(1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    after = {key: record.trial(*key) for key in before}
    assert {key: (t.seed, t.params, t.curve[: len(before[key][2])]) for key, t in after.items()} == before
    check(search, record, winner, metrics, 2)
    *_, read = reads.read_json()["test_reads"]
    assert len(reads.read_json()["test_reads"]) == 2
    assert (read["command"], read["models"]) == ("search --seeds", [f"seeds/stage2/{number}" for number in range(4)])

    seen.clear()
    assert retrain(search, winner, 2, store) == metrics
    assert started_of(seen) == []
    assert len(reads.read_json()["test_reads"]) == 2

    # People may delete predictions, which hold the texts.
    gone = next(trial for trial in record.trials(2) if arm_of(trial) == "winner")
    (model_place(record, gone, last=2) / "predictions").delete()
    assert retrain(search, winner, 2, store)["ensembles"] == {"start": metrics["ensembles"]["start"]}


def started_of(events: list[Event]) -> list[TrialRecord]:
    return [event.trial for event in events if isinstance(event, TrialStarted)]


def check_ensembles(record: RunRecord, metrics: dict[str, Any]) -> None:
    """Of each arm, the mean absolute error of the mean score."""
    for remainder, arm in enumerate(("winner", "start")):
        for split in ("valid", "test"):
            tables = [
                pq.read_table(f"{record.place}/models/{trial.number:04d}/predictions/{split}.parquet")
                for trial in record.trials(2)
                if int(trial.params["finalist"]) % 2 == remainder
            ]
            assert len(tables) == metrics["seeds"]
            labels = tables[0]["label"].to_numpy()
            error = np.abs(np.mean([table["score"].to_numpy() for table in tables], axis=0) - labels).mean()
            assert metrics["ensembles"][arm][split]["mae"] == pytest.approx(error, abs=1e-6)


def check(search: Search, record: RunRecord, winner: TrialRecord, metrics: dict[str, Any], seeds: int) -> None:
    """Both arms of each seed are trained through both stages, each with its own settings, and measured."""
    first, second = record.trials(1), record.trials(2)
    assert [t.state for t in first + second] == ["complete"] * 4 * seeds
    assert sorted(int(t.params["finalist"]) for t in second) == list(range(2 * seeds))
    settings: Sequence[tuple[Literal[1, 2], list[TrialRecord]]] = ((1, first), (2, second))
    inherited = search.record.trial(1, int(winner.params["finalist"])).params
    tuned_params = {path: value for path, value in winner.params.items() if path != "finalist"}
    for stage, trials in settings:
        by_number = {int(t.params.get("finalist", t.number)): t for t in trials}
        for index in range(seeds):
            tuned, plain = by_number[2 * index], by_number[2 * index + 1]
            assert tuned.seed == plain.seed
            compared = {path: value for path, value in tuned.params.items() if path != "finalist"}
            assert compared == (inherited if stage == 1 else tuned_params)
            assert {p: v for p, v in plain.params.items() if p != "finalist"} == search.space.start(stage)
            if stage == 2:
                # Stage 2 of an arm has its Stage 1's settings.
                assert config_of(search.space, record, tuned) == search.space.config({**inherited, **tuned_params})
                assert config_of(search.space, record, plain) == search.space.config()
    assert len({t.seed for t in first}) == len({t.seed for t in second}) == seeds
    assert len({t.curve[0]["loss/total"] for t in first}) == 2 * seeds
    places = winner_models(search.record, winner.name)
    by_winner = [m for m in metrics["models"] if m["arm"] == "winner"]
    compared = [read_file(place / "metrics.json", ModelMetricsFile) for place in places]
    assert [(m["valid"], m["test"]) for m in compared] == [(m["valid"], m["test"]) for m in by_winner]
    assert len(places) == seeds
    # One copy of each model, and of what Stage 2 started from.
    weights = sorted(
        path.relative_to(str(record.place)).parts for path in Path(str(record.place)).rglob("*.safetensors")
    )
    assert weights == [
        (folder, f"{number:04d}", "model.safetensors")
        for folder in ("finalists", "models")
        for number in range(2 * seeds)
    ]
    assert [trial.checkpoint for trial in second] == [None] * 2 * seeds

    assert metrics["seeds"] == seeds
    assert metrics["complete"] is True
    assert sorted((m["arm"], m["index"]) for m in metrics["models"]) == sorted(
        (arm, index) for arm in ("winner", "start") for index in range(seeds)
    )
    assert metrics["arms"] == compare(metrics["models"])["arms"]
    assert metrics["gain"] == compare(metrics["models"])["gain"]
    check_ensembles(record, metrics)
    assert retrainings(search.record, f"stage2/{winner.number}") == metrics
    assert retrainings(search.record, "stage2/99") is None
    for trial in second:
        number = int(trial.params["finalist"])
        (model,) = [m for m in metrics["models"] if (m["arm"] == "start", m["index"]) == (number % 2, number // 2)]
        # Measured from the file on its own, as the winner is, and in its manifest.
        assert set(MEASURED) < set((model_place(record, trial, last=2) / "manifest.json").read_json()["files"])
        assert model["valid"]["mae"] == pytest.approx(trial.objective, rel=1e-5)


def stored(models: list[dict[str, Any]]) -> dict[str, Any]:
    """`seeds/metrics.json` with these models."""
    seeded = [{**model, "seed": model["index"]} for model in models]
    return {"winner": "stage2/0", "seeds": 3, "complete": True, "models": seeded, **compare(models)}


def test_two_stages_against_the_baseline_of_the_same_name(tmp_path: Path) -> None:
    """Winner against winner, paired by seed, whichever of the two asks."""
    two, direct = (RunRecord(storage_path(tmp_path / name)) for name in ("n", "n-direct"))
    made = {
        "n": models({0: 0.70, 1: 0.72, 2: 0.68}, {0: 9.0}),
        "n-direct": models({0: 0.75, 2: 0.76, 5: 0.1}, {0: 9.0}),
    }
    (tmp_path / "n" / "seeds").mkdir(parents=True)
    (tmp_path / "n" / "seeds" / "metrics.json").write_text(json.dumps(stored(made["n"])))
    assert against_baseline(two) is None
    assert against_baseline(direct) is None
    (tmp_path / "n-direct" / "seeds").mkdir(parents=True)
    (tmp_path / "n-direct" / "seeds" / "metrics.json").write_text(json.dumps(stored(made["n-direct"])))
    compared = against_baseline(two)
    assert compared is not None
    assert compared == against_baseline(direct)
    assert compared["seeds"] == 2
    assert compared["runs"] == {"two-stage": str(tmp_path / "n"), "direct": str(tmp_path / "n-direct")}
    assert compared["two-stage"]["mae"]["mean"] == pytest.approx(0.69)
    assert compared["direct"]["mae"]["mean"] == pytest.approx(0.755)
    interval = stats.ttest_rel([0.70, 0.68], [0.75, 0.76]).confidence_interval(0.95)
    gain = compared["gain"]["mae"]
    assert gain["mean"] == pytest.approx(-0.065)
    assert gain["mean"] + gain["half_width"] == pytest.approx(interval.high)
