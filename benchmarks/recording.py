"""Train stages in this process, and keep the scores of valid and test after every epoch."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from grcf_ray.config import RunConfig, parse_assignments
from grcf_ray.console import Progress
from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.features import Features
from grcf_ray.data.pairs import Step
from grcf_ray.data.store import DatasetStore, find_data
from grcf_ray.errors import DivergedError
from grcf_ray.metrics import split_metrics
from grcf_ray.model.base import MultimodalModel
from grcf_ray.search.run_lookup import space_on
from grcf_ray.search.space import Space
from grcf_ray.search.table_file import SPLITS
from grcf_ray.train.assemble import initial_model, prepare_features, select_modalities
from grcf_ray.train.checkpoint import trained_tensors
from grcf_ray.train.curve import objective_name
from grcf_ray.train.precision import precision_here
from grcf_ray.train.stage import StageLoop, use_deterministic_torch

AVERAGED = 0.2
"""Share of the steps, the last ones, whose weights are averaged."""

_Loop = TypeVar("_Loop", bound="RecordedLoop")
Weights = Mapping[str, torch.Tensor]
"""The trained tensors of a model, by name."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set and a space, as processes find them again.

    work: folder of the features and the results. settings: in place of the space's.
    """

    dataset: str
    data: Path | None
    space_file: Path | None
    work: Path
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def store(self) -> DatasetStore:
        """Return the data set."""
        return find_data(self.dataset, self.data)

    @cached_property
    def space(self) -> Space:
        """Return the space, with the precision of this machine."""
        space = space_on(self.dataset, self.space_file, self.data, None, self.settings)
        return space.with_settings({"train.precision": precision_here(space.config().train, torch.device("cpu"))})

    @cached_property
    def features(self) -> Features:
        """Return the features, with the rows of test behind those of valid."""
        store = _TestBehindValid(self.store.folder, self.store.info, self.store.files)
        return prepare_features(store, self.space.config(), cache=self.work / "cache")

    def loop(
        self, config: RunConfig, stage: Literal[1, 2], seed: int, start: Weights | None, kind: type[_Loop]
    ) -> _Loop:
        """Return the loop of a stage, of one thread. start: weights to start from."""
        use_deterministic_torch(1)
        seen = select_modalities(self.features, config.model.modalities)
        model = initial_model(config.model_in(stage), seen, seed=seed)
        if start is not None:
            load_weights(model, start)
        protocol = protocol_of(self.store.info.name, self.store.info.task)
        loop = kind(model, seen, config, stage, seed=seed, protocol=protocol)
        loop.n_valid = self.store.info.splits["valid"]
        return loop


class _TestBehindValid(DatasetStore):
    def read(self, split: str) -> pa.Table:
        """Return the rows of a split; those of valid are followed by those of test."""
        table = super().read(split)
        return pa.concat_tables([table, super().read("test")]) if split == "valid" else table


def load_weights(model: MultimodalModel, weights: Weights) -> None:
    """Copy the weights into a model."""
    with torch.no_grad():
        for name, tensor in trained_tensors(model).items():
            tensor.copy_(weights[name])


def _copied(model: MultimodalModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trained_tensors(model).items()}


class RecordedLoop(StageLoop):
    """A stage loop that keeps the scores after every epoch, and the weights averaged over the last steps."""

    n_valid: int

    def record(self) -> tuple[list[dict[str, Any]], NDArray[np.float32], dict[str, torch.Tensor]]:
        """Train; return the curve, the scores [epochs + 1, N] with those of the averaged weights last, and the best
        epoch's weights.

        The curve ends early, and the scores with it, if numbers are no longer finite.
        """
        self._scores: list[NDArray[np.float64]] = []
        self._sums: dict[str, torch.Tensor] = {}
        self._taken = 0
        best: dict[str, torch.Tensor] = {}
        try:
            for _ in range(self.epochs):
                before = time.process_time()
                metrics = self.run_epoch()
                metrics["seconds"] = time.process_time() - before
                if self.best_epoch == self.epoch:
                    best = _copied(self.model)
            first = self._first_averaged()
            tensors = trained_tensors(self.model)
            with torch.no_grad():
                for name, total in self._sums.items():
                    tensors[name].copy_(total / (self._taken - first))
            self._validate()
        except DivergedError:
            pass
        return self.curve, np.array(self._scores, np.float32), best

    def objectives(self, score_N: NDArray[Any]) -> dict[str, float]:
        """Return the stage's objective by split, from the scores [N] of valid and test."""
        features = self.features
        parts = (np.split(values_N, [self.n_valid]) for values_N in (score_N, features.valid.label_N))
        metric = objective_name(self.stage, features.task)
        return {
            split: split_metrics(
                part_N,
                label_N,
                protocol=self.protocol,
                limit=features.half_range,
                origin=features.center,
                only=metric,
            )[metric]
            for split, part_N, label_N in zip(SPLITS, *parts, strict=True)
        }

    def take_step(self, step: Step) -> Any:
        """Take a step, and add the weights to the sums if it is one of the last."""
        result = super().take_step(step)
        if self._taken >= self._first_averaged():
            for name, tensor in trained_tensors(self.model).items():
                if tensor.is_floating_point():
                    before = self._sums.get(name)
                    self._sums[name] = tensor.detach().double() + (0 if before is None else before)
        self._taken += 1
        return result

    def _first_averaged(self) -> int:
        return round((1 - AVERAGED) * self.epochs * self.steps_per_epoch)

    def _measured(self, score_N: NDArray[np.float64], label_N: NDArray[np.float64]) -> dict[str, float]:
        self._scores.append(score_N)
        return super()._measured(score_N[: self.n_valid], label_N[: self.n_valid])


def study_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all studies that train in processes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mosi", metavar="NAME", help="a known data set [default: %(default)s]")
    parser.add_argument("--data", type=Path, metavar="DIR", help="path to the data")
    parser.add_argument("--space", type=Path, metavar="FILE", help="search space [default: the data set's]")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change a setting; may be repeated"
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="trials at a time [default: 2]")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for results, to resume from")
    return parser


def open_source(given: argparse.Namespace) -> Source:
    """Return the data and the space that the options of `study_parser` name, with the features that processes read."""
    given.work.mkdir(parents=True, exist_ok=True)
    source = Source(given.dataset, given.data, given.space, given.work, parse_assignments(given.set))
    assert source.features
    return source


def run_all(call: Callable[..., None], jobs: Iterable[tuple[Any, ...]], *, processes: int, title: str) -> None:
    """Call a function with each of these arguments, in other processes. The first error ends all."""
    jobs = list(jobs)
    progress = Progress(title, len(jobs))
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        try:
            for future in concurrent.futures.as_completed([pool.submit(call, *job) for job in jobs]):
                future.result()
                progress.add(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
