"""Compare policies of a search by real searches, and check simulated searches against them.

    python benchmarks/real_searches.py --dataset mosi --data DIR --space benchmarks/spaces/mosi_text.yaml \
        --table benchmarks/trials/mosi_text.parquet --work work/mosi --out docs/performance

Every search is one of the public command, under a seed of its own. The best seed of the starting point is what their
cost buys without searching: as many trainings as fit the passes (encoded utterances over training utterances) of the
default's search of the same number, of which validation chooses one. The figure is the test error of the delivered
model. With `--table`, searches of the same policies are simulated on recorded trials, which are others than those of
the searches. The folder `--work` keeps the figures of each search, so the same command resumes; `--as-is` makes the
tables from the figures in it.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import policies
from recording import RecordedLoop, Source, Weights, open_source, run_all, study_parser
from simulated_searches import Figures, Policy, Results, simulate_all, simulation_tables
from study import PAIRED, deliver_study, paired_interval

from grcf_ray import open_run
from grcf_ray.api.run import Run
from grcf_ray.console import Progress
from grcf_ray.files import write_json
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.search.space import stage_epochs
from grcf_ray.search.table_file import SPLITS
from grcf_ray.tables import Column, Table
from grcf_ray.train.curve import objective_name
from grcf_ray.train.stage import stage_seed

RANDOM = str(Path(__file__).with_name("random_search.py"))
DEFAULT = Policy("default")
REPEATED = (DEFAULT, Policy("random search", program=(RANDOM,), kind=policies.RandomSearch))
OTHERS = (
    Policy("no early stopping", {"search.pruning": False}),
    Policy("grace of two epochs", {"search.grace_epochs": 2}),
    Policy("reduction factor of two", {"search.reduction_factor": 2}),
    Policy("one finalist", {"search.finalists": 1}),
)
BEST_SEED = "best seed of the starting point"
ENSEMBLE = "mean score of the best three"
COSTS = ("passes", "seconds")


@dataclasses.dataclass(frozen=True)
class Bench:
    """Searches and trainings in a folder, each done once."""

    source: Source
    processes: int
    as_is: bool = False
    """Whether what is not done is left out instead."""

    def results(self, repeats: int, repeats_of_others: int) -> dict[str, dict[int, Figures]]:
        """Return the figures of all policies; the first repeat of each comes first."""
        units = list(_units(repeats, repeats_of_others))
        results: dict[str, dict[int, Figures]] = {
            name: {} for name in (*(policy.name for policy in (*REPEATED, *OTHERS)), BEST_SEED)
        }
        progress = Progress("searching", len(units))
        for policy, repeat in units:
            default = results[DEFAULT.name].get(repeat)
            if policy is not None:
                results[policy.name] |= self._search(policy, repeat)
            elif default is not None:
                results[BEST_SEED] |= self._best_seed(repeat, default["passes"])
            progress.add(1)
        return results

    def _search(self, policy: Policy, seed: int) -> dict[int, Figures]:
        name = f"{policy.name.replace(' ', '-')}-{seed}"
        place, runs = self.source.work / f"{name}.json", self.source.work / "runs"
        if not place.exists() and not self.as_is:
            # A search that was interrupted starts again, so that its time is that of a whole one.
            shutil.rmtree(runs / name, ignore_errors=True)
            _run([*policy.program, *self._options(policy, seed), "--storage", str(runs), "--name", name], runs / name)
            write_json(place, figures_of(open_run(runs / name)))
            shutil.rmtree(runs / name)
        return {seed: json.loads(place.read_text(encoding="utf-8"))} if place.exists() else {}

    def _options(self, policy: Policy, seed: int) -> list[str]:
        source, settings = self.source, {**self.source.settings, **policy.settings}.items()
        words = ["--dataset", source.dataset, "--seed", str(seed), "--concurrent", str(self.processes)]
        words += ["--data", str(source.data)] if source.data else []
        words += ["--space", str(source.space_file)] if source.space_file else []
        return words + [word for path, value in settings for word in ("--set", f"{path}={json.dumps(value)}")]

    def _best_seed(self, repeat: int, passes: float) -> dict[int, Figures]:
        """Return the best of as many trainings of the starting point as fit the passes, and their cost."""
        first = self._trainings([repeat, 0])
        count = max(1, int(passes / first[0]["passes"])) if first else 1
        models = self._trainings(*([repeat, number] for number in range(count)))
        if len(models) < count:
            return {}
        ranked = sorted(models, key=lambda model: model["valid"])
        cost = {name: sum(model[name] for model in models) for name in COSTS}
        # The error of the mean score is the mean of the errors.
        ensemble = {
            split: float(np.abs(np.mean([model["errors"][split] for model in ranked[:3]], axis=0)).mean())
            for split in SPLITS
        }
        return {repeat: {**ranked[0], **cost, "seconds": cost["seconds"] / self.processes, "ensemble": ensemble}}

    def _trainings(self, *seeds: list[int]) -> list[Figures]:
        """Return the figures of trainings of the starting point."""
        places = [self.source.work / f"start-{'-'.join(map(str, seed))}.json" for seed in seeds]
        missing = [(self.source, seed, place) for seed, place in zip(seeds, places, strict=True) if not place.exists()]
        if missing and not self.as_is:
            run_all(train_start, missing, processes=self.processes, title="training the starting point")
        return [json.loads(place.read_text(encoding="utf-8")) for place in places if place.exists()]


def _units(repeats: int, repeats_of_others: int) -> Iterator[tuple[Policy | None, int]]:
    """Yield the policies, None for the best seed of the starting point, with the numbers of their repeats."""
    for repeat in range(1, max(repeats, repeats_of_others) + 1):
        if repeat <= repeats:
            yield from ((policy, repeat) for policy in (*REPEATED, None))
        if repeat <= repeats_of_others:
            yield from ((policy, repeat) for policy in OTHERS)


def _run(words: Sequence[str], folder: Path) -> None:
    """Run a Python program to its end; its output goes to a file beside the folder of its run."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    with log.open("wb") as file, subprocess.Popen([sys.executable, *words], stdout=file, stderr=file) as program:
        try:
            code = program.wait()
        except BaseException:
            program.terminate()
            raise
    if code:
        raise SystemExit(f"{folder.name} ended with exit code {code}: see {log}")


def figures_of(run: Run) -> dict[str, Any]:
    """Return the figures of a finished search. `seconds`: from the start of its first trial to the end of its last."""
    summary = run.summary
    trials = [trial for stage in (1, 2) for trial in run.record.trials(stage)]
    times = [datetime.datetime.fromisoformat(time) for trial in trials for time in (trial.started, trial.ended) if time]
    metric = objective_name(2, summary.task)
    assert summary.ensemble
    return {
        "valid": summary.valid[metric],
        "test": summary.test[metric],
        "passes": summary.cost.utterance_passes,
        "seconds": (max(times) - min(times)).total_seconds(),
        "trial_seconds": summary.cost.trial_seconds,
        "ensemble": {split: getattr(summary.ensemble, split)[metric] for split in SPLITS},
    }


def train_start(source: Source, seed: Sequence[int], place: Path) -> None:
    """Train both stages of the starting point under a seed, and write the figures of its best epoch on valid."""
    config = source.space.config()
    weights: Weights | None = None
    figures: dict[str, Any] = {"passes": 0.0, "seconds": 0.0}
    for stage in stage_epochs(config):
        # Searches take seeds of three parts.
        loop = source.loop(config, stage, stage_seed(*seed, stage, 0), weights, RecordedLoop)
        curve, score_EN, weights = loop.record()
        figures["passes"] += sum(metrics["utterance_passes"] for metrics in curve)
        figures["seconds"] += sum(metrics["seconds"] for metrics in curve)
    score_N = score_EN[loop.best_epoch - 1]
    errors = np.split((score_N - loop.features.valid.label_N).round(4), [loop.n_valid])
    figures["errors"] = {split: error_N.tolist() for split, error_N in zip(SPLITS, errors, strict=True)}
    write_json(place, {**loop.objectives(score_N), **figures})


def delivered_tables(results: Results, title: str) -> list[Table]:
    """Compare the delivered models with the default's, and the mean scores of the best three. title: of the error."""
    repeated = (*(policy.name for policy in REPEATED), BEST_SEED)
    ensembles = {
        name: {repeat: {**figures, **figures["ensemble"]} for repeat, figures in results[name].items()}
        for name in repeated
    }
    reference = results[DEFAULT.name]
    shown = {**results, f"{DEFAULT.name}: {ENSEMBLE}": ensembles[DEFAULT.name]}
    note = f"{BEST_SEED}: validation chooses among as many trainings as fit the passes of the default's search"
    return [
        _compared("delivered", f"Delivered models by policy: {title}", shown, reference, note),
        _compared("ensembles", f"The {ENSEMBLE}: {title}", ensembles, ensembles[DEFAULT.name], note),
    ]


def _compared(name: str, title: str, results: Results, reference: Mapping[int, Figures], note: str) -> Table:
    rows = []
    for policy, by_repeat in results.items():
        if not by_repeat:
            continue
        means = {key: statistics.fmean(f[key] for f in by_repeat.values()) for key in ("valid", "test", *COSTS)}
        tests = [figures["test"] for figures in by_repeat.values()]
        row: dict[str, Any] = {"name": policy, "searches": len(tests), **means}
        if len(tests) > 1:
            row["deviation"] = statistics.stdev(tests)
        both = sorted(by_repeat.keys() & reference.keys())
        if policy != DEFAULT.name and len(both) > 1:
            row |= paired_interval(*([of[repeat]["test"] for repeat in both] for of in (by_repeat, reference)))
        rows.append(row)
    return Table(
        name,
        title,
        (
            Column("name", "policy"),
            Column("searches", "searches"),
            Column("passes", "passes", "{:.0f}"),
            Column("seconds", "seconds", "{:.0f}"),
            Column("valid", "on valid", "{:.4f}"),
            Column("test", "on test", "{:.4f}"),
            Column("deviation", "deviation", "{:.4f}"),
            *PAIRED,
        ),
        rows,
        ("difference on test to the first line, with its 95 % t interval, paired by the number of the search", note),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, and write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default, random and seeds [default: 5]")
    parser.add_argument("--repeats-of-others", type=int, default=1, metavar="N", help="other policies [default: 1]")
    parser.add_argument("--table", type=Path, metavar="FILE", help="recorded trials, to simulate the searches")
    parser.add_argument("--simulations", type=int, default=20, metavar="N", help="of each policy [default: 20]")
    parser.add_argument("--as-is", action="store_true", help="start nothing; tell of what is finished")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the page")
    given = parser.parse_args(arguments)
    # A search in progress ends with this program.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    source = open_source(given)
    results = Bench(source, given.processes, given.as_is).results(given.repeats, given.repeats_of_others)
    title = METRIC_TITLES[objective_name(2, source.features.task)]
    tables = delivered_tables(results, title)
    policies = [policy for policy in (*REPEATED, *OTHERS) if results[policy.name]]
    if given.table and policies:
        simulated = simulate_all(given.table, source.space, policies, given.simulations, given.processes)
        tables += simulation_tables(results, simulated, title)
    deliver_study(f"real_searches_{given.dataset}", __file__, given, tables)


if __name__ == "__main__":
    main()
