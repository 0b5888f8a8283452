"""Record trials drawn over a search space under several seeds: the table that simulated searches take them from.

    python benchmarks/record_trials.py --dataset mosi --data DIR --space benchmarks/spaces/mosi_text.yaml \
        --work work/mosi --out trials/mosi_text.parquet

The first configuration is the space's starting point. The others come from a scrambled Sobol sequence. A configuration
of Stage 2 starts from one of the better configurations of Stage 1, each seed from the same seed there. The table has
the figures, and the scores of all utterances of valid and test, after every epoch, and at the end those of the weights
averaged over the last fifth of the steps. Nothing is chosen by the test scores. The folder `--work` keeps each trial,
so the same command resumes. The table of the package, which plans searches (`grcf search --simulate`), is made from the
same folder, with `--no-scores --out grcf_ray/search/trials/mosi_text.parquet`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from recording import RecordedLoop, Source, open_source, run_all, study_parser
from safetensors.torch import load_file, save_file
from scipy.stats import qmc

from grcf_ray.data.datasets import protocol_of
from grcf_ray.errors import ConfigError
from grcf_ray.files import atomic_write, write_json
from grcf_ray.metrics import split_metrics
from grcf_ray.search.space import Space
from grcf_ray.search.table_file import SCALE, SPLITS
from grcf_ray.search.winner import versions
from grcf_ray.train.curve import objective_name
from grcf_ray.train.stage import stage_seed

BETTER = 0.4
"""Share of the configurations of Stage 1 that Stage 2 starts from."""
_TIMINGS = ("utterances_per_s", "pairs_per_s")
_FIGURES = ("seconds", "passes", *SPLITS)


def draw_params(space: Space, stage: Literal[1, 2], configurations: int) -> list[dict[str, Any]]:
    """Return the parameters of each configuration of a stage."""
    dimensions = space.dimensions(stage)
    # A sequence is balanced up to powers of two.
    drawn = qmc.Sobol(len(dimensions), seed=stage).random_base2(math.ceil(math.log2(configurations)))
    rest = [
        {path: dimension.value_at(float(at)) for (path, dimension), at in zip(dimensions.items(), row, strict=True)}
        for row in drawn[: configurations - 1]
    ]
    return [space.start(stage), *rest]


def record_trial(
    source: Source,
    stage: Literal[1, 2],
    number: int,
    seed: int,
    given: Mapping[str, Any],
    params: Mapping[str, Any],
    finalist: int | None,
) -> None:
    """Train a configuration of a stage under a seed, and write its result to the work folder.

    given: the parameters of both stages. finalist: the configuration of Stage 1 to start from.
    """
    start = None if finalist is None else load_file(_place(source, 1, finalist, seed).with_suffix(".safetensors"))
    config = source.space.config(given)
    loop = source.loop(config, stage, stage_seed(seed, stage, number), start, RecordedLoop)
    curve, score_EN, best = loop.record()
    place = _place(source, stage, number, seed)
    if stage == 1 and best:
        with atomic_write(place.with_suffix(".safetensors")) as path:
            save_file({name: tensor.contiguous() for name, tensor in best.items()}, path)
    with atomic_write(place.with_suffix(".npy")) as path, path.open("wb") as file:
        np.save(file, score_EN, allow_pickle=False)
    kept = [{name: value for name, value in metrics.items() if name not in _TIMINGS} for metrics in curve]
    write_json(place.with_suffix(".json"), {"params": dict(params), "finalist": finalist, "curve": kept})


def _place(source: Source, stage: int, number: int, seed: int) -> Path:
    return source.work / f"stage{stage}-{number:03d}-{seed}"


def record_stage(
    source: Source, stage: Literal[1, 2], finalists: Mapping[int, int | None], seeds: int, processes: int
) -> list[dict[str, Any]]:
    """Record the trials of a stage that are not recorded yet, and return all of them.

    finalists: for the number of each configuration, that of Stage 1 to start from.
    """
    firsts, own = (draw_params(source.space, number, max(finalists) + 1) for number in (1, stage))
    jobs = []
    for seed in range(seeds):
        for number, finalist in finalists.items():
            params = own[number]
            given = params if finalist is None else {**firsts[finalist], **params}
            jobs.append((source, stage, number, seed, given, params, finalist))
    missing = [job for job in jobs if not _place(source, stage, job[2], job[3]).with_suffix(".json").exists()]
    run_all(record_trial, missing, processes=processes, title=f"recording stage {stage}")
    return [_trial(source, stage, number, seed) for _, _, number, seed, *_ in jobs]


def _trial(source: Source, stage: int, number: int, seed: int) -> dict[str, Any]:
    place = _place(source, stage, number, seed)
    told = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    scores = np.load(place.with_suffix(".npy"), allow_pickle=False)
    return {"stage": stage, "configuration": number, "seed": seed, **told, "scores": scores}


def choose_finalists(first: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Return for each configuration one of Stage 1 for Stage 2 to start from, drawn from the better ones.

    The starting point starts from its own.
    """
    figures: dict[int, list[float]] = {}
    for trial in first:
        values = [metrics["valid/pairwise_acc"] for metrics in trial["curve"]]
        figures.setdefault(trial["configuration"], []).append(max(values, default=0.0))
    ranked = sorted(figures, key=lambda number: -min(figures[number]))
    better = ranked[: max(1, round(BETTER * len(ranked)))]
    others = [number for number in figures if number]
    drawn = np.random.default_rng(0).permutation(np.resize(better, len(others)))
    return dict(zip(figures, [0, *drawn.tolist()] if 0 in figures else drawn.tolist(), strict=True))


def describe(source: Source) -> dict[str, Any]:
    """Return what the table has to tell besides the trials."""
    features, n_valid = source.features, source.store.info.splits["valid"]
    label_N = features.valid.label_N
    return {
        "dataset": source.store.info.name,
        "task": features.task,
        "protocol": protocol_of(source.store.info.name, source.store.info.task),
        "half_range": features.half_range,
        "space": source.space.as_dict(),
        "valid": label_N[:n_valid].tolist(),
        "test": label_N[n_valid:].tolist(),
        "versions": versions(),
    }


def write_table(
    path: Path,
    about: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    *,
    with_scores: bool = True,
    after: Path | None = None,
) -> None:
    """Write recorded trials as one Parquet file. Trials that diverged are left out.

    about: the data set, its task, protocol and half_range, the space, and the labels of valid and test about the centre
    of the label range. trials: each with stage, configuration, seed, finalist (the configuration of Stage 1 that it
    starts from, or None), params, curve, and scores [C, N], those of valid before those of test. after: a table whose
    trials come first.
    """
    figures = pa.list_(pa.float32())
    columns = {
        "stage": pa.int8(),
        "configuration": pa.int32(),
        "seed": pa.int32(),
        "finalist": pa.int32(),
        "start": pa.float32(),
        "params": pa.string(),
        **dict.fromkeys(_FIGURES, figures),
    }
    if with_scores:
        columns["scores"] = pa.list_(pa.int16())
    told = about if with_scores else {name: value for name, value in about.items() if name not in SPLITS}
    rows = [_table_row(about, trial) for trial in trials]
    starts = {
        (row["configuration"], row["seed"]): max(row["valid"][: len(row["seconds"])], default=None)
        for row in rows
        if row["stage"] == 1
    }
    lengths = {stage: max(len(row["seconds"]) for row in rows if row["stage"] == stage) for stage in (1, 2)}
    kept = [
        {**row, "start": starts.get((row["finalist"], row["seed"]))}
        for row in rows
        if len(row["seconds"]) == lengths[row["stage"]]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        schema = pa.schema(columns, {"about": json.dumps(told)})
        earlier = [] if after is None else [pq.read_table(after, columns=schema.names).cast(schema)]
        table = pa.concat_tables([*earlier, pa.Table.from_pylist(kept, schema)])
        pq.write_table(table, file, compression="zstd", compression_level=19)


def _table_row(about: Mapping[str, Any], trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial as a row of the file."""
    metric = objective_name(trial["stage"], about["task"])
    score_CN = np.asarray(trial["scores"]).reshape(-1, len(about["valid"]) + len(about["test"]))
    limits = {"protocol": about["protocol"], "limit": about["half_range"]}
    row = {name: trial[name] for name in ("stage", "configuration", "seed", "finalist")}
    row |= {
        "params": json.dumps(trial["params"]),
        "seconds": [metrics["seconds"] for metrics in trial["curve"]],
        "passes": [metrics["utterance_passes"] for metrics in trial["curve"]],
        # Scores change little from epoch to epoch, and small numbers take less room.
        "scores": np.diff(np.round(score_CN * SCALE).astype(np.int16), axis=0, prepend=np.int16(0)).reshape(-1),
    }
    for split, part_CN in zip(SPLITS, np.split(score_CN, [len(about["valid"])], axis=1), strict=True):
        label_N = np.asarray(about[split])
        row[split] = [split_metrics(score_N, label_N, only=metric, **limits)[metric] for score_N in part_CN]
    return row


def next_configuration(table: Path, space: Space) -> int:
    """Return the first number after those of a table's configurations.

    Raises ConfigError if its trials are of another space: its seconds and figures would be others.
    """
    recorded = json.loads(pq.read_schema(table).metadata[b"about"])["space"]
    if recorded != space.as_dict():
        raise ConfigError(
            f"{table} has trials of another space or precision; record a table of its own, without --extend"
        )
    return 1 + int(max(pq.read_table(table, columns=["configuration"])["configuration"].to_pylist()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Record both stages, and write the table."""
    parser = study_parser(__doc__)
    parser.set_defaults(dataset="demo")
    parser.add_argument("--configurations", type=int, default=104, metavar="N", help="of each stage [default: 104]")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="of each configuration [default: 2]")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Parquet file to write")
    parser.add_argument("--no-scores", action="store_true", help="leave out the scores: enough to plan searches")
    parser.add_argument("--extend", type=Path, metavar="FILE", help="recorded table to add to, kept as it is")
    given = parser.parse_args(arguments)
    source = open_source(given)
    known = next_configuration(given.extend, source.space) if given.extend else 0
    numbers = range(known, given.configurations)
    first = record_stage(source, 1, dict.fromkeys(numbers), given.seeds, given.processes)
    second = record_stage(source, 2, choose_finalists(first), given.seeds, given.processes)
    trials = [*first, *second]
    write_table(given.out, describe(source), trials, with_scores=not given.no_scores, after=given.extend)


if __name__ == "__main__":
    main()
