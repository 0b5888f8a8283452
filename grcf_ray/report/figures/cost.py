"""The cost of the search by state of its trials, and the saving by early stopping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grcf_ray.console import duration
from grcf_ray.report.figures.layout import new_figure, rows
from grcf_ray.report.figures.palette import GREY, MARKS
from grcf_ray.report.figures.parameters import number
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

UNITS = {"epochs": "epochs", "utterance_passes": "passes over the training split", "seconds": "seconds in trials"}


def cost_data(view: RunView) -> dict[str, Any]:
    """Return for each stage with trials: `states`, the cost by state, and `saved`, the saving by early stopping.

    `saved` is an estimate: the epochs that stopped trials did not run, each at the trial's mean cost of an epoch. It is
    None if the record lacks the length of a trial.
    """
    stages = []
    for stage, trials in view.trials.items():
        if not trials:
            continue
        epochs = number(view.info.settings[f"stage{stage}.epochs"])
        stages.append(
            {
                "stage": stage,
                "trial_epochs": epochs,
                "states": {
                    state: _cost([trial for trial in trials if trial.state == state])
                    for state in MARKS
                    if any(trial.state == state for trial in trials)
                },
                "saved": None if epochs is None else _saved(trials, epochs),
            }
        )
    return {"stages": stages}


def draw_cost(data: Mapping[str, Any]) -> Figure:
    """Draw a bar for each stage and unit, by state, with the saving at its end."""
    from plotly.graph_objects import Bar

    domains = rows([1.0] * len(UNITS), gap=0.16)
    figure = new_figure(160 + 55 * len(UNITS) * len(data["stages"]), barmode="stack")
    names = [f"Stage {stage['stage']}" for stage in data["stages"]]
    for index, (unit, title) in enumerate(UNITS.items()):
        suffix = "" if index == 0 else str(index + 1)
        y_axis = {"type": "category", "autorange": "reversed", "domain": domains[index], "anchor": f"x{suffix}"}
        figure.update_layout(
            {
                f"xaxis{suffix}": {"title": {"text": title, "standoff": 4}, "anchor": f"y{suffix}"},
                f"yaxis{suffix}": y_axis | {"automargin": True},
            }
        )
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "orientation": "h", "showlegend": index == 0}
        for state, mark in MARKS.items():
            values = [stage["states"].get(state, {}).get(unit) for stage in data["stages"]]
            if any(value is not None for value in values):
                figure.add_trace(
                    Bar(
                        **axes,
                        x=values,
                        y=names,
                        name=mark.title,
                        legendgroup=state,
                        marker={"color": mark.colour},
                        hovertemplate="%{x:.1f}",
                    )
                )
        saved = [None if stage["saved"] is None else stage["saved"][unit] for stage in data["stages"]]
        if any(saved):
            figure.add_trace(
                Bar(
                    **axes,
                    x=saved,
                    y=names,
                    name="saved by early stopping (estimate)",
                    legendgroup="saved",
                    marker={
                        "color": "rgba(0,0,0,0)",
                        "line": {"color": GREY, "width": 1},
                        "pattern": {"shape": "/", "fgcolor": GREY},
                    },
                    hovertemplate="%{x:.1f}",
                )
            )
    return figure


def cost_plot(view: RunView) -> Plot | None:
    """None before the first epoch."""
    data = cost_data(view)
    spent = {unit: sum(_total(stage, unit) for stage in data["stages"]) for unit in UNITS}
    if not spent["epochs"]:
        return None
    saved = {unit: sum(s["saved"][unit] for s in data["stages"] if s["saved"] is not None) for unit in UNITS}
    stopped = sum(stage["states"].get("pruned", {}).get("trials", 0) for stage in data["stages"])
    finding = (
        f"{spent['epochs']:.0f} epochs, {spent['utterance_passes']:.1f} passes over the training split, "
        f"{duration(spent['seconds'])} in trials."
    )
    if stopped:
        share = saved["utterance_passes"] / max(spent["utterance_passes"] + saved["utterance_passes"], 1e-12)
        finding += (
            f" Early stopping of {stopped} trials saved about {saved['utterance_passes']:.1f} passes, {share:.0%} of "
            "the "
            "cost of full trials."
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
        "utterance_passes": sum(number(trial.utterance_passes) or 0.0 for trial in trials),
        "seconds": sum(number(trial.seconds) or 0.0 for trial in trials),
    }


def _saved(trials: Sequence[TrialRecord], epochs: float) -> dict[str, float]:
    stopped = [trial for trial in trials if trial.state == "pruned" and 0 < trial.epoch < epochs]
    missing = [(epochs - trial.epoch, _cost([trial]), trial.epoch) for trial in stopped]
    return {unit: sum(left * cost[unit] / run for left, cost, run in missing) for unit in UNITS}


def _total(stage: Mapping[str, Any], unit: str) -> float:
    return float(sum(cost[unit] for cost in stage["states"].values()))
