"""The cost of the search by state of its trials, the saving by early stopping, and failures by cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grcf_ray.console import duration
from grcf_ray.report.figures.layout import name_axis, new_figure, share_legend, shown
from grcf_ray.report.figures.palette import BLUE, GREY, MARKS, ORANGE
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.failures import failures_by_cause
from grcf_ray.search.record import TrialRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

UNITS = {"epochs": "epochs", "utterance_passes": "passes over the training split", "seconds": "seconds in trials"}


def cost_data(view: RunView) -> dict[str, Any]:
    """Return for each stage with trials: `states`, the cost by state, and `saved`, the saving by early stopping.

    `saved` is an estimate: the epochs that stopped trials did not run, each at the trial's mean cost of an epoch.
    """
    stages = []
    for stage, trials in view.trials.items():
        if not trials:
            continue
        epochs = view.info.settings[f"stage{stage}.epochs"]
        by_state = {state: [trial for trial in trials if trial.state == state] for state in MARKS}
        states = {state: _cost(chosen) for state, chosen in by_state.items() if chosen}
        saved = _saved(by_state["pruned"], epochs)
        stages.append({"stage": stage, "trial_epochs": epochs, "states": states, "saved": saved})
    return {"stages": stages}


def draw_cost(data: Mapping[str, Any]) -> Figure:
    """Draw a bar for each stage and unit, by state, with the saving at its end."""
    stages = data["stages"]
    height = 160 + 55 * len(UNITS) * len(stages)
    figure = new_figure(height, {"rows": len(UNITS), "vertical_spacing": 0.16}, barmode="stack")
    bars: list[tuple[str, dict[str, Any], list[Mapping[str, Any]]]] = [
        (mark.title, {"color": mark.colour}, [stage["states"].get(state, {}) for stage in stages])
        for state, mark in MARKS.items()
    ]
    outline, hatching = {"color": GREY, "width": 1}, {"shape": "/", "fgcolor": GREY}
    hatched = {"color": "rgba(0,0,0,0)", "line": outline, "pattern": hatching}
    bars.append(("saved by early stopping (estimate)", hatched, [stage["saved"] for stage in stages]))
    for row, (unit, title) in enumerate(UNITS.items(), start=1):
        figure.update_xaxes(title={"text": title, "standoff": 4}, row=row)
        for name, marker, costs in bars:
            if any(any(cost.values()) for cost in costs):
                figure.add_bar(
                    x=[cost.get(unit) for cost in costs],
                    y=[f"Stage {stage['stage']}" for stage in stages],
                    orientation="h",
                    name=name,
                    marker=marker,
                    hovertemplate="%{x:.1f}",
                    row=row,
                    col=1,
                )
    figure.update_yaxes(type="category", autorange="reversed")
    return share_legend(figure)


def cost_plot(view: RunView) -> Plot | None:
    """Return the figure, or None before the first epoch."""
    data = cost_data(view)
    spent = {unit: sum(_total(stage, unit) for stage in data["stages"]) for unit in UNITS}
    if not spent["epochs"]:
        return None
    saved = {unit: sum(stage["saved"][unit] for stage in data["stages"]) for unit in UNITS}
    stopped = sum(stage["states"].get("pruned", {}).get("trials", 0) for stage in data["stages"])
    finding = (
        f"{spent['epochs']:.0f} epochs, {spent['utterance_passes']:.1f} passes over the training split, "
        f"{duration(spent['seconds'])} in trials."
    )
    if stopped:
        share = saved["utterance_passes"] / max(spent["utterance_passes"] + saved["utterance_passes"], 1e-12)
        finding += (
            f" Early stopping of {stopped} trials saved about {saved['utterance_passes']:.1f} passes, {share:.0%} of "
            "the cost of full trials."
        )
    return Plot(
        name="cost",
        title="Cost of the search",
        caption=f"{finding} Repeated work of interrupted attempts is not included. The saving is an estimate: the "
        "epochs that stopped trials did not run, at each trial's own cost of an epoch.",
        summary=finding,
        data=data,
        draw=draw_cost,
    )


def _cost(trials: Sequence[TrialRecord]) -> dict[str, Any]:
    return {
        "trials": len(trials),
        "epochs": sum(trial.epoch for trial in trials),
        "utterance_passes": sum(trial.utterance_passes for trial in trials),
        "seconds": sum(trial.seconds for trial in trials),
    }


def _saved(stopped: Sequence[TrialRecord], epochs: float) -> dict[str, float]:
    short = [(trial.epoch, _cost([trial])) for trial in stopped if 0 < trial.epoch < epochs]
    return {unit: sum((epochs - run) * cost[unit] / run for run, cost in short) for unit in UNITS}


def _total(stage: Mapping[str, Any], unit: str) -> float:
    return float(sum(cost[unit] for cost in stage["states"].values()))


def failures_data(view: RunView) -> dict[str, Any]:
    """Return by stage and cause: the lost trials, the retried ones, and the last error.

    A trial is listed once for each retried attempt.
    """
    causes = []
    for stage, trials in view.trials.items():
        lost = failures_by_cause(trials)
        retried: dict[str, list[tuple[int, str]]] = {}
        for trial in trials:
            for failure in _retried(trial):
                retried.setdefault(failure["cause"], []).append((trial.number, failure["error"]))
        for cause in dict.fromkeys([*lost, *retried]):
            ended, again = lost.get(cause, []), retried.get(cause, [])
            numbers = {"lost": [trial.number for trial in ended], "retried": [number for number, _ in again]}
            error = ended[-1].error if ended else again[-1][1]
            causes.append({"stage": stage, "cause": cause, **numbers, "error": error})
    return {"trials": sum(len(trials) for trials in view.trials.values()), "causes": causes}


def draw_failures(data: Mapping[str, Any]) -> Figure:
    """Draw a bar for each cause; the last error appears on hovering."""
    causes = data["causes"]
    names = [f"{shown(entry['cause'], 20)} (Stage {entry['stage']})" for entry in causes]
    most = max((len(entry["lost"]) + len(entry["retried"]) for entry in causes), default=0)
    figure = new_figure(160 + 45 * len(causes), barmode="stack", yaxis=name_axis(names) | {"autorange": "reversed"})
    figure.update_xaxes(title="trials and attempts", rangemode="tozero", dtick=max(1, most // 5))
    for key, name, colour in (("lost", "trials lost", ORANGE), ("retried", "attempts retried", BLUE)):
        figure.add_bar(
            x=[len(entry[key]) for entry in causes],
            y=list(range(len(causes))),
            orientation="h",
            name=name,
            marker={"color": colour},
            hovertext=[shown(entry["error"], 90) for entry in causes],
            hovertemplate="%{x}: %{hovertext}",
        )
    return figure


def failures_plot(view: RunView) -> Plot | None:
    """Return the figure, or None without failures."""
    data = failures_data(view)
    if not data["causes"]:
        return None
    lost = sum(len(entry["lost"]) for entry in data["causes"])
    again = sum(len(entry["retried"]) for entry in data["causes"])
    parts = "; ".join(
        f"{entry['cause']} in Stage {entry['stage']}: {len(entry['lost'])} lost, {len(entry['retried'])} retried"
        for entry in data["causes"]
    )
    return Plot(
        name="failures",
        title="Failures by cause",
        caption=f"{lost} of {data['trials']} trials diverged or failed; {again} attempts were interrupted and retried. "
        "A lost trial counts against the search's budget.",
        summary=f"{parts}.",
        data=data,
        draw=draw_failures,
    )


def _retried(trial: TrialRecord) -> list[dict[str, Any]]:
    """Return the interrupted attempts that were followed by another attempt."""
    last = trial.failures[-1] if trial.failures else None
    ended_by = trial.state == "failed" and last is not None and last["error"] == trial.error
    return trial.failures[:-1] if ended_by else trial.failures
