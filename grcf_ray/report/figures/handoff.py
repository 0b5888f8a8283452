"""The hand-off: whether Stage 1's order of the finalists is Stage 2's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.figures.layout import new_figure
from grcf_ray.report.figures.palette import GREY, MARKS
from grcf_ray.report.figures.parameters import objective
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord, rank
from grcf_ray.statistics import rank_test
from grcf_ray.train.curve import DIRECTIONS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FEW = 4


def handoff_data(view: RunView) -> dict[str, Any]:
    """The finalists by their Stage 1 rank, each with the Stage 2 trials that started from it.

    `best`: the best Stage 2 result from a finalist; `median`: of those that ran to the end; None without any. `order`:
    for either, the rank correlation of Stage 1's objective with it, +1 where both stages order the finalists alike.
    """
    started_from: dict[str, list[TrialRecord]] = {name: [] for name in view.info.finalists}
    for trial in view.trials[2]:
        if "finalist" in trial.params:
            started_from.setdefault(str(trial.params["finalist"]), []).append(trial)
    finalists = []
    for place, finalist in enumerate(view.ranked(1), start=1):
        started = started_from.get(str(finalist.number))
        if started is None:
            continue
        usable = rank(trial for trial in started if objective(trial) is not None)
        complete = [value for t in started if t.state == "complete" and (value := objective(t)) is not None]
        finalists.append(
            {
                "number": finalist.number,
                "objective": objective(finalist),
                "rank": place,
                "trials": [
                    {"number": trial.number, "state": trial.state, "objective": objective(trial)} for trial in started
                ],
                "best": objective(usable[0]) if usable else None,
                "median": statistics.median(complete) if complete else None,
            }
        )
    return {
        "metrics": [view.objective(1), view.objective(2)],
        "finalists": finalists,
        "order": {key: _order(finalists, key) for key in ("best", "median")},
    }


def draw_handoff(data: Mapping[str, Any]) -> Figure:
    """Stage 2's results over the Stage 1 objective of the finalist that they started from."""
    from plotly.graph_objects import Scatter

    before, after = (METRIC_TITLES[metric] for metric in data["metrics"])
    figure = new_figure(
        420,
        xaxis={"title": f"Stage 1: valid {before} of the finalist", "automargin": True},
        yaxis={"title": f"Stage 2: valid {after}", "automargin": True},
    )
    for state, mark in MARKS.items():
        found = [
            (finalist, trial)
            for finalist in data["finalists"]
            for trial in finalist["trials"]
            if trial["state"] == state and trial["objective"] is not None
        ]
        if found:
            figure.add_trace(
                Scatter(
                    x=[finalist["objective"] for finalist, _ in found],
                    y=[trial["objective"] for _, trial in found],
                    customdata=[[finalist["number"], trial["number"]] for finalist, trial in found],
                    mode="markers",
                    name=mark.title,
                    marker={"color": mark.colour, "symbol": mark.symbol, "size": 8, "opacity": 0.8},
                    hovertemplate="trial %{customdata[1]} from %{customdata[0]}<br>%{y:.4f}",
                )
            )
    known = [finalist for finalist in data["finalists"] if finalist["best"] is not None]
    figure.add_trace(
        Scatter(
            x=[finalist["objective"] for finalist in known],
            y=[finalist["best"] for finalist in known],
            text=[f"from {finalist['number']}" for finalist in known],
            textposition="bottom center" if DIRECTIONS[2] == "min" else "top center",
            customdata=[[finalist["number"], finalist["rank"]] for finalist in known],
            mode="markers+text",
            name="best from each",
            marker={"color": GREY, "symbol": "circle-open", "size": 15, "line": {"width": 2}},
            cliponaxis=False,
            hovertemplate="finalist %{customdata[0]}, rank %{customdata[1]} in Stage 1<br>best %{y:.4f}",
        )
    )
    return figure


def handoff_plot(view: RunView) -> Plot | None:
    """None until two finalists have a Stage 2 result."""
    data = handoff_data(view)
    known = [finalist for finalist in data["finalists"] if finalist["best"] is not None]
    if len(known) < 2:
        return None
    after = METRIC_TITLES[data["metrics"][1]]
    finding = (
        f"Rank correlation of the finalists' Stage 1 order with their best in Stage 2: {_said(data['order']['best'])}; "
        f"with the median of trials that ran to the end: {_said(data['order']['median'])}."
    )
    few = None
    if len(known) < _FEW:
        few = (
            f"{len(known)} finalists can be ordered in {len(known) * (len(known) - 1)} ways: even full agreement comes "
            "about by chance, so this cannot show that Stage 1 predicts Stage 2, or that it does not."
        )
    return Plot(
        name="handoff",
        title="From Stage 1 to Stage 2",
        caption=f"Stage 2's validation {after} (lower is better) over the Stage 1 result of the finalist that each "
        f"trial started from. {finding} The search starts more trials from finalists that do well, and the best of "
        "more trials is better by chance too.",
        summary=f"{finding} " + "; ".join(f"from trial {f['number']}: best {f['best']:.4f}" for f in known) + ".",
        data=data,
        draw=draw_handoff,
        warning=few,
    )


def _said(order: Mapping[str, Any]) -> str:
    if order["rho"] is None:
        return "undefined"
    return f"{order['rho']:+.2f} (n = {order['n']}, two-sided permutation p = {order['p']:.2g})"


def _order(finalists: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    known = [finalist for finalist in finalists if finalist[key] is not None]
    signs = [1 if DIRECTIONS[stage] == "max" else -1 for stage in (1, 2)]
    rho, p = rank_test([signs[0] * f["objective"] for f in known], [signs[1] * f[key] for f in known])
    return {"rho": rho, "p": p, "n": len(known)}
