"""Watch a running search from another terminal, by its record alone; nothing is written."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Literal

from grcf_ray import console
from grcf_ray.console import duration
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.ascii_charts import bar, sparkline
from grcf_ray.report.run_status import time_left
from grcf_ray.report.summary import count_states
from grcf_ray.report.terminal import COMMAND_ROOM, SILENT, figure, one_line, states_line, typed
from grcf_ray.report.view import DIED, RunView, read_state
from grcf_ray.search.comparisons import seeds_record
from grcf_ray.search.failures import failures_by_cause
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.train.curve import DIRECTIONS, objective_value

_BAR_ROOM, _CURVE_ROOM, _HISTORY_ROOM = 20, 20, 40
"""Columns of a progress bar, of a trial's curve, and of a stage's trials."""
_LEFT_ALONE = 6
"""Lines that the list of running trials leaves free below it."""
_STILL_SECONDS = 15.0
"""A search whose lease has not changed for so long counts as dead: three heartbeats."""


Retrainings = Mapping[int, Sequence[TrialRecord]]
"""Trials of `--seeds` by stage; empty before there is a winner."""


class Watch:
    """Reads a run repeatedly, each time only the files that may have changed."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._trials: dict[int, list[TrialRecord]] = {1: [], 2: []}
        self._retrainings: dict[int, list[TrialRecord]] = {1: [], 2: []}
        self._beat, self._since = b"", time.monotonic()

    def look(self) -> tuple[RunView, Retrainings]:
        """Return the record, without the content of `best/`, and its retrainings. DataError if there is no run."""
        record = self._record
        info, state, alive = read_state(record)
        if alive is None and self._is_still():
            state, alive = DIED, False
        self._trials = {stage: record.trials(stage, known) for stage, known in self._trials.items()}
        if info.winner:
            seeds = seeds_record(record, info.winner)
            self._retrainings = {stage: seeds.trials(stage, known) for stage, known in self._retrainings.items()}
        return RunView(record, info, state, alive, self._trials, None, None), self._retrainings

    def _is_still(self) -> bool:
        """Return whether the lease has had no heartbeat for long."""
        try:
            beat = (self._record.place / "lease.json").read_bytes()
        except FileNotFoundError:
            beat = b""
        if beat != self._beat:
            self._beat, self._since = beat, time.monotonic()
        return time.monotonic() - self._since > _STILL_SECONDS


def watch(record: RunRecord, *, every: float, once: bool = False) -> None:
    """Show a run until its search ends. DataError if there is no run.

    every: seconds between two readings. once: print one snapshot, as is done if the output is not a terminal.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    watched = Watch(record)
    if once or not sys.stdout.isatty():
        console.say("\n".join(snapshot_lines(*watched.look(), width=console.width())))
        return
    terminal = Console(markup=False, highlight=False, emoji=False)
    # Drawn only when the run has been read.
    with Live(console=terminal, auto_refresh=False) as live:
        while True:
            view, retrainings = watched.look()
            lines = snapshot_lines(view, retrainings, width=terminal.width, height=terminal.height - 1)
            live.update(Text(console.printable("\n".join(lines)), no_wrap=True), refresh=True)
            if view.state != "running":
                return
            time.sleep(every)


def snapshot_lines(view: RunView, retrainings: Retrainings, *, width: int, height: int = 40) -> list[str]:
    """Return the lines that show a run; only the command to resume may be wider than `width`."""
    state, starts, anew = view.state, view.info.starts, [trial for stage in retrainings.values() for trial in stage]
    if state == "running":
        begun = datetime.fromisoformat(starts[-1].time)
        state = f"running for {duration((datetime.now(timezone.utc) - begun).total_seconds())}"
    lines = [one_line(f"{view.record.place.name}: {state}", width)]
    for stage in view.budgets:
        lines += ["", *_stage_lines(view, stage, width)]
    if anew:
        first, second = (_done(retrainings[stage]) for stage in (1, 2))
        lines += [
            "",
            f"Retraining winner and starting point: {first} trials of stage 1 and {second} of stage 2 have ended",
        ]
    if (left := time_left(view, retrainings)) is not None:
        lines += ["", f"Left: about {duration(left)}"]
    trials = anew or view.all_trials
    # The time budget cuts stages off, not retrainings.
    running = [trial for trial in trials if (trial.state if anew else view.state_of(trial)) == "running"]
    if running and view.state == "running":
        lines += ["", *_running_lines(view, running, width, max(1, height - len(lines) - _LEFT_ALONE))]
    if failures := _failure_lines(trials, width):
        lines += ["", *failures]
    if view.state == DIED:
        command = one_line(starts[-1].command, COMMAND_ROOM)
        lines += ["", f"{SILENT}. To resume:", f"  {command}"]
    elif view.state != "running":
        lines += ["", f"Show all trials: python -m grcf_ray.runs show {typed(view.record.place.uri)}"]
    return lines


def _stage_lines(view: RunView, stage: Literal[1, 2], width: int) -> list[str]:
    trials, metric, (budget, _) = view.trials[stage], METRIC_TITLES[view.objective(stage)], view.budgets[stage]
    done = _done(trials)
    states = f"  {states_line(count_states(view, trials))}" if trials else ""
    lines = [one_line(f"Stage {stage}  {bar(done / budget, width=_BAR_ROOM)}  {done}/{budget}{states}", width)]
    if stage in view.info.cut:
        lines.append("  ended by the time budget")
    if ranked := view.ranked(stage):
        lines.append(f"  best  {metric} {figure(ranked[0].objective)}, trial {ranked[0].number}")
        objectives = [trial.objective for trial in trials]
        better = "lower" if DIRECTIONS[stage] == "min" else "higher"
        room = min(_HISTORY_ROOM, width - 28)
        lines.append(f"  {sparkline(objectives, width=room)}  by trial, {better} is better")
    return lines


def _running_lines(view: RunView, running: Sequence[TrialRecord], width: int, room: int) -> list[str]:
    rows = []
    for trial in running[:room]:
        values = [objective_value(trial.stage, metrics) for metrics in trial.curve]
        rows.append(
            (
                trial.name,
                f"{trial.epoch}/{view.budgets[trial.stage][1]}",
                METRIC_TITLES[view.objective(trial.stage)],
                figure(values[-1] if values else None),
                figure(trial.objective),
                sparkline(values, width=_CURVE_ROOM) or "-",
            )
        )
    lines = console.table_lines(("running", "epochs", "metric", "now", "best", "by epoch"), rows, width=width)
    return lines if len(running) <= room else [*lines, f"and {len(running) - room} more"]


def _failure_lines(trials: Sequence[TrialRecord], width: int) -> list[str]:
    lines = []
    for cause, failed in failures_by_cause(trials).items():
        last = failed[-1]
        lines.append(one_line(f"{len(failed)} x {cause}, last {last.name}: {last.error}", width))
    for trial in trials:
        if trial.failures and not trial.finished:
            broke = trial.failures[-1]
            lines.append(
                one_line(f"{trial.name} was interrupted and resumed, {broke['cause']}: {broke['error']}", width)
            )
    return lines


def _done(trials: Sequence[TrialRecord]) -> int:
    return sum(trial.finished for trial in trials)
