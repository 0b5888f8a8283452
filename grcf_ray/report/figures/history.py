"""The history of a search: the objective of each trial, and the best so far by trials and by cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.figures.layout import count_axis, new_figure, rows
from grcf_ray.report.figures.palette import GREY, MARKS
from grcf_ray.report.figures.parameters import number, objective
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord
from grcf_ray.train.curve import DIRECTIONS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def history_data(view: RunView, stage: Literal[1, 2]) -> dict[str, Any]:
    """Each trial by number with its state, objective (None without a usable one) and the best so far.

    `cost`: the trials in the order in which they ended, the unfinished last, with the utterance passes that all had
    taken by then and the best so far.
    """
    trials = view.trials[stage]
    ended = sorted(trials, key=lambda trial: (trial.ended is None, trial.ended or "", trial.number))
    passes, cost = 0.0, []
    for trial, best in zip(ended, _best_so_far(ended, stage), strict=True):
        passes += number(trial.utterance_passes) or 0.0
        cost.append({"number": trial.number, "passes": passes, "best": best})
    return {
        "stage": stage,
        "metric": view.objective(stage),
        "direction": DIRECTIONS[stage],
        "trials": [
            {"number": trial.number, "state": trial.state, "objective": objective(trial), "best": best}
            for trial, best in zip(trials, _best_so_far(trials, stage), strict=True)
        ],
        "cost": cost,
    }


def draw_history(data: Mapping[str, Any]) -> Figure:
    """Trials above, with those that have no result on a strip below them; the best against cost at the bottom."""
    from plotly.graph_objects import Scatter

    none = any(trial["objective"] is None for trial in data["trials"])
    above, strip, below = rows([6, 0.6 if none else 0.01, 5], gap=0.13)
    title = f"valid {METRIC_TITLES[data['metric']]}"
    last = max(trial["number"] for trial in data["trials"])
    figure = new_figure(
        560,
        xaxis={"title": {"text": "trial", "standoff": 4}, "anchor": "y2", "automargin": True} | count_axis(last),
        yaxis={"title": title, "domain": (strip[1] + 0.02, above[1]), "automargin": True},
        yaxis2={
            "domain": strip,
            "range": (-1, 1),
            "tickvals": [0] if none else [],
            "ticktext": ["none"] if none else [],
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
        xaxis2={"title": "passes over the training split", "anchor": "y3", "rangemode": "tozero", "automargin": True},
        yaxis3={"title": "best so far", "domain": below, "anchor": "x2", "automargin": True},
    )
    for state, mark in MARKS.items():
        of_state = [trial for trial in data["trials"] if trial["state"] == state]
        legend = True
        for axis, value in (("y", "objective"), ("y2", None)):
            found = [trial for trial in of_state if (trial["objective"] is None) == (value is None)]
            if found:
                figure.add_trace(
                    Scatter(
                        x=[trial["number"] for trial in found],
                        y=[0 if value is None else trial[value] for trial in found],
                        yaxis=axis,
                        mode="markers",
                        name=mark.title,
                        legendgroup=state,
                        showlegend=legend,
                        marker={
                            "color": mark.colour,
                            "symbol": mark.symbol,
                            "size": 8,
                            "line": {"color": mark.colour, "width": 1.5},
                        },
                        hovertemplate="trial %{x}" + ("" if value is None else "<br>%{y:.4f}"),
                    )
                )
                legend = False
    line = {"color": GREY, "width": 2, "shape": "hv"}
    for entries, axes, key in ((data["trials"], ("x", "y"), "number"), (data["cost"], ("x2", "y3"), "passes")):
        known = [entry for entry in entries if entry["best"] is not None]
        figure.add_trace(
            Scatter(
                x=[entry[key] for entry in known],
                y=[entry["best"] for entry in known],
                xaxis=axes[0],
                yaxis=axes[1],
                mode="lines",
                line=line,
                name="best so far",
                legendgroup="best",
                showlegend=key == "number",
                customdata=[entry["number"] for entry in known],
                hovertemplate="best %{y:.4f} by trial %{customdata}",
            )
        )
    return figure


def history_plot(view: RunView, stage: Literal[1, 2]) -> Plot | None:
    """None where the stage has no trials yet."""
    if not view.trials[stage]:
        return None
    data = history_data(view, stage)
    metric = METRIC_TITLES[data["metric"]]
    found = {state: sum(trial["state"] == state for trial in data["trials"]) for state in MARKS}
    states = ", ".join(f"{count} {MARKS[state].title}" for state, count in found.items() if count)
    best = view.ranked(stage)
    result = f"Best: trial {best[0].number}, {metric} {best[0].objective:.4f}." if best else "None has a result."
    better = "higher" if data["direction"] == "max" else "lower"
    return Plot(
        name=f"history-stage{stage}",
        title=f"Stage {stage}: trials and the best so far",
        caption=f"Validation {metric} of each trial's best epoch ({better} is better), then the best so far against "
        "cost, trials in the order in which they ended. Trials that were stopped early had fewer epochs. The best of "
        "many trials is optimistic.",
        summary=f"{len(data['trials'])} trials: {states}. {result}",
        data=data,
        draw=draw_history,
    )


def _best_so_far(trials: Sequence[TrialRecord], stage: Literal[1, 2]) -> list[float | None]:
    better = max if DIRECTIONS[stage] == "max" else min
    best: float | None = None
    found = []
    for trial in trials:
        value = objective(trial)
        if value is not None:
            best = value if best is None else better(best, value)
        found.append(best)
    return found
