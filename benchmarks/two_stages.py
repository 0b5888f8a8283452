"""Compare two stages with MAE alone, and the settings of the ranking, on equal passes.

    python benchmarks/two_stages.py passes --dataset mosi --data DIR --space benchmarks/spaces/mosi_text.yaml \
        --work work/two_stages --out docs/performance

`passes` varies the epochs in all and the share of Stage 1; each cell searches its learning rates under a seed that does
not count. `ranking` varies advantage, margins, pairing and group size, `handover` what Stage 2 gets from Stage 1; both
take the rates of the cell of 20 epochs of `passes`. An epoch encodes each training utterance about once. Validation
chooses the rates; test is read beside it and chooses nothing. The folder `--work` keeps each training, so the same
command resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from recording import RecordedLoop, Source, Weights, run_all
from study import PAIRED, paired_interval

from grcf_ray.bench.setup import deliver, open_setup
from grcf_ray.config import ABLATIONS
from grcf_ray.files import write_json
from grcf_ray.statistics import Difference, corrected, paired_p
from grcf_ray.tables import Column, Table
from grcf_ray.train.stage import stage_seed

TOTALS = (7, 20, 60)
SHARES = (0.0, 1 / 7, 3 / 7, 5 / 7)
FACTORS = (1 / 3, 1.0, 3.0)
"""Of all learning rates of a stage."""
HEAD_FACTORS = (1.0, 4.0)
"""Of the head's learning rate in Stage 2 besides."""
TUNING_SEED, SEEDS = 0, range(1, 6)
FIRST_RATES = ("stage1.encoder_lr", "stage1.head_lr")
SECOND_RATES = ("stage2.encoder_top_lr", "stage2.encoder_base_lr", "stage2.head_lr")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A way to train: settings, and what they cannot say."""

    name: str
    settings: Mapping[str, Any]
    annealed: bool = True
    """Whether the learning rate of Stage 1 falls to 0."""
    fresh: bool = True
    """Whether Stage 2 starts with a new optimizer, instead of the moments of Stage 1."""


class _FreeLoop(RecordedLoop):
    """A loop whose learning rate may stay constant."""

    constant = False

    def _set_learning_rates(self, step: int) -> dict[str, float]:
        return super()._set_learning_rates(0 if self.constant else step)


def train(source: Source, cell: Cell, seed: int, stages: Sequence[Literal[1, 2]], place: Path) -> None:
    """Train the stages of a cell that have epochs, and write the objectives of each."""
    config = source.space.config(cell.settings)
    start: Weights | None = None
    moments: dict[str, Any] = {}
    answer: dict[str, Any] = {}
    for stage in stages:
        if (config.stage1 if stage == 1 else config.stage2).epochs == 0:
            continue
        loop = source.loop(config, stage, stage_seed(seed, stage), start, _FreeLoop)
        loop.constant = stage == 1 and not cell.annealed
        by_parameter = dict(loop.model.named_parameters())
        if not cell.fresh and moments:
            for path, state in moments.items():
                loop.optimizer.state[by_parameter[path]] = state
        curve, score_EN, start = loop.record()
        moments = {
            path: loop.optimizer.state[parameter]
            for path, parameter in by_parameter.items()
            if parameter in loop.optimizer.state
        }
        name = "pairwise_acc" if stage == 1 else "mae"
        values = [metrics[f"valid/{name}"] for metrics in curve]
        answer[f"stage{stage}"] = values
        if stage == 2:
            label_N = loop.features.valid.label_N[loop.n_valid :]
            test_E = np.abs(score_EN[:, loop.n_valid :] - label_N).mean(axis=1)
            answer["test"] = test_E.tolist()
            answer["averaged"] = float(np.abs(score_EN[-1] - loop.features.valid.label_N)[: loop.n_valid].mean())
            answer["pairwise_acc"] = [metrics["valid/pairwise_acc"] for metrics in curve]
        answer[f"seconds{stage}"] = sum(metrics["seconds"] for metrics in curve)
    write_json(place, answer)


class Study:
    """Trainings in a folder, each done once."""

    def __init__(self, source: Source, processes: int) -> None:
        self.source, self._processes = source, processes

    def results(self, jobs: Sequence[tuple[Cell, int]], *stages: Literal[1, 2]) -> list[dict[str, Any]]:
        """Return the results of cells under seeds."""
        places = [self.source.work / f"{cell.name}-{seed}.json" for cell, seed in jobs]
        missing = [
            (self.source, cell, seed, stages or (1, 2), place)
            for (cell, seed), place in zip(jobs, places, strict=True)
            if not place.exists()
        ]
        run_all(train, missing, processes=self._processes, title="training")
        return [json.loads(place.read_text(encoding="utf-8")) for place in places]

    def tuned(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells with the learning rates that validation chooses under a seed of their own.

        Stage 1 first, by its PairwiseAcc; then Stage 2 by MAE, from that Stage 1.
        """
        firsts = {
            (cell.name, factor): _with(cell, f"rate1={factor:.2g}", self._scaled(FIRST_RATES, factor))
            for cell in cells
            if cell.settings["stage1.epochs"]
            for factor in FACTORS
        }
        only = [(_with(cell, "stage1", {"stage2.epochs": 0}), TUNING_SEED) for cell in firsts.values()]
        tried = zip(firsts, self.results(only, 1), strict=True)
        best: dict[str, tuple[float, float]] = {}
        for (name, factor), result in tried:
            best[name] = max(best.get(name, (-math.inf, 0.0)), (max(result["stage1"]), factor))
        halves = [firsts[cell.name, best[cell.name][1]] if cell.name in best else cell for cell in cells]
        ways = list(itertools.product(FACTORS, HEAD_FACTORS))
        chosen = []
        for cell in halves:
            tries = [
                _with(
                    cell,
                    f"rate2={factor:.2g},{head:g}",
                    self._scaled(SECOND_RATES, factor) | self._scaled(SECOND_RATES[2:], factor * head),
                )
                for factor, head in ways
            ]
            results = self.results([(way, TUNING_SEED) for way in tries])
            chosen.append(tries[int(np.argmin([min(result["stage2"]) for result in results]))])
        return chosen

    def _scaled(self, paths: Sequence[str], factor: float) -> dict[str, float]:
        start = {**self.source.space.start(1), **self.source.space.start(2)}
        return {path: float(f"{start[path] * factor:.4g}") for path in paths}


def _with(cell: Cell, name: str, settings: Mapping[str, Any]) -> Cell:
    return dataclasses.replace(cell, name=f"{cell.name}-{name}", settings={**cell.settings, **settings})


def of_passes(total: int, share: float) -> Cell:
    """Return the cell of a number of epochs in all, and a share of Stage 1 among them."""
    first = round(total * share)
    settings = {"stage1.epochs": first, "stage2.epochs": total - first}
    if not first:
        return Cell(f"D{total}", {**ABLATIONS["direct-mae"], **settings})
    return Cell(f"T{first}+{total - first}", settings)


def passes_tables(study: Study) -> list[Table]:
    """Compare shares of Stage 1 with MAE alone, for each number of epochs."""
    tables = []
    for total in TOTALS:
        cells = study.tuned([of_passes(total, share) for share in SHARES])
        tables.append(differences_table(study, f"passes{total}", f"{total} epochs in all", cells))
    return tables


def _middle(study: Study) -> Cell:
    (cell,) = study.tuned([of_passes(TOTALS[1], SHARES[2])])
    return cell


def ranking_tables(study: Study) -> list[Table]:
    """Compare settings of the ranking loss with the paper's."""
    middle, cells = _middle(study), []
    for advantage, margins, pairing, size in itertools.product((True, False), (1, 3), ("sampled", "all"), (32, 96)):
        settings = {
            "ranking.advantage_weighting": advantage,
            "ranking.intra_margin": 0.1 * margins,
            "ranking.base_margin": 0.5 * margins,
            "ranking.margin_step": {1: 0.1, 3: 0.5}[margins],
            "pairs.pairing": pairing,
            "pairs.pairs_per_group": size,
        }
        words = ("advantage" if advantage else "no advantage", f"margins x {margins}", pairing, f"{size} pairs")
        cells.append(_with(middle, ", ".join(words), settings))
    title = f"Ranking loss, {middle.settings['stage1.epochs']} + {middle.settings['stage2.epochs']} epochs"
    return [differences_table(study, "ranking", title, cells)]


def handover_tables(study: Study) -> list[Table]:
    """Compare what Stage 2 gets from Stage 1, and the weight of its ranking loss."""
    middle, cells = _middle(study), []
    for weight, annealed, fresh in itertools.product((0.3, 0.03, 0.0), (True, False), (True, False)):
        words = (f"weight {weight:g}", "annealed" if annealed else "constant", "fresh" if fresh else "kept moments")
        cell = _with(middle, ", ".join(words), {"stage2.group_weight": weight})
        cells.append(dataclasses.replace(cell, annealed=annealed, fresh=fresh))
    return [differences_table(study, "handover", "Hand-over", cells)]


def differences_table(study: Study, name: str, title: str, cells: Sequence[Cell]) -> Table:
    """Compare cells with the first of them under the seeds: MAE of the best and of the last epoch, PairwiseAcc."""
    results = study.results([(cell, seed) for cell in cells for seed in SEEDS])
    count, columns = len(SEEDS), {}
    for index, cell in enumerate(cells):
        own = results[index * count : (index + 1) * count]
        best = [int(np.argmin(result["stage2"])) for result in own]
        columns[cell.name] = {
            "mae": [min(result["stage2"]) for result in own],
            "last": [result["stage2"][-1] for result in own],
            "averaged": [result["averaged"] for result in own],
            "test": [result["test"][epoch] for result, epoch in zip(own, best, strict=True)],
            "order": [max(result.get("stage1", result["pairwise_acc"])) for result in own],
        }
    reference = columns[cells[0].name]
    gains = {cell.name: np.subtract(columns[cell.name]["mae"], reference["mae"]) for cell in cells[1:]}
    holm = corrected({cell: Difference(float(gain.mean()), paired_p(gain), 0.0, 0.0) for cell, gain in gains.items()})
    rows = []
    for cell in cells:
        figures = {key: statistics.fmean(values) for key, values in columns[cell.name].items()}
        row: dict[str, Any] = {"name": cell.name, **figures}
        if cell is not cells[0]:
            row |= paired_interval(columns[cell.name]["mae"], reference["mae"])
            row["p"] = holm[cell.name].p_holm
            row["last_difference"] = figures["last"] - statistics.fmean(reference["last"])
        rows.append(row)
    return Table(
        name,
        title,
        (
            Column("name", "cell"),
            Column("mae", "MAE on valid", "{:.4f}"),
            *PAIRED,
            Column("p", "p (Holm)", "{:.3f}"),
            Column("last", "at the last epoch", "{:.4f}"),
            Column("last_difference", "difference", "{:+.4f}"),
            Column("averaged", "averaged weights", "{:.4f}"),
            Column("test", "MAE on test", "{:.4f}"),
            Column("order", "PairwiseAcc", "{:.4f}"),
        ),
        rows,
        (
            f"means over {count} seeds; difference to the first line with its 95 % t interval, paired by seed",
            "PairwiseAcc: the best on valid over the epochs of Stage 1, or over all epochs of MAE alone",
        ),
    )


PARTS = {"passes": passes_tables, "ranking": ranking_tables, "handover": handover_tables}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a part, and write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--dataset", default="mosi", metavar="NAME", help="a known data set [default: mosi]")
    parser.add_argument("--data", type=Path, metavar="DIR", help="path to the data")
    parser.add_argument("--space", type=Path, metavar="FILE", help="search space [default: the data set's]")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="trainings at a time [default: 2]")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for the trainings' results")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the page")
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    source = Source(given.dataset, given.data, given.space, given.work)
    assert source.features
    tables = PARTS[given.part](Study(source, given.processes))
    with open_setup(given.dataset, given.data, None, given.space, []) as setup:
        about = setup.about(f"python benchmarks/{Path(__file__).name}", given.data)
    deliver(f"two_stages_{given.part}", about, tables, given.out, as_json=False)


if __name__ == "__main__":
    main()
