"""Plan a search before it runs: simulate it with several numbers of GPUs or CPUs."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from grcf_ray import console
from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.search.preflight import Room
from grcf_ray.search.simulation import Outcome, simulate
from grcf_ray.search.space import Space, stage_budgets
from grcf_ray.search.trial_sources import KnownTrials
from grcf_ray.statistics import Spread, spread
from grcf_ray.tables import Column, Table
from grcf_ray.train.curve import minimised, objective_name

GAIN = 0.1
"""Share of the time that more GPUs must save to be worth while."""
_SEARCHES = (2, 20)
"""Simulated searches of a number of GPUs, at least and at most."""
_TRIALS = 2000
"""Simulated trials of a number of GPUs, about: some ten seconds of a core."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRow:
    """A search on a number of GPUs or CPUs."""

    devices: int
    at_a_time: int
    """Trials that fit at a time."""
    seconds: Spread
    """Wall-clock time over the simulated searches."""
    utilisation: float
    """Share of the devices' time in which they train a trial; every trial can change the result."""
    figure: Spread
    """The winner's objective on valid."""
    equal_seconds: float | None
    """Time after which the expected best figure is that of the smallest number of devices at its end, or within one
    standard error; None if never."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A search on growing numbers of GPUs or CPUs."""

    device: Literal["GPU", "CPU"]
    searches: int
    """Simulated searches of each row."""
    trials: Mapping[Literal[1, 2], int]
    """Trials of each stage."""
    known: KnownTrials
    rows: Sequence[PlanRow]

    @property
    def most(self) -> int:
        """Trials of the larger stage: no more can run at a time."""
        return max(self.trials.values())

    @property
    def knee(self) -> PlanRow | None:
        """The smallest number of devices that more would shorten by less than 10 % of its time; None if none is."""
        *smaller, last = self.rows
        for index, row in enumerate(smaller):
            least = min(larger.seconds.mean for larger in self.rows[index + 1 :])
            if row.seconds.mean - least < GAIN * row.seconds.mean:
                return row
        return last if last.at_a_time >= self.most else None

    @property
    def beyond(self) -> bool:
        """Whether a stage has more trials than configurations were recorded."""
        table = self.known.table
        return any(self.trials[stage] > table.configurations(stage) for stage in table.stages if stage in self.trials)

    def notes(self) -> list[str]:
        """Return what follows from the rows, as sentences without a full stop."""
        knee, last = self.knee, self.rows[-1]
        if knee is None:
            notes = [f"no knee up to {self._named(last)}: more may save {GAIN:.0%} of the time or more"]
        else:
            notes = [f"knee: {self._named(knee)}; more save less than {GAIN:.0%} of the time"]
            if knee is not last:
                notes.append(self._change(knee, last))
        if last.at_a_time > self.most:
            idle = next(row for row in self.rows if row.at_a_time > self.most)
            notes.append(
                f"warning: of {self._named(idle)} or more, some buy nothing, because a stage has at most {self.most} "
                "trials. Take fewer, or search more trials (--stage1-trials, --stage2-trials)"
            )
        if self.beyond:
            counts = " and ".join(str(self.known.table.configurations(stage)) for stage in self.known.table.stages)
            notes.append(
                f"* beyond the recorded trials: a stage has more trials than there are recorded configurations "
                f"({counts}), so its best figure is extrapolated"
            )
        return [*notes, *self.known.notes]

    def _change(self, before: PlanRow, after: PlanRow) -> str:
        """Return what a larger number of devices changes."""
        return (
            f"{self._named(after)} instead of {before.devices}: {console.duration(after.seconds.mean)} instead of "
            f"{console.duration(before.seconds.mean)}, {_hours(after):,.2f} instead of {_hours(before):,.2f} "
            f"{self.device}-hours, and the expected figure changes by {after.figure.mean - before.figure.mean:+.4f}"
        )

    def _named(self, row: PlanRow) -> str:
        return f"{row.devices} {self.device}{'s' * (row.devices != 1)}"

    @property
    def metric(self) -> str:
        """The name of the winner's figure."""
        return objective_name(max(self.trials), self.known.table.task)

    def table(self) -> Table:
        """Return the plan for the terminal."""
        figure = "{:.4f}*" if self.beyond else "{:.4f}"
        return Table(
            "plan",
            f"{' + '.join(map(str, self.trials.values()))} trials: mean and deviation (±) of {self.searches} simulated "
            "searches",
            (
                Column("devices", f"{self.device}s"),
                Column("at_a_time", "trials at a time"),
                Column("time", "time"),
                Column("time_deviation", "±"),
                Column("device_hours", f"{self.device}-hours", "{:,.2f}"),
                Column("utilisation", "utilisation", "{:.0%}"),
                Column("figure", f"valid {METRIC_TITLES[self.metric]}", figure),
                Column("figure_deviation", "±", "{:.4f}"),
                Column("equal", "time to equal quality"),
            ),
            [
                {
                    **_cells(row),
                    "time": console.duration(row.seconds.mean),
                    "time_deviation": console.duration(row.seconds.deviation or 0.0),
                    "equal": None if row.equal_seconds is None else console.duration(row.equal_seconds),
                }
                for row in self.rows
            ],
            self.notes(),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for JSON, with unrounded numbers."""
        return {
            "unit": self.device,
            "searches": self.searches,
            "trials": {f"stage{stage}": trials for stage, trials in self.trials.items()},
            "data": self.known.table.name,
            "metric": self.metric,
            "rows": [_cells(row) for row in self.rows],
            "knee": self.knee and self.knee.devices,
            "beyond": self.beyond,
            "notes": self.notes(),
        }


def _cells(row: PlanRow) -> dict[str, Any]:
    return {
        "devices": row.devices,
        "at_a_time": row.at_a_time,
        "seconds": row.seconds.mean,
        "seconds_deviation": row.seconds.deviation,
        "device_hours": _hours(row),
        "utilisation": row.utilisation,
        "figure": row.figure.mean,
        "figure_deviation": row.figure.deviation,
        "equal_seconds": row.equal_seconds,
    }


def _hours(row: PlanRow) -> float:
    """Return the time of all devices, idle ones included, in hours."""
    return row.devices * row.seconds.mean / 3600


def parse_counts(text: str) -> list[int]:
    """Return the numbers of a list such as `1,8,64`, ascending and each once. Raises ConfigError for another text."""
    words = text.split(",")
    if not all(re.fullmatch(r" *[1-9]\d{0,5} *", word, re.ASCII) for word in words):
        raise ConfigError(f"--simulate {text!r}: give numbers of GPUs or CPUs, 1 or more, such as 1,8,64")
    return sorted({int(word) for word in words})


def plan_search(known: KnownTrials, space: Space, counts: Sequence[int]) -> Plan:
    """Simulate a search with each number of GPUs, or of CPUs if its workers have no GPU.

    space: with a number for the GPUs per worker. counts: ascending. Raises ClusterError if a trial does not fit one.
    """
    search = space.config().search
    device: Literal["GPU", "CPU"] = "GPU" if search.gpus else "CPU"
    room = Room({device: search.worker_resources[device]}, search.workers)
    each = search.workers * search.worker_resources[device]
    places = {count: room.most([{device: float(count)}]) for count in counts}
    if not places[counts[0]]:
        raise ClusterError(f"--simulate {counts[0]}: a trial takes {each:g} {device}s")
    trials = {stage: trials for stage, (trials, _) in stage_budgets(space.config()).items()}
    least, most = _SEARCHES
    searches = max(least, min(most, _TRIALS // sum(trials.values())))
    # More places than trials change nothing.
    slots = {count: min(places[count], max(trials.values())) for count in counts}
    progress = console.Progress("simulated searches", searches * len(set(slots.values())))

    def play(slots: int) -> list[Outcome]:
        outcomes = []
        for seed in range(searches):
            outcomes.append(simulate(known.source, space, slots=slots, seed=seed))
            progress.add(1)
        return outcomes

    played = {number: play(number) for number in dict.fromkeys(slots.values())}
    first = spread([_figure(outcome) for outcome in played[slots[counts[0]]]])
    last = max(trials)
    target = minimised(last, first.mean) + (first.deviation or 0.0) / searches**0.5
    rows = []
    for count in counts:
        outcomes = played[slots[count]]
        rows.append(
            PlanRow(
                devices=count,
                at_a_time=places[count],
                seconds=spread([outcome.seconds for outcome in outcomes]),
                utilisation=each
                * sum(outcome.busy for outcome in outcomes)
                / (count * sum(outcome.seconds for outcome in outcomes)),
                figure=spread([_figure(outcome) for outcome in outcomes]),
                equal_seconds=time_to(outcomes, lambda value: minimised(last, value) <= target),
            )
        )
    return Plan(device=device, searches=searches, trials=trials, known=known, rows=rows)


def _figure(outcome: Outcome) -> float:
    assert outcome.winner.objective is not None
    return outcome.winner.objective


def time_to(outcomes: Sequence[Outcome], enough: Callable[[float], bool]) -> float | None:
    """Return the time from which on the mean of the best figures so far is good enough; None if it never is."""
    curves = [np.array(outcome.progress) for outcome in outcomes]
    # Before its first figure, a search has none.
    begun = max(curve[0, 0] for curve in curves)
    for time in sorted({begun, *(time for curve in curves for time in curve[:, 0] if time > begun)}):
        best = [curve[np.searchsorted(curve[:, 0], time, side="right") - 1, 1] for curve in curves]
        if enough(statistics.fmean(best)):
            return float(time)
    return None
