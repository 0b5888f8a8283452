"""The context of an experiment: a finished run, and models that are trained from its winner on request."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from grcf_ray.cluster import connect, leave, watched

import torch

from grcf_ray import console
from grcf_ray.config import ModelConfig, RunConfig, flatten
from grcf_ray.data.datasets import DatasetFacts, find, protocol_of
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import DataError, NoWinnerError
from grcf_ray.experiments.model_pool import Arm, ModelPool, Wanted, configured, entries_of, shape_name, shape_of
from grcf_ray.experiments.paper import TABLES
from grcf_ray.experiments.registry import Experiment, Options
from grcf_ray.experiments.result import ExperimentResult
from grcf_ray.metrics import MetricProtocol
from grcf_ray.report.view import RunView
from grcf_ray.search.events import Listener, RetrainingsStarted, SearchStarted
from grcf_ray.search.lease import Lease
from grcf_ray.search.nodes import check_memory, check_nodes, cluster_nodes
from grcf_ray.search.predictions import Predictions
from grcf_ray.search.preflight import find_capacity
from grcf_ray.search.record import RunRecord, now
from grcf_ray.search.run_lookup import check_encoder, note_encoder
from grcf_ray.search.saved_model import open_model
from grcf_ray.search.schema import ModelMetricsFile, read_file
from grcf_ray.search.seeds import measure_models
from grcf_ray.search.space import run_space
from grcf_ray.search.stages import Search, config_of
from grcf_ray.search.stopping import Stop
from grcf_ray.search.winner import note_test_read, printed_results, versions
from grcf_ray.storage import StoragePath
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.export import SavedModel
from grcf_ray.train.stage import use_deterministic_torch


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model of an arm, measured on valid and test."""

    index: int
    """The number of the fresh seed; arms are paired by it."""
    place: StoragePath
    """The model's folder, for `train.export.load_model`."""

    @cached_property
    def metrics(self) -> Mapping[str, Mapping[str, float]]:
        """Read the model's metrics by split."""
        return read_file(self.place / "metrics.json", ModelMetricsFile)

    def scored(self, split: str) -> Predictions:
        """Read the model's scores of valid or test."""
        return Predictions.read(self.place / "predictions" / f"{split}.parquet")

    def load(self) -> SavedModel:
        """Load the model to score utterances with it."""
        return open_model(self.place)


class ExperimentContext:
    """A finished run, its data, and the models that were trained from its winner.

    seeds: the number of fresh seeds for each arm. command: the command to repeat after an interruption.
    """

    def __init__(
        self,
        record: RunRecord,
        store: DatasetStore,
        *,
        seeds: int,
        command: str,
        listeners: Sequence[Listener] = (),
        options: Options | None = None,
    ) -> None:
        self.record, self.store, self.seeds, self.command, self.listeners = record, store, seeds, command, listeners
        self.options = options or Options()
        self.view = RunView.read(record)
        if self.view.winner is None or self.view.metrics is None:
            raise DataError(
                f"{record}: experiments start from the winner of a finished search; this search (state: "
                f"{self.view.info.state}) has none. To finish it, run its own command again"
            )
        self.space = run_space(record.search_info(), str(record))
        """The run's search space."""
        self.config: RunConfig = config_of(self.space, record, self.view.winner)
        """The winner's configuration."""
        self._models = record.place / "reproduce" / "models"
        self._stop = Stop(last_words=lambda how: console.progress(f"{how}; to resume: {command}"))

    @property
    def facts(self) -> DatasetFacts | None:
        """Return the fact sheet of the data set; None for the user's own data."""
        return find(self.store.info.name)

    @property
    def is_grcf(self) -> bool:
        """Return whether the run's model is GRCF, and not one of its rivals."""
        return self.config.model.name == ModelConfig.name

    def printed(self, table: str) -> Mapping[str, Any]:
        """Return this data set's entry in a table of the paper; {} if the paper has none, or measures another task.

        Only the table of baselines has other models than GRCF.
        """
        facts = self.facts
        known = facts and facts.task == self.store.info.task and (self.is_grcf or table == "baselines")
        return TABLES[table].get(facts.name, {}) if facts and known else {}

    @property
    def printed_results(self) -> Mapping[str, float]:
        """Return the figures of GRCF on this data set in the paper's main tables; {} if the run has another model."""
        return printed_results(self.config, self.store)

    @property
    def protocol(self) -> MetricProtocol:
        """Return the metric protocol of the data set; on the run's own data, the protocol of its recorded metrics."""
        info = self.store.info
        same = info.name == self.view.info.data.name
        return self.view.protocol if same else protocol_of(info.name, info.task)

    def note_test_read(self, models: Sequence[Model], experiment: str) -> None:
        """Record that an experiment scores test with these models, and set torch up as for their first measurement."""
        names = [str(model.place).removeprefix(f"{self.record.place}/") for model in models]
        note_test_read(self.record.place / "best", f"reproduce {experiment}", names)
        # The same number of threads gives the same bits.
        use_deterministic_torch(self.config.search.cpus_per_worker)

    def on(self, store: DatasetStore, config: RunConfig, models: StoragePath) -> ExperimentContext:
        """Return the run's context on other data and another configuration, with its models in `models`."""
        context = copy.copy(self)
        context.store, context.config, context._models = store, config, models
        return context

    def model_pool(self, arm: Arm) -> ModelPool:
        """Return the pool that an arm's models belong to."""
        return self._model_pool(configured(self.config, arm))

    def _model_pool(self, config: RunConfig) -> ModelPool:
        return ModelPool(RunRecord(self._models / shape_name(shape_of(config))), config)

    def noted(self, result: ExperimentResult, experiment: Experiment) -> ExperimentResult:
        """Return the result of an experiment with its provenance."""
        info = self.store.info
        assert self.view.winner is not None
        about = {
            "command": self.command,
            "date": now(),
            "run": f"{self.record.place.name}, winner {self.view.winner.name}",
            "data": f"{info.name}, fingerprint {info.fingerprint}",
            "backbone": self.config.model.encoder,
            "seeds": self.seeds if experiment.trains else "",
            "test": "trials of the search ran after the test split was read" if self.view.info.test_seen else "",
            "not comparable with the paper": "; ".join((self.view.metrics or {}).get("not_comparable", ())),
            "versions": versions(),
        }
        return dataclasses.replace(
            result.named(experiment), about={key: value for key, value in about.items() if value}
        )

    def models(self, arms: Sequence[Arm], experiment: str, *, reference: bool = True) -> dict[str, list[Model]]:
        """Return the models of every arm by seed; train and measure the missing ones.

        A training that diverges leaves its arm one model short. NoWinnerError if the first arm, the reference of the
        others, has no model; without `reference`, if no arm has one. The winner's provenance records under the
        experiment's name that test was read.
        """
        models: dict[str, list[Model]] = {arm.name: [] for arm in arms}
        with self.held():
            requests = self._requests(arms)
            self._check(requests)
            for pool, wanted in requests:
                places = pool.places(wanted)
                if None in places:
                    places = self._train(pool, wanted, experiment)
                for (arm, entry), place in zip(wanted, places, strict=True):
                    if place is not None:
                        models[arm.name].append(Model(entry.index, place))
        if not (models[arms[0].name] if reference else any(models.values())):
            raise NoWinnerError(
                f"no training of {arms[0].title if reference else 'a row'} finished"
                f"{', and the other rows are compared with it' if reference else ''}; "
                f"the errors of its trials are on record in {self.record}"
            )
        return models

    def check_encoder(self, config: RunConfig) -> None:
        """Raise ConfigError if the text encoder of a configuration changed since the run began."""
        check_encoder(self.record, config, otherwise="start from a search with these (--name NAME)")

    def check_encoders(self, arms: Sequence[Arm]) -> None:
        """Raise ConfigError if models must be trained with another encoder than the models they are compared with."""
        self._check(self._requests(arms))

    def _check(self, requests: Sequence[tuple[ModelPool, Wanted]]) -> None:
        for pool, wanted in requests:
            if None in pool.places(wanted):
                self.check_encoder(pool.config)
                check_encoder(pool.record, pool.config, otherwise=f"remove {pool.record} to train its models anew")

    def _requests(self, arms: Sequence[Arm]) -> list[tuple[ModelPool, Wanted]]:
        """Return the pool of each shape with the models that it must have: every arm of that shape under every seed."""
        by_shape: dict[str, list[tuple[Arm, RunConfig]]] = {}
        for arm in arms:
            config = configured(self.config, arm)
            by_shape.setdefault(shape_name(shape_of(config)), []).append((arm, config))
        return [
            (
                self._model_pool(members[0][1]),
                [(arm, entry) for arm, config in members for entry in entries_of(config, range(self.seeds))],
            )
            for members in by_shape.values()
        ]

    def _train(self, pool: ModelPool, wanted: Wanted, experiment: str) -> list[StoragePath | None]:
        """Train and measure the missing models of a pool; return where each of its models lies."""
        config, entries = pool.config, [entry for _, entry in wanted]
        pool.add(entries)
        note_encoder(pool.record, config)
        if config.model.backbone == self.config.model.backbone:
            note_encoder(self.record, config)
        connect()
        number = len(pool.entries)
        search = {path: value for path, value in flatten(config).items() if path.startswith("search.")}
        search |= {"search.stage1_trials": number, "search.stage2_trials": number, "search.finalists": number}
        # An arm that diverges under every seed must not stop the others.
        search |= {"search.pruning": False, "search.failures_in_a_row": number + 1}
        nodes = cluster_nodes()
        room, memory = find_capacity(nodes, config, [number]), check_nodes(nodes, config, self.record.place)
        features = prepare_features(self.store, config)
        check_memory(features.train.nbytes + features.valid.nbytes, memory)
        torch.set_num_threads(os.cpu_count() or 1)
        job = Search(
            record=pool.record,
            space=pool.space(search, self.store.info.name),
            features=features,
            protocol=self.protocol,
            concurrent=room.concurrent,
            listeners=self.listeners,
            stop=self._stop,
            retrainings=pool.given(self.config.seed, entries),
        )
        epochs = {1: config.stage1.epochs, 2: config.stage2.epochs}
        budgets = {int(stage): (number, epochs[stage]) for stage in job.stages}
        left = {int(stage): pool.trials(stage, entries).count(None) for stage in job.stages}
        rows = ", ".join(dict.fromkeys(arm.title for arm, _ in wanted))
        for listener in self.listeners:
            listener(SearchStarted(room.concurrent, budgets, self.store.info.task))
            listener(RetrainingsStarted(f"{experiment}: {rows}; {self.seeds} seeds each", left))
        try:
            with watched(lambda loss: leave(f"{loss}; finished trials are kept. To resume: {self.command}")):
                job.run()
        except NoWinnerError as error:
            # Arms of other shapes may still finish.
            console.progress(str(error))
        below = str(pool.record).removeprefix(f"{self.record}/")
        trials = list(filter(None, pool.trials_of(wanted)))
        measure_models(job, trials, self.store, self.record, f"reproduce {experiment}", below=below)
        return pool.places(wanted)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run's lease; a signal ends the experiment and keeps its finished trials."""
        to_stderr = contextlib.redirect_stdout(sys.stderr)
        with Lease(self.record.place, self.command), self._stop.on_signals(), to_stderr:
            yield
