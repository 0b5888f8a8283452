"""Find and open the models of a run: the best model and its retrainings under other seeds."""

from __future__ import annotations

from pathlib import Path

from grcf_ray.errors import DataError
from grcf_ray.search.comparisons import retrainings, winner_models
from grcf_ray.search.record import RunRecord
from grcf_ray.search.schema import RunInfo
from grcf_ray.storage import StoragePath, storage_path
from grcf_ray.train import export
from grcf_ray.train.export import SavedModel


def load_model(where: str | Path) -> SavedModel:
    """Return the best model of a run, on the CPU, ready to score.

    where: a run, its `best/`, or a copy of `best/`, as a folder or a URI.

    >>> model = load_model("runs/demo-all-MiniLM-L6-v2-seed42")
    >>> model.score(["What a film!", "Never again."])
    """
    return open_model(find_model(storage_path(where, check=True)))


def find_model(place: StoragePath) -> StoragePath:
    """Return the folder of a run's best model, or the place itself if it is a model. Raises DataError otherwise."""
    if (place / "config.json").exists():
        return place
    if not (place / "run.json").exists():
        raise DataError(f"{place}: neither a run, which has a run.json, nor a saved model, which has a config.json")
    best = place / "best"
    if not (best / "config.json").exists():
        raise no_model(RunRecord(place))
    return best


def no_model(record: RunRecord) -> DataError:
    """Return the error for a run without a best model."""
    info = record.info()
    command = f" Repeat the search: {info.starts[-1].command}" if isinstance(info, RunInfo) else ""
    if info.state != "finished":
        return DataError(f"{record} has no best model yet (state: {info.state}).{command}")
    return DataError(f"{record}: best/ has no config.json.{command}")


def open_model(place: StoragePath) -> SavedModel:
    """Open and verify a model that `export.save_model` wrote, in a folder or on object storage."""
    with place.reading_folder() as folder:
        return export.load_model(folder, where=str(place))


def retrained_models(place: StoragePath) -> list[StoragePath]:
    """Return the winner's retrained models; empty if there are none or the place is not a run."""
    if not (place / "run.json").exists():
        return []
    record = RunRecord(place)
    winner = record.info().winner
    return winner_models(record, winner) if winner and retrainings(record, winner) else []
