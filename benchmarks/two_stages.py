"""Compare two stages with MAE alone, and the settings of the ranking, on equal passes.

    python benchmarks/two_stages.py passes --dataset mosi --data DIR --space benchmarks/spaces/mosi_frozen.yaml \
        --work work/two_stages --out docs/performance

`passes` varies the epochs in all and the share of Stage 1. `ranking` varies advantage, margins, pairing and group size;
`handover` what Stage 2 gets from Stage 1, and its other losses. Each cell searches its learning rates under seeds that
do not count. An epoch encodes each training utterance about once. Validation chooses the rates; test is read beside it
and chooses nothing. The folder `--work` keeps each training, so the same command resumes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from recording import RecordedLoop, Source, Weights, open_source, run_all, study_parser
from safetensors.torch import load_file, save_file
from study import PAIRED, deliver_study, paired_interval

from grcf_ray.config import ABLATIONS
from grcf_ray.files import atomic_write, write_json
from grcf_ray.statistics import Difference, corrected, paired_p
from grcf_ray.tables import Column, Table
from grcf_ray.train.stage import stage_seed

TOTALS = (7, 20, 60)
SHARES = (0.0, 1 / 7, 3 / 7, 5 / 7)
MIDDLE = SHARES[2]
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Of all learning rates of a stage."""
HEAD_FACTORS = (1.0, 4.0)
"""Of the head's learning rate in Stage 2 besides, where the encoder learns too."""
TUNING_SEEDS = (0, 101, 102, 103)
"""The learning rates are chosen under these, which do not count."""
FIRST_RATES = ("stage1.encoder_lr", "stage1.head_lr")
SECOND_RATES = ("stage2.encoder_top_lr", "stage2.encoder_base_lr", "stage2.head_lr")
LARGE_MARGINS = {"ranking.intra_margin": 0.3, "ranking.base_margin": 1.5, "ranking.margin_step": 0.5}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A way to train: settings, and what they cannot say."""

    name: str
    settings: Mapping[str, Any]
    annealed: bool = True
    """Whether the learning rate of Stage 1 falls to 0."""
    fresh: bool = True
    """Whether Stage 2 starts with a new optimizer, instead of the moments of Stage 1."""
    rates: tuple[float, ...] = ()
    """Factors of the learning rates: Stage 1, Stage 2, head of Stage 2."""

    def at(self, settings: Mapping[str, Any], *rates: float) -> Cell:
        """Return the cell with learning rates, and their factors."""
        return dataclasses.replace(self, settings={**self.settings, **settings}, rates=(*self.rates, *rates))

    @property
    def file(self) -> str:
        """The stem of its files."""
        return "-".join([self.name.replace("/", " of "), *(f"{rate:g}" for rate in self.rates)])


class _FreeLoop(RecordedLoop):
    """A loop whose learning rate may stay constant."""

    constant = False

    def _set_learning_rates(self, step: int) -> dict[str, float]:
        return super()._set_learning_rates(0 if self.constant else step)


def train(
    source: Source, cell: Cell, seed: int, stages: Sequence[Literal[1, 2]], place: Path, first: Path | None
) -> None:
    """Train the stages of a cell that have epochs, and write the objectives of each.

    first: the weights that Stage 1 leaves, or that Stage 2 starts from if Stage 1 is not trained.
    """
    config = source.space.config(cell.settings)
    start: Weights | None = load_file(first) if first and 1 not in stages else None
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
        answer[f"stage{stage}"] = [metrics[f"valid/{name}"] for metrics in curve]
        answer[f"order{stage}"] = [metrics["valid/pairwise_acc"] for metrics in curve]
        if stage == 1 and first and start:
            with atomic_write(first) as partial:
                save_file({name: tensor.contiguous() for name, tensor in start.items()}, partial)
        if stage == 2:
            label_N = loop.features.valid.label_N[loop.n_valid :]
            test_E = np.abs(score_EN[:, loop.n_valid :] - label_N).mean(axis=1)
            answer["test"] = test_E.tolist()
    write_json(place, answer)


class Study:
    """Trainings in a folder, each done once.

    shares: of Stage 1 among the epochs, where they are compared.
    """

    def __init__(self, source: Source, processes: int, seeds: int, tuning_seeds: int, shares: Sequence[float]) -> None:
        self.source, self.shares, self._processes = source, shares, processes
        self._tuning_seeds = TUNING_SEEDS[:tuning_seeds]
        self.seeds = range(1, seeds + 1)
        self._searched = [
            [path for path in paths if path in {**source.space.start(1), **source.space.start(2)}]
            for paths in (FIRST_RATES, SECOND_RATES)
        ]

    def results(
        self, jobs: Sequence[tuple[Cell, int]], *stages: Literal[1, 2], firsts: Sequence[Cell | None] = ()
    ) -> list[dict[str, Any]]:
        """Return the results of cells under seeds.

        firsts: for each job the cell whose Stage 1 leaves its weights, or from whose weights Stage 2 starts.
        """
        work = self.source.work
        places = [work / f"{cell.file}-{seed}.json" for cell, seed in jobs]
        weights = [
            first and work / f"{first.file}-{seed}.safetensors"
            for first, (_, seed) in zip(firsts or [None] * len(jobs), jobs, strict=True)
        ]
        missing = [
            (self.source, cell, seed, stages or (1, 2), place, first)
            for (cell, seed), place, first in zip(jobs, places, weights, strict=True)
            if not place.exists()
        ]
        run_all(train, missing, processes=self._processes, title="training")
        return [json.loads(place.read_text(encoding="utf-8")) for place in places]

    def tuned(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells with the learning rates that validation chooses under seeds of their own.

        Stage 1 first, by its mean PairwiseAcc; then Stage 2 by its mean MAE, from that Stage 1.
        """
        first_rates, second_rates = self._searched
        ways = [
            [cell.at(self._scaled(first_rates, factor), factor) for factor in FACTORS]
            if cell.settings["stage1.epochs"]
            else [cell.at({}, 0.0)]
            for cell in cells
        ]
        trained = [way for tries in ways for way in tries if way.rates[0]]
        order = self._means(trained, 1, trained)
        halves = [max(tries, key=lambda way: order.get(way.file, 0.0)) for tries in ways]
        heads = HEAD_FACTORS if len(second_rates) > 1 else (1.0,)
        ways = [
            [
                half.at(
                    self._scaled(second_rates, factor) | self._scaled(second_rates[-1:], factor * head), factor, head
                )
                for factor, head in itertools.product(FACTORS, heads)
            ]
            for half in halves
        ]
        firsts = [half if half.rates[0] else None for half, tries in zip(halves, ways, strict=True) for _ in tries]
        error = self._means([way for tries in ways for way in tries], 2, firsts)
        return [min(tries, key=lambda way: error[way.file]) for tries in ways]

    def _means(self, ways: Sequence[Cell], stage: Literal[1, 2], firsts: Sequence[Cell | None]) -> dict[str, float]:
        """Return the mean figure of each way's best epoch on valid over the seeds of tuning, by file."""
        seeds, best = self._tuning_seeds, {1: max, 2: min}[stage]
        results = self.results(
            [(way, seed) for way in ways for seed in seeds], stage, firsts=[first for first in firsts for _ in seeds]
        )
        figures = [best(result[f"stage{stage}"]) for result in results]
        return {
            way.file: statistics.fmean(figures[index * len(seeds) : (index + 1) * len(seeds)])
            for index, way in enumerate(ways)
        }

    def _scaled(self, paths: Sequence[str], factor: float) -> dict[str, float]:
        start = {**self.source.space.start(1), **self.source.space.start(2)}
        return {path: float(f"{start[path] * factor:.4g}") for path in paths}


def of_passes(total: int, share: float) -> Cell:
    """Return the cell of a number of epochs in all, and a share of Stage 1 among them."""
    first = round(total * share)
    settings = {"stage1.epochs": first, "stage2.epochs": total - first}
    if not first:
        return Cell(f"D{total}", {**ABLATIONS["direct-mae"], **settings})
    return Cell(f"T{first}+{total - first}", settings)


def passes_tables(study: Study, totals: Sequence[int]) -> list[Table]:
    """Compare shares of Stage 1 with the first of them, MAE alone, for each number of epochs."""
    return [
        differences_table(
            study, f"passes{total}", f"{total} epochs in all", [of_passes(total, share) for share in study.shares]
        )
        for total in totals
    ]


def ranking_tables(study: Study, totals: Sequence[int]) -> list[Table]:
    """Compare settings of the ranking loss with the paper's, and with MAE alone."""
    tables = []
    for total in totals:
        middle, cells = of_passes(total, MIDDLE), []
        for advantage, large, pairing, size in itertools.product(
            (True, False), (False, True), ("sampled", "all"), (32, 96)
        ):
            words = (
                "advantage" if advantage else "no advantage",
                "large margins" if large else "margins",
                pairing,
                f"{size}",
            )
            settings = {
                "ranking.advantage_weighting": advantage,
                "pairs.pairing": pairing,
                "pairs.pairs_per_group": size,
                **(LARGE_MARGINS if large else {}),
            }
            cells.append(Cell(f"{middle.name}, {', '.join(words)}", {**middle.settings, **settings}))
        title = f"Ranking loss, {middle.settings['stage1.epochs']} + {middle.settings['stage2.epochs']} epochs"
        direct = of_passes(total, 0.0)
        tables.append(differences_table(study, f"ranking{total}", title, [*cells, direct]))
        levels = [
            (", advantage", ", no advantage"),
            (", margins", ", large margins"),
            (", sampled", ", all"),
            (", 32", ", 96"),
        ]
        tables.append(effects_table(study, f"effects{total}", title, cells, levels))
    return tables


def handover_tables(study: Study, totals: Sequence[int]) -> list[Table]:
    """Compare what Stage 2 gets from Stage 1, and the weight of its ranking loss."""
    tables = []
    for total in totals:
        middle, cells = of_passes(total, MIDDLE), []
        for weight, annealed, fresh in itertools.product((0.3, 0.03, 0.0), (True, False), (True, False)):
            words = (f"weight {weight:g}", "annealed" if annealed else "constant", "fresh" if fresh else "kept moments")
            cell = Cell(f"{middle.name}, {', '.join(words)}", {**middle.settings, "stage2.group_weight": weight})
            cells.append(dataclasses.replace(cell, annealed=annealed, fresh=fresh))
        direct, others = of_passes(total, 0.0), []
        for weight in (0.03, 0.3):
            settings = {**direct.settings, "stage2.group_weight": weight}
            others.append(Cell(f"{direct.name}, weight {weight:g}", settings))
        title = f"Hand-over, {total} epochs in all"
        tables.append(differences_table(study, f"handover{total}", title, [*cells, *others, direct]))
        levels = [("weight 0.3,", "weight 0.03,"), ("weight 0.3,", "weight 0,"), ("annealed", "constant")]
        levels.append(("fresh", "kept moments"))
        tables.append(effects_table(study, f"effects{total}", title, cells, levels))
    return tables


def figures_of(study: Study, cells: Sequence[Cell]) -> tuple[list[Cell], dict[str, dict[str, list[float]]]]:
    """Return the cells with tuned learning rates, and their figures by name and kind, one for each seed."""
    cells = study.tuned(cells)
    results = study.results([(cell, seed) for cell in cells for seed in study.seeds])
    count, figures = len(study.seeds), {}
    for index, cell in enumerate(cells):
        own = results[index * count : (index + 1) * count]
        best = [int(np.argmin(result["stage2"])) for result in own]
        figures[cell.name] = {
            "mae": [min(result["stage2"]) for result in own],
            "last": [result["stage2"][-1] for result in own],
            "test": [result["test"][epoch] for result, epoch in zip(own, best, strict=True)],
            "order": [max(result.get("order1", result["order2"])) for result in own],
        }
    return cells, figures


def differences_table(study: Study, name: str, title: str, cells: Sequence[Cell]) -> Table:
    """Compare cells with the first of them under the seeds: MAE of the best and of the last epoch, PairwiseAcc."""
    cells, columns = figures_of(study, cells)
    count = len(study.seeds)
    reference = columns[cells[0].name]
    gains = {cell.name: np.subtract(columns[cell.name]["mae"], reference["mae"]) for cell in cells[1:]}
    holm = corrected({cell: Difference(float(gain.mean()), paired_p(gain), 0.0, 0.0) for cell, gain in gains.items()})
    rows = []
    for cell in cells:
        figures = {key: statistics.fmean(values) for key, values in columns[cell.name].items()}
        row: dict[str, Any] = {"name": cell.name, **figures, "rates": ", ".join(f"{rate:g}" for rate in cell.rates[:2])}
        if cell is not cells[0]:
            row |= paired_interval(columns[cell.name]["mae"], reference["mae"])
            row["p"] = holm[cell.name].p_holm
            row["last_difference"] = figures["last"] - statistics.fmean(reference["last"])
            tests = paired_interval(columns[cell.name]["test"], reference["test"])
            row |= {f"test_{key}": value for key, value in tests.items()}
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
            Column("test", "MAE on test", "{:.4f}"),
            *(dataclasses.replace(column, key=f"test_{column.key}") for column in PAIRED),
            Column("order", "PairwiseAcc", "{:.4f}"),
            Column("rates", "factors of the rates"),
        ),
        rows,
        (
            f"means over {count} seeds; difference to the first line with its 95 % t interval, paired by seed",
            "PairwiseAcc: the best on valid over the epochs of Stage 1, or over all epochs of MAE alone",
            "factors of the learning rates: of Stage 1 and Stage 2, to those of the space's starting point",
        ),
    )


def effects_table(
    study: Study, name: str, title: str, cells: Sequence[Cell], levels: Sequence[tuple[str, str]]
) -> Table:
    """Compare the levels of each factor over all cells of a factorial: the mean of the one's cells less the other's.

    levels: for each comparison the parts of the cells' names that tell the two levels.
    """
    _, figures = figures_of(study, cells)
    rows = []
    for one, other in levels:
        row: dict[str, Any] = {"name": f"{other.strip(', ')} instead of {one.strip(', ')}"}
        for kind, prefix in (("mae", ""), ("test", "test_"), ("order", "order_")):
            means = [
                np.mean([of[kind] for cell, of in figures.items() if level in cell], axis=0).tolist()
                for level in (other, one)
            ]
            row |= {f"{prefix}{key}": value for key, value in paired_interval(*means).items()}
        rows.append(row)
    columns = [
        dataclasses.replace(
            column, key=f"{prefix}{column.key}", title=kind if column.key == "difference" else column.title
        )
        for kind, prefix in (("MAE on valid", ""), ("MAE on test", "test_"), ("PairwiseAcc", "order_"))
        for column in PAIRED
    ]
    note = f"means over the other factors; 95 % t intervals over {len(study.seeds)} seeds, paired"
    return Table(name, f"{title}: effects", (Column("name", "change"), *columns), rows, (note,))


def draw(tables: Sequence[Table], shares: Sequence[float], path: Path) -> None:
    """Draw the differences to MAE alone, with their intervals, against the number of epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    for axes, key, split in zip(figure.subplots(1, 2, sharey=True), ("", "test_"), ("valid", "test"), strict=True):
        axes.axhline(0, color="0.6", linewidth=1)
        for place, share in enumerate(shares[1:]):
            rows = [table.rows[1 + place] for table in tables]
            low, high = ([row[f"{key}{end}"] for row in rows] for end in ("low", "high"))
            middle = [row[f"{key}difference"] for row in rows]
            axes.errorbar(
                [index + 0.12 * (place - 1) for index in range(len(rows))],
                middle,
                yerr=[np.subtract(middle, low), np.subtract(high, middle)],
                fmt="osD"[place],
                markersize=5,
                capsize=3,
                label=f"{share:.0%} of the epochs in Stage 1",
            )
        axes.set_xticks(range(len(tables)), [table.title.partition(" ")[0] for table in tables])
        axes.set(title=f"MAE on {split}, less that of MAE alone", xlabel="epochs in all")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})


PARTS = {"passes": passes_tables, "ranking": ranking_tables, "handover": handover_tables}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a part, and write its page."""
    parser = study_parser(__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument(
        "--totals", type=int, nargs="+", default=TOTALS, metavar="N", help="epochs in all [default: 7 20 60]"
    )
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=SHARES,
        metavar="X",
        help="of Stage 1 in `passes` [default: 0 1/7 3/7 5/7]",
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="of each cell [default: 5]")
    parser.add_argument("--tuning-seeds", type=int, default=4, metavar="N", help="for learning rates [default: 4]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the page")
    parser.add_argument("--name", metavar="NAME", help="of the page [default: two_stages_PART]")
    given = parser.parse_args(arguments)
    name = given.name or f"two_stages_{given.part}"
    study = Study(open_source(given), given.processes, given.seeds, given.tuning_seeds, given.shares)
    tables = PARTS[given.part](study, given.totals)
    deliver_study(name, __file__, given, tables)
    if given.out is not None and given.part == "passes":
        draw(tables, given.shares, given.out / f"{name}.png")


if __name__ == "__main__":
    main()
