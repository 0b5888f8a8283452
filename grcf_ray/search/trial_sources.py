"""Find recorded trials to plan a search with, in the run or in the package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import ConfigError
from grcf_ray.metrics import MetricProtocol
from grcf_ray.search.host_memory import mean_tokens
from grcf_ray.search.made_for import timed_encoder
from grcf_ray.search.made_space import TRIAL_S, epoch_seconds
from grcf_ray.search.record import RunRecord, TrialRecord, pace
from grcf_ray.search.simulation import TrialSource
from grcf_ray.search.space import Choice, Dimension, Range, Space, run_space, stage_epochs
from grcf_ray.search.table_file import read_table
from grcf_ray.search.trial_table import KnownTrial, TableTrial, TrialTable
from grcf_ray.train.curve import STAGES, objective_value

ENOUGH = 10
"""Complete trials of each stage that a plan from a run's own trials takes."""
SHIPPED = Path(__file__).parent / "trials" / "mosi_text.parquet"
"""The table of the package: CMU-MOSI, text alone (benchmarks/spaces/mosi_text.yaml)."""


@dataclasses.dataclass(frozen=True)
class KnownTrials:
    """What a plan is made from."""

    source: TrialSource
    table: TrialTable
    """The recorded trials that the source draws from."""
    notes: tuple[str, ...]
    """Where the trials and their times come from, for the user."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferredTrials:
    """The trials of a table for another space.

    A setting that both spaces search has the same place in the range of each. Settings of the table alone stay at its
    starting point. Settings of the other space alone change nothing. Trials of another length are stretched.

    epoch_seconds: of each stage. task, protocol, half_range: of the data of the space.
    """

    table: TrialTable
    space: Space
    epoch_seconds: Mapping[Literal[1, 2], float]
    task: Task
    protocol: MetricProtocol
    half_range: float

    def draw(
        self, stage: Literal[1, 2], params: Mapping[str, Any], rng: np.random.Generator, finalist: float | None = None
    ) -> KnownTrial:
        """Return a trial with these parameters of the space, as `TrialTable.draw` does."""
        own = self.space.dimensions(stage)
        matched = {
            path: _matched(dimension, own.get(path), params.get(path))
            for path, dimension in self.table.space.dimensions(stage).items()
        }
        drawn = self.table.draw(stage, matched, rng, finalist)
        return drawn.stretched(stage_epochs(self.space.config())[stage], self.epoch_seconds[stage])

    @property
    def unknown(self) -> list[str]:
        """The searched settings that the table does not have."""
        return [
            path
            for stage in STAGES
            for path, dimension in self.space.dimensions(stage).items()
            if type(self.table.space.dimensions(stage).get(path)) is not type(dimension)
        ]


def _matched(recorded: Dimension, own: Dimension | None, value: Any) -> Any:
    """Return the value of a recorded setting that stands for a value of the same setting of another space."""
    if isinstance(recorded, Range) and isinstance(own, Range):
        return recorded.value_at(own.place_of(value))
    if isinstance(recorded, Choice) and value in recorded.choices:
        return value
    return recorded.start


def known_trials(record: RunRecord, space: Space, store: DatasetStore) -> KnownTrials:
    """Return the trials to plan a search with.

    record: of the run, which may exist. space: with a number for the GPUs per worker. Raises ConfigError for a search
    of one stage, or without text, whose run has too few trials to plan from.
    """
    if (own := run_table(record)) is not None:
        counts = " and ".join(f"{own.configurations(stage)} of stage {stage}" for stage in own.stages)
        return KnownTrials(own, own, (f"trials: {counts} on record in {record}",))
    config, info = space.config(), store.info
    if list(stage_epochs(config)) != [1, 2]:
        raise ConfigError(
            f"--simulate: the recorded trials of the package are of both stages; a search of one stage is planned from "
            f"its own run, once {ENOUGH} of its trials are complete"
        )
    table = read_table(SHIPPED)
    seconds, timing = _epoch_seconds(record, space, store)
    source = TransferredTrials(
        table=table,
        space=space,
        epoch_seconds=seconds,
        task=info.task,
        protocol=protocol_of(info.name, info.task),
        half_range=info.half_range,
    )
    notes = [
        f"trials: those of {table.name} that come with the package, so the figures are not those of your data and "
        "model; times and use of the hardware depend on them little. A run of this name with "
        f"{ENOUGH} complete trials of each stage is planned from its own",
        timing,
    ]
    if source.unknown:
        notes.append(f"settings that these trials tell nothing about: {', '.join(source.unknown)}")
    return KnownTrials(source, table, tuple(notes))


def run_table(record: RunRecord) -> TrialTable | None:
    """Return the trials of a run; None if it has too few.

    A trial that early stopping ended goes on as the complete ones do on average.
    """
    if not record.exists:
        return None
    info = record.search_info()
    space = run_space(info, str(record))
    recorded = {}
    for stage, epochs in stage_epochs(space.config()).items():
        trials = [trial for trial in record.trials(stage) if trial.state in ("complete", "pruned")]
        curves = [(trial, curve) for trial in trials if len(curve := _curve(trial)) == trial.epoch]
        whole = [curve for _, curve in curves if len(curve) == epochs]
        if len(whole) < ENOUGH:
            return None
        mean_E = np.mean(whole, axis=0)
        recorded[stage] = [_table_trial(record, trial, curve, mean_E) for trial, curve in curves]
    low, high = info.data.label_range
    return TrialTable(
        recorded,
        name=info.data.name,
        space=space,
        task=info.data.task,
        protocol=info.data.protocol,
        half_range=(high - low) / 2,
    )


def _curve(trial: TrialRecord) -> NDArray[np.float64]:
    """Return the objectives of a trial's epochs, without undefined ones."""
    values = [objective_value(trial.stage, metrics) for metrics in trial.curve]
    return np.array([value for value in values if value is not None])


def _table_trial(
    record: RunRecord, trial: TrialRecord, curve: NDArray[np.float64], mean_E: NDArray[np.float64]
) -> TableTrial:
    missing = mean_E[len(curve) :] - mean_E[len(curve) - 1] + curve[-1]
    known = KnownTrial(
        stage=trial.stage,
        objective={"valid": np.concatenate([curve, missing])},
        seconds_E=np.full(len(mean_E), trial.seconds / trial.epoch),
        passes_E=np.full(len(mean_E), trial.utterance_passes / trial.epoch),
    )
    finalist = trial.params.get("finalist")
    start = None if finalist is None else record.read_finalist(int(finalist))["objective"]
    return TableTrial(trial.number, trial.params, known, start)


def _epoch_seconds(record: RunRecord, space: Space, store: DatasetStore) -> tuple[dict[Literal[1, 2], float], str]:
    """Return the seconds of an epoch of each stage, and where they come from."""
    config = space.config()
    stages = stage_epochs(config)
    trials = {stage: record.trials(stage) for stage in stages} if record.exists else {}
    if (overall := pace(trial for listed in trials.values() for trial in listed)) is not None:
        means = {stage: pace(listed) or overall for stage, listed in trials.items()}
        return means, f"seconds of an epoch: measured in {record}, {_listed(means)}"
    if not config.model.sees_text:
        raise ConfigError(
            "--simulate: the time of an epoch is known in advance for models that read the text only; start the search "
            "and interrupt it after some epochs, then plan it under the same name"
        )
    tokens, on_gpu = mean_tokens(config, store), config.search.gpus > 0
    encoder, each = timed_encoder(config.model.backbone, "", tokens, config.train, on_gpus=on_gpu)
    # Trials that share a GPU share its rate.
    rate = config.search.workers * (config.search.gpus or 1.0)
    epoch = epoch_seconds(config, store.info, encoder, each, on_gpu=on_gpu) / rate
    means = {stage: epoch + TRIAL_S / epochs for stage, epochs in stages.items()}
    how = "from an assumed rate of the GPU" if on_gpu else "from a few timed passes of the encoder"
    return means, f"seconds of an epoch: estimated {how}, {_listed(means)}; epochs on record replace them"


def _listed(seconds: Mapping[Literal[1, 2], float]) -> str:
    return " and ".join(f"{value:.3g} in stage {stage}" for stage, value in seconds.items())
