"""Record trials drawn over a search space under several seeds: the table that simulated searches take them from.

    python benchmarks/record_trials.py --dataset mosi --data DIR --space benchmarks/spaces/mosi_text.yaml \
        --work work/mosi --out trials/mosi_text.parquet

The first configuration is the space's starting point. The others come from a scrambled Sobol sequence. A configuration
of Stage 2 starts from one of the better configurations of Stage 1, each seed from the same seed there. The table has
the scores of all utterances of valid and test after every epoch, and at the end those of the weights averaged over the
last fifth of the steps. Nothing is chosen by the test scores. The folder `--work` keeps each trial, so the same command
resumes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.stats import qmc

from grcf_ray.console import Progress
from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.features import Features
from grcf_ray.data.pairs import Step
from grcf_ray.data.store import DatasetStore, find_data
from grcf_ray.errors import DivergedError
from grcf_ray.files import atomic_write, write_json
from grcf_ray.metrics import split_metrics
from grcf_ray.search.run_lookup import space_on
from grcf_ray.search.space import Choice, Dimension, Space
from grcf_ray.search.trial_table import write_table
from grcf_ray.search.winner import versions
from grcf_ray.train.assemble import initial_model, prepare_features, select_modalities
from grcf_ray.train.checkpoint import trained_tensors
from grcf_ray.train.precision import precision_here
from grcf_ray.train.stage import StageLoop, predict, stage_seed, use_deterministic_torch

BETTER = 0.4
"""Share of the configurations of Stage 1 that Stage 2 starts from."""
AVERAGED = 0.2
"""Share of the steps, the last ones, whose weights are averaged."""
_TIMINGS = ("utterances_per_s", "pairs_per_s")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the processes need to find data and space again."""

    dataset: str
    data: Path | None
    space_file: Path | None
    configurations: int
    work: Path

    @cached_property
    def store(self) -> DatasetStore:
        """Return the data set."""
        return find_data(self.dataset, self.data)

    @cached_property
    def space(self) -> Space:
        """Return the space, with the precision of this machine."""
        space = space_on(self.dataset, self.space_file, self.data, None)
        return space.with_settings({"train.precision": precision_here(space.config().train, torch.device("cpu"))})

    @cached_property
    def features(self) -> Features:
        """Return the features, with the rows of test behind those of valid."""
        store = _TestBehindValid(self.store.folder, self.store.info, self.store.files)
        return prepare_features(store, self.space.config(), cache=self.work / "cache")

    def params(self, stage: Literal[1, 2]) -> list[dict[str, Any]]:
        """Return the parameters of each configuration of a stage."""
        dimensions = self.space.dimensions(stage)
        drawn = qmc.Sobol(len(dimensions), seed=stage).random(self.configurations - 1)
        rest = [
            {path: _placed(dimension, float(at)) for (path, dimension), at in zip(dimensions.items(), row, strict=True)}
            for row in drawn
        ]
        return [self.space.start(stage), *rest]


class _TestBehindValid(DatasetStore):
    def read(self, split: str) -> pa.Table:
        """Return the rows of a split; those of valid are followed by those of test."""
        table = super().read(split)
        return pa.concat_tables([table, super().read("test")]) if split == "valid" else table


def _placed(dimension: Dimension, at: float) -> Any:
    """Return the value at a share of a dimension."""
    if isinstance(dimension, Choice):
        return dimension.choices[int(at * len(dimension.choices))]
    low, high = dimension.low, dimension.high
    return float(f"{low * (high / low) ** at if dimension.log else low + (high - low) * at:.6g}")


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
                    best = {name: tensor.detach().clone() for name, tensor in trained_tensors(self.model).items()}
            first = self._first_averaged()
            tensors = trained_tensors(self.model)
            with torch.no_grad():
                for name, total in self._sums.items():
                    tensors[name].copy_(total / (self._taken - first))
            self._validate()
        except DivergedError:
            pass
        return self.curve, np.array(self._scores, np.float32), best

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

    def _validate(self) -> dict[str, float]:
        with self.autocast():
            budget = self.limits.micro_batch_tokens
            score_N = predict(self.model, self.features, self.features.valid, device=self.device, token_budget=budget)
        if not np.isfinite(score_N).all():
            raise DivergedError("the model's scores are no longer finite")
        self._scores.append(score_N)
        metrics = split_metrics(
            score_N[: self.n_valid],
            self.features.valid.label_N[: self.n_valid],
            protocol=self.protocol,
            limit=self.features.half_range,
            origin=self.features.center,
            ties=self.config.metrics.ties,
        )
        return {f"valid/{name}": value for name, value in metrics.items()}


def record_trial(plan: Plan, stage: Literal[1, 2], number: int, seed: int, finalist: int | None) -> None:
    """Train a configuration of a stage under a seed, and write its result to the work folder.

    finalist: the configuration of Stage 1 to start from.
    """
    use_deterministic_torch(1)
    features, first = plan.features, plan.params(1)
    params = plan.params(stage)[number]
    given = params if finalist is None else {**first[finalist], **params}
    config = plan.space.config(given)
    seen = select_modalities(features, config.model.modalities)
    own = stage_seed(seed, stage, number)
    model = initial_model(config.model_in(stage), seen, seed=own)
    if finalist is not None:
        start = load_file(_place(plan.work, 1, finalist, seed).with_suffix(".safetensors"))
        with torch.no_grad():
            for name, tensor in trained_tensors(model).items():
                tensor.copy_(start[name])
    protocol = protocol_of(plan.store.info.name, plan.store.info.task)
    loop = RecordedLoop(model, seen, config, stage, seed=own, protocol=protocol)
    loop.n_valid = plan.store.info.splits["valid"]
    curve, score_EN, best = loop.record()
    place = _place(plan.work, stage, number, seed)
    if stage == 1 and best:
        with atomic_write(place.with_suffix(".safetensors")) as path:
            save_file({name: tensor.contiguous() for name, tensor in best.items()}, path)
    with atomic_write(place.with_suffix(".npy")) as path, path.open("wb") as file:
        np.save(file, score_EN, allow_pickle=False)
    kept = [{name: value for name, value in metrics.items() if name not in _TIMINGS} for metrics in curve]
    write_json(place.with_suffix(".json"), {"params": params, "finalist": finalist, "curve": kept})


def _place(work: Path, stage: int, number: int, seed: int) -> Path:
    return work / f"stage{stage}-{number:03d}-{seed}"


def record_stage(
    plan: Plan, stage: Literal[1, 2], finalists: Sequence[int] | None, seeds: int, processes: int
) -> list[dict[str, Any]]:
    """Record the trials of a stage that are not recorded yet, and return all of them.

    finalists: for each configuration of Stage 2, that of Stage 1 to start from.
    """
    jobs = [(number, seed) for seed in range(seeds) for number in range(plan.configurations)]
    missing = [job for job in jobs if not _place(plan.work, stage, *job).with_suffix(".json").exists()]
    progress = Progress(f"recording stage {stage}", len(missing))
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        calls = [
            pool.submit(record_trial, plan, stage, number, seed, finalists[number] if finalists else None)
            for number, seed in missing
        ]
        for call in concurrent.futures.as_completed(calls):
            call.result()
            progress.add(1)
    return [_trial(plan.work, stage, number, seed) for number, seed in jobs]


def _trial(work: Path, stage: int, number: int, seed: int) -> dict[str, Any]:
    place = _place(work, stage, number, seed)
    told = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    scores = np.load(place.with_suffix(".npy"), allow_pickle=False)
    return {"stage": stage, "configuration": number, "seed": seed, **told, "scores": scores}


def choose_finalists(first: Sequence[Mapping[str, Any]], configurations: int) -> list[int]:
    """Return a configuration of Stage 1 for each of Stage 2, drawn from the better ones; the first starts from its
    own."""
    figures: dict[int, list[float]] = {}
    for trial in first:
        values = [metrics["valid/pairwise_acc"] for metrics in trial["curve"]]
        figures.setdefault(trial["configuration"], []).append(max(values, default=0.0))
    ranked = sorted(figures, key=lambda number: -min(figures[number]))
    better = ranked[: max(1, round(BETTER * len(ranked)))]
    drawn = np.random.default_rng(0).permutation(np.resize(better, configurations - 1))
    return [0, *drawn.tolist()]


def describe(plan: Plan) -> dict[str, Any]:
    """Return what the table has to tell besides the trials."""
    features, n_valid = plan.features, plan.store.info.splits["valid"]
    label_N = features.valid.label_N
    return {
        "dataset": plan.store.info.name,
        "task": features.task,
        "protocol": protocol_of(plan.store.info.name, plan.store.info.task),
        "half_range": features.half_range,
        "space": plan.space.as_dict(),
        "valid": label_N[:n_valid].tolist(),
        "test": label_N[n_valid:].tolist(),
        "versions": versions(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Record both stages, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="demo", metavar="NAME", help="a known data set [default: demo]")
    parser.add_argument("--data", type=Path, metavar="DIR", help="path to the data")
    parser.add_argument("--space", type=Path, metavar="FILE", help="search space [default: the data set's]")
    parser.add_argument("--configurations", type=int, default=104, metavar="N", help="of each stage [default: 104]")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="of each configuration [default: 2]")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="trials at a time [default: 2]")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for the trials")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Parquet file to write")
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    plan = Plan(given.dataset, given.data, given.space, given.configurations, given.work)
    # The processes read the features that this one builds.
    assert plan.features
    first = record_stage(plan, 1, None, given.seeds, given.processes)
    finalists = choose_finalists(first, given.configurations)
    second = record_stage(plan, 2, finalists, given.seeds, given.processes)
    write_table(given.out, describe(plan), [*first, *second])


if __name__ == "__main__":
    main()
