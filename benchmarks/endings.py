"""Compare what a search can deliver from the models that it has at its end.

    python benchmarks/endings.py --dataset mosi --data DIR --space benchmarks/spaces/mosi_text.yaml \
        --table benchmarks/trials/mosi_text.parquet --work work/endings --out docs/performance

Under each seed, the starting point of Stage 1 is trained once, and configurations of Stage 2 drawn from the space start
from its best epoch. From these models come the best by validation, averages of weights (soups) and averages of scores
(ensembles). The best configuration is also trained again, both stages under a fresh seed: on train alone, and on train
and valid together. There, Stage 2 starts from the last epoch of Stage 1, because only train leaves an epoch to be
chosen. Validation chooses; test is read for the figures alone. The folder `--work` keeps each seed, so the same command
resumes; `--as-is` makes the page from the seeds that are there. With `--table`, ensembles of recorded trials are
compared too: groups of as many of Stage 2, each trial in one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from recording import RecordedLoop, Source, Weights, run_all, split_objectives
from safetensors.torch import load_file, save_file
from study import PAIRED, paired_interval

from grcf_ray.bench.setup import deliver, open_setup
from grcf_ray.files import atomic_write, write_json
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.search import table_file
from grcf_ray.search.space import Space
from grcf_ray.search.table_file import SPLITS
from grcf_ray.tables import Column, Table
from grcf_ray.train.curve import objective_name
from grcf_ray.train.stage import stage_seed

SINGLE, GREEDY, SOUP, THREE, ENSEMBLE = (
    "the best by validation",
    "greedy soup",
    "soup of all",
    "ensemble of the best three",
    "ensemble of all",
)
AGAIN_BEST, AGAIN_LAST, REFIT = (
    "trained again, best epoch",
    "trained again, last epoch",
    "trained again on train and valid, last epoch",
)
STEPS = {
    "a fresh seed for the one that was chosen": (AGAIN_BEST, SINGLE),
    "the choice of an epoch": (AGAIN_BEST, AGAIN_LAST),
    "the utterances of valid": (REFIT, AGAIN_LAST),
}
AGAIN = 1000
"""Number of the fresh seed, above those of the configurations."""
Ending = dict[str, Any]
"""The error on `valid` and `test`, and the number of `models` in it."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained stage."""

    objectives: Sequence[Mapping[str, float]]
    """By epoch: on valid and on test."""
    score_EN: NDArray[Any]
    """By epoch: of valid and test."""
    best: Weights
    """Of the best epoch on valid."""
    last: Weights

    @property
    def errors(self) -> list[float]:
        """The objective on valid by epoch; of Stage 2, an error."""
        return [objective["valid"] for objective in self.objectives]

    @property
    def best_epoch(self) -> int:
        """Index of the epoch of Stage 2 with the least error on valid."""
        return int(np.argmin(self.errors))

    @property
    def ending(self) -> Ending:
        """The best epoch of Stage 2 as an ending."""
        return {**self.objectives[self.best_epoch], "models": 1}

    @property
    def score_N(self) -> NDArray[Any]:
        """The scores of the best epoch of Stage 2."""
        score_N: NDArray[Any] = self.score_EN[self.best_epoch]
        return score_N


@dataclasses.dataclass(frozen=True)
class Trainings:
    """Trainings under a seed, kept in a folder."""

    source: Source
    seed: int
    folder: Path

    def train(
        self, stage: Literal[1, 2], number: int, params: Mapping[str, Any], start: Weights | None = None
    ) -> Model:
        """Train a stage, or read what an earlier start trained. number: of its seed. start: initial weights."""
        place = self.folder / f"stage{stage}-{number}{'-with-valid' * self.source.with_valid}"
        if not place.with_suffix(".json").exists():
            self._record(self.loop(stage, number, params, start), place)
        weights = load_file(place.with_suffix(".safetensors"))
        best, last = (
            {name.partition(":")[2]: tensor for name, tensor in weights.items() if name.startswith(f"{epoch}:")}
            for epoch in ("best", "last")
        )
        objectives = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
        return Model(objectives, np.load(place.with_suffix(".npy"), allow_pickle=False), best, last)

    def loop(
        self, stage: Literal[1, 2], number: int, params: Mapping[str, Any], start: Weights | None = None
    ) -> RecordedLoop:
        """Return the loop of a training."""
        seed = stage_seed(self.seed, stage, number)
        return self.source.loop(self.source.space.config(params), stage, seed, start, RecordedLoop)

    def _record(self, loop: RecordedLoop, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        curve, score_EN, best = loop.record()
        score_EN = score_EN[: len(curve)]
        weights = {
            f"{epoch}:{name}": tensor.contiguous()
            for epoch, kept in (("best", best), ("last", loop.last))
            for name, tensor in kept.items()
        }
        with atomic_write(place.with_suffix(".safetensors")) as path:
            save_file(weights, path)
        with atomic_write(place.with_suffix(".npy")) as path, path.open("wb") as file:
            np.save(file, score_EN, allow_pickle=False)
        # The last file says that all are there.
        write_json(place.with_suffix(".json"), [loop.objectives(score_N) for score_N in score_EN])


def compare_endings(source: Source, seed: int, configurations: int, place: Path) -> None:
    """Train under a seed, and write its endings."""
    folder = place.with_suffix("")
    trainings = Trainings(source, seed, folder)
    first = trainings.train(1, 0, {})
    drawn = draw_configurations(source.space, seed, configurations)
    models = [trainings.train(2, number, params, first.best) for number, params in enumerate(drawn)]
    order = sorted(range(len(models)), key=lambda number: models[number].ending["valid"])
    endings = mixed_endings([models[number] for number in order], trainings.loop(2, 0, {}))
    endings |= again_endings(trainings, drawn[order[0]])
    write_json(place, endings)
    shutil.rmtree(folder)


def draw_configurations(space: Space, seed: int, count: int) -> list[dict[str, Any]]:
    """Return parameters of Stage 2, drawn from the space."""
    rng = np.random.default_rng(seed)
    return [
        {path: dimension.value_at(rng.uniform()) for path, dimension in space.dimensions(2).items()}
        for _ in range(count)
    ]


def mixed_endings(models: Sequence[Model], loop: RecordedLoop) -> dict[str, Ending]:
    """Return the endings of models that are there. models: the best first. loop: any of theirs, to score with."""

    def soup(parts: Sequence[Model]) -> Ending:
        scores = loop.scores_of(mean_weights([model.best for model in parts]))
        return {**loop.objectives(scores), "models": len(parts)}

    taken, greedy = [models[0]], models[0].ending
    for model in models[1:]:
        more = soup([*taken, model])
        if more["valid"] < greedy["valid"]:
            taken, greedy = [*taken, model], more
    return {
        SINGLE: models[0].ending,
        GREEDY: greedy,
        SOUP: soup(models),
        **ensembles(models, loop.objectives),
    }


def ensembles(models: Sequence[Model], objectives: Callable[[NDArray[Any]], dict[str, float]]) -> dict[str, Ending]:
    """Return the endings that average scores. models: the best first. objectives: of scores of valid and test."""
    return {
        name: {**objectives(np.mean([model.score_N for model in parts], axis=0)), "models": len(parts)}
        for name, parts in ((THREE, models[:3]), (ENSEMBLE, models))
    }


def recorded_endings(path: Path, size: int) -> list[dict[str, Ending]]:
    """Return the endings of groups of recorded trials of Stage 2. size: of a group."""
    about = json.loads(pq.read_schema(path).metadata[b"about"])
    label_N = np.concatenate([about[split] for split in SPLITS])
    objectives = partial(
        split_objectives,
        label_N=label_N,
        n_valid=len(about["valid"]),
        metric=objective_name(2, about["task"]),
        protocol=about["protocol"],
        limit=about["half_range"],
    )
    models = []
    for row in pq.read_table(path, filters=[("stage", "=", 2)]).to_pylist():
        score_CN = np.array(row["scores"]).reshape(-1, len(label_N)).cumsum(axis=0) / table_file._SCALE
        # Behind those of the epochs are those of the averaged weights.
        score_EN = score_CN[: len(row["seconds"])]
        models.append(Model([objectives(score_N) for score_N in score_EN], score_EN, {}, {}))
    order = np.random.default_rng(0).permutation(len(models))
    groups = order[: len(order) // size * size].reshape(-1, size)
    answer = []
    for group in groups:
        ranked = sorted((models[number] for number in group), key=lambda model: min(model.errors))
        answer.append({SINGLE: ranked[0].ending, **ensembles(ranked, objectives)})
    return answer


def mean_weights(parts: Sequence[Weights]) -> dict[str, torch.Tensor]:
    """Return the mean of weights."""
    return {
        name: torch.stack([weights[name].double() for weights in parts]).mean(0).to(tensor.dtype)
        for name, tensor in parts[0].items()
    }


def again_endings(trainings: Trainings, params: Mapping[str, Any]) -> dict[str, Ending]:
    """Return the endings of a configuration of Stage 2 that is trained again, both stages, with and without valid."""

    def again(source: Source) -> Model:
        fresh = dataclasses.replace(trainings, source=source)
        return fresh.train(2, AGAIN, params, fresh.train(1, AGAIN, {}).last)

    alone = again(trainings.source)
    together = again(dataclasses.replace(trainings.source, with_valid=True))
    return {
        AGAIN_BEST: alone.ending,
        AGAIN_LAST: {**alone.objectives[-1], "models": 1},
        # It has been trained on valid.
        REFIT: {"test": together.objectives[-1]["test"], "models": 1},
    }


def endings_table(seeds: Sequence[Mapping[str, Ending]], name: str, title: str, over: str) -> Table:
    """Compare the endings with the first of them. over: what the means are over."""
    rows = []
    for ending in seeds[0]:
        tests, reference = ([seed[one]["test"] for seed in seeds] for one in (ending, SINGLE))
        valid = [seed[ending]["valid"] for seed in seeds if "valid" in seed[ending]]
        row: dict[str, Any] = {
            "name": ending,
            "models": statistics.fmean(seed[ending]["models"] for seed in seeds),
            "valid": statistics.fmean(valid) if valid else None,
            "test": statistics.fmean(tests),
            "deviation": statistics.stdev(tests),
        }
        rows.append(row if ending == SINGLE else {**row, **paired_interval(tests, reference)})
    return Table(
        name,
        title,
        (
            Column("name", "ending"),
            Column("models", "models", "{:.1f}"),
            Column("valid", "on valid", "{:.4f}"),
            Column("test", "on test", "{:.4f}"),
            Column("deviation", "deviation", "{:.4f}"),
            *PAIRED,
        ),
        rows,
        (
            f"means over {len(seeds)} {over}; difference on test to the first line with its 95 % t interval, paired",
            "models: whose weights or scores are averaged",
        ),
    )


def steps_table(seeds: Sequence[Mapping[str, Ending]]) -> Table:
    """Take apart what refitting changes."""
    rows = [
        {"name": name, **paired_interval(*([seed[ending]["test"] for seed in seeds] for ending in pair))}
        for name, pair in STEPS.items()
    ]
    return Table("steps", "What training again changes on test", (Column("name", "by"), *PAIRED), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mosi", metavar="NAME", help="a known data set [default: mosi]")
    parser.add_argument("--data", type=Path, metavar="DIR", help="path to the data")
    parser.add_argument("--space", type=Path, metavar="FILE", help="search space [default: the data set's]")
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="seeds [default: 8]")
    parser.add_argument("--configurations", type=int, default=6, metavar="N", help="of Stage 2 [default: 6]")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="trainings at a time [default: 2]")
    parser.add_argument("--table", type=Path, metavar="FILE", help="recorded trials, for ensembles of them")
    parser.add_argument("--as-is", action="store_true", help="start nothing; tell of what is finished")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for the trainings' results")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the page")
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    source = Source(given.dataset, given.data, given.space, given.work)
    places = [given.work / f"seed-{seed}.json" for seed in range(1, given.seeds + 1)]
    missing = [(source, seed, given.configurations, p) for seed, p in enumerate(places, 1) if not p.exists()]
    if missing and not given.as_is:
        run_all(compare_endings, missing, processes=given.processes, title="training")
    seeds = [json.loads(place.read_text(encoding="utf-8")) for place in places if place.exists()]
    title = METRIC_TITLES[objective_name(2, source.store.info.task)]
    tables = []
    if seeds:
        tables += [endings_table(seeds, "endings", f"Endings of a search: {title}", "seeds"), steps_table(seeds)]
    if given.table:
        groups = recorded_endings(given.table, given.configurations)
        over = f"groups of {given.configurations} trials"
        tables.append(endings_table(groups, "recorded", f"Ensembles of recorded trials: {title}", over))
    with open_setup(given.dataset, given.data, None, given.space, []) as setup:
        about = setup.about(f"python benchmarks/{Path(__file__).name}", given.data)
    deliver("endings", about, tables, given.out, as_json=False)


if __name__ == "__main__":
    main()
