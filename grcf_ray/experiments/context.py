"""What experiments are given: a finished run, and models that are trained from its winner when they are asked for."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from grcf_ray.cluster import connect, watched

import torch

from grcf_ray import console
from grcf_ray.config import RunConfig, flatten
from grcf_ray.data.datasets import DatasetFacts, find, protocol_of
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import ClusterError, DataError, NoWinnerError
from grcf_ray.experiments.model_pool import Arm, Entry, ModelPool, configured, entry_of, shape_name, shape_of, space_of
from grcf_ray.experiments.options import Options
from grcf_ray.experiments.result import ExperimentResult
from grcf_ray.metrics import MetricProtocol
from grcf_ray.report.view import Predictions, RunView
from grcf_ray.search.events import Listener, RetrainingsStarted, SearchStarted
from grcf_ray.search.lease import Lease
from grcf_ray.search.nodes import check_memory, check_nodes, cluster_nodes
from grcf_ray.search.preflight import find_capacity
from grcf_ray.search.record import RunRecord, now
from grcf_ray.search.run_lookup import check_encoder, note_encoder
from grcf_ray.search.schema import ModelMetricsFile, read_file
from grcf_ray.search.seeds import measure_models
from grcf_ray.search.space import run_space
from grcf_ray.search.stages import Search, config_of
from grcf_ray.search.stopping import Stop
from grcf_ray.search.winner import trial_name, versions
from grcf_ray.storage import StoragePath
from grcf_ray.train.assemble import prepare_features


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model of an arm, measured on valid and test."""

    arm: str
    index: int
    """Which of the fresh seeds it was trained under; arms are paired by it."""
    place: StoragePath
    """Its folder, as `train.export.load_model` takes it."""

    @cached_property
    def metrics(self) -> Mapping[str, Mapping[str, float]]:
        """Its figures by split."""
        metrics: Mapping[str, Mapping[str, float]] = read_file(self.place / "metrics.json", ModelMetricsFile)
        return metrics

    def scored(self, split: str) -> Predictions:
        """Its scores of valid or test."""
        return Predictions.read(self.place / "predictions" / f"{split}.parquet")


class _Share(NamedTuple):
    """What is wanted of a pool."""

    pool: ModelPool
    config: RunConfig
    """Any of its arms'."""
    wanted: Sequence[tuple[Arm, Entry]]
    places: Sequence[StoragePath | None]
    """Where each of these models lies, None where it is yet to be trained or measured."""


class ExperimentContext:
    """A run whose search has ended, its data, and the models that were trained from its winner.

    seeds: how many fresh seeds each arm is trained under. command: the one that was typed, to be typed again.
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
            raise DataError(f"{record}: experiments start from its winner, and the search is {self.view.run['state']}")
        self.space = run_space(record.search_info(), str(record))
        """What the run searched."""
        self.config: RunConfig = config_of(self.space, record, self.view.winner)
        """The winner's configuration."""
        self._models = record.place / "reproduce" / "models"
        self._stop = Stop(last_words=lambda how: console.progress(f"{how}; to go on: {command}"))

    @property
    def facts(self) -> DatasetFacts | None:
        """What is known of the data set; None for one of the user's own."""
        return find(self.store.info.name)

    def printed(self, table: Mapping[str, Any]) -> Any:
        """What a table of the paper, by data set, has of this one; {} for others, or for other tasks made of it."""
        facts = self.facts
        return table.get(facts.name, {}) if facts and facts.task == self.store.info.task else {}

    @property
    def printed_results(self) -> Mapping[str, float]:
        """What the paper's main tables have of GRCF on this data set."""
        results: Mapping[str, float] = self.printed({self.facts.name: self.facts.paper_results} if self.facts else {})
        return results

    @property
    def protocol(self) -> MetricProtocol:
        """Whose metrics the data set uses; on the run's own data those that its figures on record are."""
        info = self.store.info
        own = info.name == self.view.run["data"]["name"]
        return self.view.protocol if own else protocol_of(info.name, info.task)

    @property
    def half_range(self) -> float:
        """Half of the label range."""
        low, high = self.store.info.label_range
        return (high - low) / 2

    @property
    def center(self) -> float:
        """The middle of the label range."""
        low, high = self.store.info.label_range
        return (low + high) / 2

    def on(self, store: DatasetStore, config: RunConfig, models: StoragePath) -> ExperimentContext:
        """Return the run's context on other data and another configuration, with its models in `models`."""
        other = copy.copy(self)
        other.store, other.config, other._models = store, config, models
        return other

    def model_pool(self, arm: Arm) -> ModelPool:
        """Where the models of an arm are."""
        return self._model_pool(configured(self.config, arm))

    def _model_pool(self, config: RunConfig) -> ModelPool:
        return ModelPool(RunRecord(self._models / shape_name(shape_of(config))), last=2 if config.stage2.epochs else 1)

    def noted(self, result: ExperimentResult, *, trains: bool) -> ExperimentResult:
        """The result with where it comes from. trains: whether seeds of its own have a part in it."""
        info = self.store.info
        assert self.view.winner is not None
        about = {
            "command": self.command,
            "date": now(),
            "run": f"{self.record.place.name}, winner {trial_name(self.view.winner)}",
            "data": f"{info.name}, fingerprint {info.fingerprint}",
            "backbone": self.config.model.backbone,
            "seeds": self.seeds if trains else "",
            "test": "trials of the search were run after test had been read" if self.view.run.get("test_seen") else "",
            "not comparable with the paper": "; ".join(self.view.metrics["not_comparable"])
            if self.view.metrics
            else "",
            "versions": versions(),
        }
        return dataclasses.replace(result, about={key: value for key, value in about.items() if value})

    def models(self, arms: Sequence[Arm], experiment: str) -> dict[str, list[Model]]:
        """Every arm's models by seed, trained and measured where the run lacks them.

        A training that diverges under a seed leaves its arm with a model less; NoWinnerError where the first arm, with
        which the others are compared, has none. Reading test is noted in the winner's provenance under the experiment's
        name.
        """
        found: dict[str, list[Model]] = {arm.name: [] for arm in arms}
        with self.held():
            shares = self._shares(arms)
            self._check(shares)
            for share in shares:
                places = share.places
                if None in places:
                    share.pool.add([entry for _, entry in share.wanted])
                    self._train(share, experiment)
                    places = share.pool.models(share.wanted)
                for (arm, entry), place in zip(share.wanted, places, strict=True):
                    if place is not None:
                        found[arm.name].append(Model(arm.name, entry.index, place))
        if not found[arms[0].name]:
            raise NoWinnerError(f"no training of {arms[0].title} came to its end; the record: {self.record}")
        return found

    def check_encoder(self, config: RunConfig | None = None) -> None:
        """ConfigError where the text encoder is no longer what the run began with.

        config: an arm's; by default the winner's.
        """
        otherwise = "start from a search with these (--name NAME)"
        check_encoder(self.record, config or self.config, otherwise=otherwise)

    def check_encoders(self, arms: Sequence[Arm]) -> None:
        """ConfigError where models are to be trained that begin with another encoder than those they belong with."""
        self._check(self._shares(arms))

    def _check(self, shares: Sequence[_Share]) -> None:
        for pool, config, _, places in shares:
            if None in places:
                self.check_encoder(config)
                check_encoder(pool.record, config, otherwise=f"remove {pool.record} to train its models anew")

    def _shares(self, arms: Sequence[Arm]) -> list[_Share]:
        """What the arms want of each pool, under every seed."""
        by_shape: dict[str, list[tuple[Arm, RunConfig]]] = {}
        for arm in arms:
            config = configured(self.config, arm)
            by_shape.setdefault(shape_name(shape_of(config)), []).append((arm, config))
        shares = []
        for of in by_shape.values():
            _, config = of[0]
            pool = self._model_pool(config)
            wanted = [(arm, entry_of(config, index)) for arm, config in of for index in range(self.seeds)]
            shares.append(_Share(pool, config, wanted, pool.models(wanted)))
        return shares

    def _train(self, share: _Share, experiment: str) -> None:
        """Train all of a pool's entries that are not yet, and measure the models that are wanted."""
        pool, config, wanted, _ = share
        note_encoder(pool.record, config)
        if config.model.backbone == self.config.model.backbone:
            note_encoder(self.record, config)
        connect()
        entries, number = [entry for _, entry in wanted], len(pool.entries)
        search = {path: value for path, value in flatten(config).items() if path.startswith("search.")}
        search |= {"search.stage1_trials": number, "search.stage2_trials": number, "search.finalists": number}
        # An arm that diverges under every seed must not keep the others from being trained.
        search |= {"search.pruning": False, "search.failures_in_a_row": number + 1}
        nodes = cluster_nodes()
        room, memory = find_capacity(nodes, config, [number]), check_nodes(nodes, config, self.record.place)
        features = prepare_features(self.store, config)
        check_memory(features.train.nbytes + features.valid.nbytes, memory)
        torch.set_num_threads(os.cpu_count() or 1)
        job = Search(
            record=pool.record,
            space=space_of(shape_of(config), search, pool.entries, self.store.info.name),
            features=features,
            protocol=self.protocol,
            concurrent=room.concurrent,
            listeners=self.listeners,
            stop=self._stop,
            retrainings=pool.given(self.config.seed, entries),
        )
        budgets: dict[int, tuple[int, int]] = {
            stage: (number, (config.stage1 if stage == 1 else config.stage2).epochs) for stage in job.stages
        }
        left: dict[int, int] = {stage: pool.trials(stage, entries).count(None) for stage in job.stages}
        rows = ", ".join(dict.fromkeys(arm.title for arm, _ in wanted))
        for listener in self.listeners:
            listener(SearchStarted(room.concurrent, budgets, self.store.info.task))
            listener(RetrainingsStarted(f"{experiment}: {rows}; {self.seeds} seeds each", left))
        try:
            with watched(self._lose_cluster):
                job.run()
        except NoWinnerError as error:
            # Other shapes may have arms that end well.
            console.progress(str(error))
        below = str(pool.record).removeprefix(f"{self.record}/")
        trained = pool.trained(wanted)
        measure_models(job, trained, self.store, self.record, f"reproduce {experiment}", below=below)

    def _lose_cluster(self, what: str) -> None:
        """Leave at once, as a search does."""
        try:
            console.progress(f"error: {what}; finished trials are kept. To go on: {self.command}")
        finally:
            os._exit(ClusterError.exit_code)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The run is nobody else's meanwhile; signals end the experiment with its finished trials kept."""
        aside = contextlib.redirect_stdout(sys.stderr)
        with Lease(self.record.place, self.command), self._stop.on_signals(), aside:
            yield
