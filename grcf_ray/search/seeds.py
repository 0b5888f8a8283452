"""Retrain the winner and the starting point under fresh seeds, and compare them on the test split.

Retrainings are trials in a separate record inside the run. Of 2 N trials, number 2 i is the winner under seed i, and
number 2 i + 1 the starting point under the same seed. No model is chosen among them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import grcf_ray.cluster  # noqa: F401  before Ray

import ray

from grcf_ray.data.store import DatasetStore
from grcf_ray.search.comparisons import ARMS, arm_of, compare, model_place, retrained_number, seeds_record
from grcf_ray.search.ensemble import ensemble_metrics
from grcf_ray.search.events import ModelMeasured, RetrainingsStarted, StepStarted
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.saved_model import open_model
from grcf_ray.search.schema import SCHEMA_VERSION, ModelMetricsFile, read_file
from grcf_ray.search.space import Space
from grcf_ray.search.stages import Search
from grcf_ray.search.winner import export_winner, measure_model, note_test_read
from grcf_ray.storage import StoragePath, storage_path
from grcf_ray.train.manifest import is_complete
from grcf_ray.train.stage import stage_seed

_FRESH = 3
"""Separates the seeds from those of the search's stages, 1 and 2."""


@dataclasses.dataclass(frozen=True)
class SeedTrials:
    """The retrainings of both arms, as `Search.retrainings` takes them."""

    seed: int
    """The run's seed."""
    seeds: int
    """Number of fresh seeds for each arm."""
    arms: Mapping[str, Mapping[int, Mapping[str, Any]]]
    """Parameters by arm and stage."""

    def params(self, stage: Literal[1, 2], finalists: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the parameters of a stage's trials; in Stage 2, one for each finalist of Stage 1, in the same order.

        A resumed search appends its finalists, so earlier trials keep their numbers.
        """
        numbers = [int(finalist) for finalist in finalists] or list(range(2 * self.seeds))
        return [
            {**self.arms[ARMS[number % 2]][stage], **({"finalist": str(number)} if finalists else {})}
            for number in numbers
        ]

    def seed_for(self, stage: Literal[1, 2], params: Mapping[str, Any], number: int) -> int:
        """Return the seed of a trial; both arms use the same seeds."""
        return fresh_seed(self.seed, stage, int(params.get("finalist", number)) // 2)


def fresh_seed(run_seed: int, stage: Literal[1, 2], index: int) -> int:
    """Return the seed of a stage under a fresh seed of the run, which no trial of the search has used."""
    return stage_seed(run_seed, _FRESH, stage, index)


def retrain(search: Search, winner: TrialRecord, seeds: int, store: DatasetStore) -> dict[str, Any]:
    """Train both arms under `seeds` fresh seeds, measure them on test, write and return `seeds/metrics.json`."""
    run, space = search.record, search.space
    record = seeds_record(run, winner.name)
    budget = {"search.stage1_trials": 2 * seeds, "search.stage2_trials": 2 * seeds, "search.finalists": 2 * seeds}
    trials = SeedTrials(search.config.seed, seeds, _arms(run, space, winner))
    if not record.exists:
        record.write_run({"state": "running", "winner": winner.name})
    job = dataclasses.replace(
        search,
        record=record,
        space=space.with_settings({**budget, "search.pruning": False}),
        retrainings=trials,
        reopen=False,
    )
    description = f"Retraining the winner and the starting point under {seeds} fresh seeds"
    search.tell(RetrainingsStarted(description, dict.fromkeys((1, 2), 2 * seeds)))
    job.run()
    last = job.stages[-1]
    ended = [trial for trial in record.trials(last) if trial.state == "complete"]
    measure_models(job, ended, store, run, "search --seeds", below="seeds")
    for trial in ended:
        # The Stage 1 weights stay in `finalists/`: replaying a Stage 2 retraining starts from them.
        record.drop_weights(trial)
    models = [_entry(record, trial) for trial in ended]
    metrics = {
        "schema_version": SCHEMA_VERSION,
        "winner": winner.name,
        # Earlier retrainings under more seeds count as well.
        "seeds": max([seeds, *(model["index"] + 1 for model in models)]),
        "complete": job.complete,
        "models": models,
        "ensembles": _ensembles(record, ended),
        **compare(models),
    }
    (run.place / "seeds" / "metrics.json").write_json(metrics)
    return metrics


def _ensembles(record: RunRecord, trials: Sequence[TrialRecord]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the metrics of the mean score of each arm's models, by arm and split; none if predictions are missing."""
    places: dict[str, list[StoragePath]] = {arm: [] for arm in ARMS}
    for trial in trials:
        places[arm_of(trial)].append(model_place(record, trial, last=trial.stage))
    ensembles = {}
    for arm, models in places.items():
        # People may delete predictions, which hold the texts.
        with contextlib.suppress(FileNotFoundError):
            if len(models) > 1:
                ensembles[arm] = ensemble_metrics(open_model(models[0]), models)
    return ensembles


def _arms(record: RunRecord, space: Space, winner: TrialRecord) -> dict[str, dict[int, dict[str, Any]]]:
    if winner.stage == 1:
        tuned: dict[int, dict[str, Any]] = {1: winner.searched, 2: {}}
    else:
        finalist = winner.params.get("finalist")
        tuned = {1: record.read_finalist(int(finalist))["params"] if finalist is not None else {}, 2: winner.searched}
    return {"winner": tuned, "start": {1: space.start(1), 2: space.start(2)}}


def _entry(record: RunRecord, trial: TrialRecord) -> dict[str, Any]:
    metrics = read_file(model_place(record, trial, last=trial.stage) / "metrics.json", ModelMetricsFile)
    figures = {split: metrics[split] for split in ("valid", "test")}
    return {"arm": arm_of(trial), "index": retrained_number(trial) // 2, "seed": trial.seed, **figures}


def measure_models(
    job: Search, trials: Sequence[TrialRecord], store: DatasetStore, run: RunRecord, command: str, *, below: str
) -> None:
    """Export and measure the models that are not measured yet, in parallel on the cluster.

    Notes the reading of test in the provenance of the run's winner, with `command` and the names `below`/TRIAL.
    """
    record, config = job.record, job.config
    places = [(trial, model_place(record, trial, last=job.stages[-1])) for trial in trials]
    missing = [(trial, place) for trial, place in places if not is_complete(place, ["metrics.json"])]
    if not missing:
        return
    job.tell(StepStarted(f"saving {len(missing)} models", len(missing)))
    for trial, place in missing:
        export_winner(job, trial, store, to=f"models/{place.name}")
    note_test_read(run.place / "best", command, [f"{below}/{trial.name}" for trial, _ in missing])
    tables = {split: ray.put(store.read(split)) for split in ("valid", "test")}
    threads = config.search.cpus_per_worker
    task = ray.remote(num_cpus=threads)(_measure_model)
    waiting = [task.remote(place.uri, tables, threads) for _, place in missing]
    while True:
        job.tell(ModelMeasured(len(missing) - len(waiting), len(missing)))
        if not waiting:
            return
        done, waiting = ray.wait(waiting)
        ray.get(done)


def _measure_model(uri: str, tables: Mapping[str, Any], threads: int) -> None:
    measure_model(storage_path(uri), {split: ray.get(table) for split, table in tables.items()}, threads=threads)
