"""Compare float32 with bfloat16 on a CPU: validation metrics over ten seeds, CPU time of trainings and of steps.

    python benchmarks/precision.py --data DIR --work work/precision --out docs/performance

Trains the starting point of `mosi_cpu` through both stages under each seed and precision, two trainings at a time, in
about an hour on two cores. The folder `--work` keeps the result of each training, so the same command resumes. The test
split is not read.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recording import run_all
from study import PAIRED, paired_interval

from grcf_ray.api.training import train_model
from grcf_ray.bench.measure import TIMES, Variant, timed_rows
from grcf_ray.bench.setup import Setup, deliver, open_setup
from grcf_ray.bench.step import first_step, new_loop
from grcf_ray.config import parse_assignments
from grcf_ray.data.pairs import Step
from grcf_ray.files import write_json
from grcf_ray.statistics import spread
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.stage import StageLoop, use_deterministic_torch

PRECISIONS = ("float32", "bfloat16")
SPACE = "search_spaces/mosi_cpu.yaml"
FROZEN = (0, 2, 4)
"""Frozen layers of the timed steps."""
METRICS = {"pairwise_acc": "PairwiseAcc on valid, Stage 1", "mae": "MAE on valid, Stage 2"}

Results = Mapping[tuple[int, str], Mapping[str, float]]
"""By seed and precision: the metrics, and the training's CPU `seconds`."""


def train_seed(data: str, seed: int, settings: Mapping[str, Any], work: Path) -> None:
    """Train under each precision that has no result yet, one after the other, so that they share the conditions."""
    use_deterministic_torch(1)
    for precision in PRECISIONS if seed % 2 else reversed(PRECISIONS):
        result = work / f"{precision}-{seed}.json"
        if result.exists():
            continue
        with tempfile.TemporaryDirectory() as out:
            before = time.process_time()
            changes = {**settings, "seed": seed, "train.precision": precision}
            training = train_model("mosi", data=data, space=SPACE, settings=changes, out=out, threads=1)
            seconds = time.process_time() - before
        answer = {
            "pairwise_acc": training.best[1]["valid/pairwise_acc"],
            "mae": training.best[2]["valid/mae"],
            "seconds": seconds,
        }
        write_json(result, answer)


def train_all(data: str, seeds: Sequence[int], settings: Mapping[str, Any], work: Path, processes: int) -> Results:
    """Train the seeds that have no result yet, and return the results of all seeds."""
    work.mkdir(parents=True, exist_ok=True)
    jobs = [(data, seed, settings, work) for seed in seeds]
    run_all(train_seed, jobs, processes=processes, title="training")
    return {
        (seed, precision): json.loads((work / f"{precision}-{seed}.json").read_text(encoding="utf-8"))
        for seed in seeds
        for precision in PRECISIONS
    }


def metrics_table(results: Results) -> Table:
    """Compare the metrics, paired by seed."""
    seeds = sorted({seed for seed, _ in results})
    rows = []
    for key, title in METRICS.items():
        single, half = ([results[seed, precision][key] for seed in seeds] for precision in PRECISIONS)
        rows.append(
            {
                "name": title,
                "single": statistics.fmean(single),
                "deviation": spread(single).deviation,
                "half": statistics.fmean(half),
                "half_deviation": spread(half).deviation,
                **paired_interval(half, single),
            }
        )
    ratios = [results[seed, "float32"]["seconds"] / results[seed, "bfloat16"]["seconds"] for seed in seeds]
    return Table(
        "metrics",
        f"Starting point of mosi_cpu under {len(seeds)} seeds",
        (
            Column("name", "metric"),
            Column("single", "float32", "{:.4f}"),
            Column("deviation", "deviation", "{:.4f}"),
            Column("half", "bfloat16", "{:.4f}"),
            Column("half_deviation", "deviation", "{:.4f}"),
            *PAIRED,
        ),
        rows,
        (
            "difference: bfloat16 minus float32 with its 95 % t interval, paired by seed; deviation: over the seeds",
            f"CPU time of a whole training, float32 over bfloat16: median {statistics.median(ratios):.2f}, "
            f"from {min(ratios):.2f} to {max(ratios):.2f} over the seeds",
        ),
    )


def steps_table(setup: Setup) -> Table:
    """Time optimizer steps of the space's batch in both precisions in turn, by the layers that are trained.

    A step that is repeated has the same sizes again. The steps of a training differ in the lengths of their texts.
    """
    rows: list[dict[str, Any]] = []
    for frozen in FROZEN:
        # Another seed draws other texts.
        config = setup.changed({"model.frozen_layers": frozen, "seed": frozen})
        features = prepare_features(setup.store, config)
        for title, repeated in (("one step again", True), ("steps of a training", False)):
            variants = []
            for precision in PRECISIONS:
                loop = new_loop(features, config, setup.device, {"train.precision": precision})
                steps = itertools.repeat(first_step(loop)) if repeated else loop.steps()
                take = functools.partial(_take_next, loop, steps)
                variants.append(Variant(f"{frozen} of 6 layers frozen, {title}, {precision}", take))
            rows += timed_rows(setup, variants)
    notes = ("oneDNN prepares a product of matrices in bfloat16 when a number of subwords first occurs",)
    return Table("steps", "Optimizer steps of 32 pairs, CPU time", (Column("name", "step"), *TIMES), rows, notes)


def _take_next(loop: StageLoop, steps: Iterator[Step]) -> None:
    loop.take_step(next(steps))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="path to MOSI")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for the trainings' results")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a setting")
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="seeds [default: 10]")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="trainings at a time [default: 2]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for precision.md")
    given = parser.parse_args(arguments)
    with open_setup("mosi", given.data, None, Path(SPACE), given.set) as setup:
        prepare_features(setup.store, setup.config)
        settings = parse_assignments(given.set)
        results = train_all(str(given.data), range(1, given.seeds + 1), settings, given.work, given.processes)
        tables = [metrics_table(results), steps_table(setup)]
    about = setup.about(f"python benchmarks/{Path(__file__).name}", given.data)
    deliver("precision", about, tables, given.out, as_json=False)


if __name__ == "__main__":
    main()
