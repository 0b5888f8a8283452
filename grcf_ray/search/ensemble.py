"""The ensemble of a search: the best trials of its last stage by validation, whose scores are averaged.

The winner is the first member; its model is in `best/`. The others are in `ensemble/stage2-7/`, laid out like `best/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grcf_ray.errors import DataError
from grcf_ray.search.predictions import Predictions
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.saved_model import open_model
from grcf_ray.search.schema import MetricsFile, read_file
from grcf_ray.storage import StoragePath
from grcf_ray.train.scoring import Ensemble, mean_score

if TYPE_CHECKING:
    from grcf_ray.search.stages import Search
    from grcf_ray.train.export import SavedModel


def best_trials(job: Search) -> list[TrialRecord]:
    """Return the members of a search that has a winner: the best trials of the last stage that still have weights."""
    winner, *others = job.record.ranked(job.stages[-1])[: job.config.search.ensemble]
    return [winner, *(trial for trial in others if trial.checkpoint is not None)]


def member_places(record: RunRecord, names: Sequence[str]) -> list[StoragePath]:
    """Return the folders of the members' models, by the names of their trials, the winner's first."""
    return [record.place / "best", *(record.place / "ensemble" / name.replace("/", "-") for name in names[1:])]


def ensemble_metrics(saved: SavedModel, places: Sequence[StoragePath]) -> dict[str, dict[str, float]]:
    """Return the metrics of the mean of several models' recorded scores of an utterance, by split. saved: any model."""
    metrics = {}
    for split in ("valid", "test"):
        members = [Predictions.read(place / "predictions" / f"{split}.parquet") for place in places]
        score_N = mean_score([member.score_N for member in members], saved.task)
        metrics[split] = saved.metrics(score_N, members[0].label_N)
    return metrics


def load_ensemble(place: StoragePath) -> Ensemble:
    """Open the ensemble of a run. Raises DataError if it has none."""
    ensemble = open_ensemble(place)
    if ensemble is None:
        raise DataError(
            f"{place} has no ensemble: it is not a run, an earlier release wrote it, its search has one usable model, "
            "search.ensemble was 1, or its folder ensemble/ is missing"
        )
    return ensemble


def open_ensemble(place: StoragePath) -> Ensemble | None:
    """Open the ensemble of a run; None if it has none, if its models were deleted, or if the place is not a run."""
    if not (place / "run.json").exists():
        return None
    try:
        recorded = read_file(place / "best" / "metrics.json", MetricsFile).get("ensemble")
    except FileNotFoundError:
        return None
    places = member_places(RunRecord(place), recorded["members"]) if recorded else []
    if not places or not all((member / "config.json").exists() for member in places):
        return None
    return Ensemble([open_model(member) for member in places])
