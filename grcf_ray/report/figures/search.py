"""The figures of a search, from its trial records, in their order; history, hand-off and learning curves."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.figures.cost import cost_plot, failures_plot
from grcf_ray.report.figures.importance import importance_plot
from grcf_ray.report.figures.layout import add_trials, count_axis, new_figure, points, share_legend, shown
from grcf_ray.report.figures.palette import BLUE, GREEN, GREY, MARKS, OCHRE, ORANGE, PURPLE
from grcf_ray.report.figures.parameters import outcome, parallel_plot, slices_plot
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord, rank
from grcf_ray.statistics import rank_test
from grcf_ray.train.curve import DIRECTIONS, STAGES, minimised, objective_value

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_GAP = 0.13
"""Between the rows, as a share of the figure."""
_FEW = 4
_LOSS = "loss/"
_LINES = ((ORANGE, "solid"), (GREEN, "dash"), (PURPLE, "dot"), (OCHRE, "dashdot"), (GREY, "longdash"))


def history_data(view: RunView, stage: Literal[1, 2]) -> dict[str, Any]:
    """Return each trial by number with its state, objective (None without a usable one) and the best so far.

    `cost`: the trials in the order in which they ended, the unfinished last, with the utterance passes that all had
    taken by then and the best so far.
    """
    trials = view.trials[stage]
    ended = sorted(trials, key=lambda trial: (trial.ended is None, trial.ended or "", trial.number))
    passes, cost = 0.0, []
    for trial, best in zip(ended, _best_so_far(ended, stage), strict=True):
        passes += trial.utterance_passes
        cost.append({"number": trial.number, "passes": passes, "best": best})
    return {
        "stage": stage,
        "metric": view.objective(stage),
        "direction": DIRECTIONS[stage],
        "trials": [
            outcome(trial) | {"best": best} for trial, best in zip(trials, _best_so_far(trials, stage), strict=True)
        ],
        "cost": cost,
    }


def draw_history(data: Mapping[str, Any]) -> Figure:
    """Draw trials above, those without a result on a strip below them, and the best against cost at the bottom."""
    results = [trial for trial in data["trials"] if trial["objective"] is not None]
    # At the middle of the strip.
    without = [trial | {"objective": 0} for trial in data["trials"] if trial["objective"] is None]
    heights = [6, 0.6 if without else 0.01, 5]
    figure = new_figure(560, {"rows": 3, "row_heights": heights, "vertical_spacing": _GAP})
    above, strip = figure.layout.yaxis.domain, figure.layout.yaxis2.domain
    none = {"tickvals": [0], "ticktext": ["none"]} if without else {"tickvals": []}
    count = count_axis(max(trial["number"] for trial in data["trials"]))
    figure.update_layout(
        xaxis={"title": {"text": "trial", "standoff": 4}, "anchor": "y2"} | count,
        yaxis={"title": f"valid {METRIC_TITLES[data['metric']]}", "domain": (strip[1] + 0.02, above[1])},
        xaxis2={"matches": "x", "showticklabels": False} | count,
        yaxis2={"range": (-1, 1), "showgrid": False, "zeroline": False} | none,
        xaxis3={"title": "passes over the training split", "rangemode": "tozero"},
        yaxis3={"title": "best so far"},
    )
    for row, trials, hover in ((1, results, "trial %{x}<br>%{y:.4f}"), (2, without, "trial %{x}")):
        keys = ("number", "objective")
        add_trials(figure, trials, keys, outline=1.5, marker={"size": 8}, hovertemplate=hover, row=row, col=1)
    for row, entries, key in ((1, data["trials"], "number"), (3, data["cost"], "passes")):
        figure.add_scatter(
            **points([entry for entry in entries if entry["best"] is not None], key, "best", "number"),
            mode="lines",
            line={"color": GREY, "width": 2, "shape": "hv"},
            name="best so far",
            hovertemplate="best %{y:.4f} by trial %{customdata[0]}",
            row=row,
            col=1,
        )
    return share_legend(figure)


def history_plot(view: RunView, stage: Literal[1, 2]) -> Plot | None:
    """Return the figure, or None without trials."""
    if not view.trials[stage]:
        return None
    data = history_data(view, stage)
    metric = METRIC_TITLES[data["metric"]]
    counts = {state: sum(trial["state"] == state for trial in data["trials"]) for state in MARKS}
    states = ", ".join(f"{count} {MARKS[state].title}" for state, count in counts.items() if count)
    best = view.ranked(stage)
    result = f"Best: trial {best[0].number}, {metric} {best[0].objective:.4f}." if best else "None has a result."
    better = "higher" if data["direction"] == "max" else "lower"
    return Plot(
        name=f"history-stage{stage}",
        title=f"Stage {stage}: trials and the best so far",
        caption=f"Above: the validation {metric} of each trial's best epoch ({better} is better). Below: the best so "
        "far against cost, with the trials in the order in which they ended. Trials that were stopped early had fewer "
        "epochs. The best of many trials is optimistic.",
        summary=f"{len(data['trials'])} trials: {states}. {result}",
        data=data,
        draw=draw_history,
    )


def _best_so_far(trials: Iterable[TrialRecord], stage: Literal[1, 2]) -> Iterator[float | None]:
    best: float | None = None
    for value in (trial.objective for trial in trials):
        if value is not None and (best is None or minimised(stage, value) < minimised(stage, best)):
            best = value
        yield best


def handoff_data(view: RunView) -> dict[str, Any]:
    """Return the finalists by their Stage 1 rank, each with the Stage 2 trials that started from it.

    `best`: the best Stage 2 result from a finalist; `median`: that of its complete trials; None without any. `order`:
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
        usable = rank(started)
        complete = [value for t in started if t.state == "complete" and (value := t.objective) is not None]
        finalists.append(
            {
                "number": finalist.number,
                "objective": finalist.objective,
                "rank": place,
                "trials": list(map(outcome, started)),
                "best": usable[0].objective if usable else None,
                "median": statistics.median(complete) if complete else None,
            }
        )
    return {
        "metrics": [view.objective(1), view.objective(2)],
        "finalists": finalists,
        "order": {key: _order(finalists, key) for key in ("best", "median")},
    }


def draw_handoff(data: Mapping[str, Any]) -> Figure:
    """Draw Stage 2's results over the Stage 1 objective of the finalist that they started from."""
    before, after = (METRIC_TITLES[metric] for metric in data["metrics"])
    figure = new_figure(
        420,
        xaxis={"title": f"Stage 1: valid {before} of the finalist"},
        yaxis={"title": f"Stage 2: valid {after}"},
    )
    trials = [
        trial | {"finalist": finalist["number"], "before": finalist["objective"]}
        for finalist in data["finalists"]
        for trial in finalist["trials"]
        if trial["objective"] is not None
    ]
    add_trials(
        figure,
        trials,
        ("before", "objective", "finalist", "number"),
        marker={"size": 8, "opacity": 0.8},
        hovertemplate="trial %{customdata[1]} from %{customdata[0]}<br>%{y:.4f}",
    )
    known = _known(data["finalists"], "best")
    figure.add_scatter(
        **points(known, "objective", "best", "number", "rank"),
        text=[f"from {finalist['number']}" for finalist in known],
        textposition="bottom center" if DIRECTIONS[2] == "min" else "top center",
        mode="markers+text",
        name="best from each",
        marker={"color": GREY, "symbol": "circle-open", "size": 15, "line": {"width": 2}},
        cliponaxis=False,
        hovertemplate="finalist %{customdata[0]}, rank %{customdata[1]} in Stage 1<br>best %{y:.4f}",
    )
    return figure


def handoff_plot(view: RunView) -> Plot | None:
    """Return the figure, or None until two finalists have a Stage 2 result."""
    data = handoff_data(view)
    known = _known(data["finalists"], "best")
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
            f"{len(known)} finalists have only {len(known) * (len(known) - 1)} possible orders, so even full agreement "
            "can be chance. The figure shows neither that Stage 1 predicts Stage 2 nor that it does not."
        )
    return Plot(
        name="handoff",
        title="From Stage 1 to Stage 2",
        caption=f"Each point is a trial of Stage 2: its validation {after} (lower is better) against the Stage 1 "
        f"result of its finalist. {finding} The best of more trials is better by chance too.",
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
    known = _known(finalists, key)
    rho, p = rank_test([minimised(1, f["objective"]) for f in known], [minimised(2, f[key]) for f in known])
    return {"rho": rho, "p": p, "n": len(known)}


def _known(finalists: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    return [finalist for finalist in finalists if finalist[key] is not None]


def curves_data(view: RunView, stage: Literal[1, 2]) -> dict[str, Any] | None:
    """Return the loss terms and the objective of one trial by epoch, and the objective of all other trials.

    `role` of that trial: "winner", "finalist" (the winner started from it), or "best so far" without a winner. None
    without a trial to show.
    """
    shown_trial, role = _followed(view, stage)
    if shown_trial is None:
        return None
    curve = shown_trial.curve
    terms = sorted({name.removeprefix(_LOSS) for metrics in curve for name in metrics if name.startswith(_LOSS)})
    return {
        "stage": stage,
        "metric": view.objective(stage),
        "number": shown_trial.number,
        "role": role,
        "epoch": [metrics["epoch"] for metrics in curve],
        "terms": {term: [metrics.get(_LOSS + term) for metrics in curve] for term in terms},
        "objective": _curve(shown_trial)["objective"],
        "best_epoch": None if shown_trial.best is None else shown_trial.best["epoch"],
        "others": [_curve(trial) for trial in view.trials[stage] if trial is not shown_trial and trial.curve],
    }


def draw_curves(data: Mapping[str, Any]) -> Figure:
    """Draw loss terms above, and below them the objective among those of all other trials."""
    figure = new_figure(540, {"rows": 2, "vertical_spacing": 0.14, "shared_xaxes": True})
    last = max(map(len, [data["epoch"], *(trial["epoch"] for trial in data["others"])]))
    figure.update_xaxes({"title": "epoch"} | count_axis(last), row=2)
    figure.update_yaxes(title="training loss", rangemode="tozero", row=1)
    figure.update_yaxes(title=f"valid {METRIC_TITLES[data['metric']]}", row=2)
    for (term, values), (colour, dash) in zip(data["terms"].items(), itertools.cycle(_LINES), strict=False):
        figure.add_scatter(
            x=data["epoch"],
            y=values,
            mode="lines+markers",
            name=shown(term, 24),
            line={"color": colour, "dash": dash},
            marker={"size": 4},
            hovertemplate="epoch %{x}: %{y:.4g}",
            row=1,
            col=1,
        )
    # One trace for all other trials, with a gap after each: a thousand traces would be slow.
    epochs = [
        {"number": trial["number"], "epoch": epoch, "objective": value}
        for trial in data["others"]
        for epoch, value in zip([*trial["epoch"], None], [*trial["objective"], None], strict=True)
    ]
    figure.add_scatter(
        **points(epochs, "epoch", "objective", "number"),
        mode="lines+markers",
        name="other trials",
        line={"color": GREY, "width": 1},
        marker={"size": 3},
        opacity=0.45,
        hovertemplate="trial %{customdata[0]}, epoch %{x}: %{y:.4f}",
        row=2,
        col=1,
    )
    return figure.add_scatter(
        x=data["epoch"],
        y=data["objective"],
        mode="lines+markers",
        name=f"trial {data['number']} ({data['role']})",
        line={"color": BLUE, "width": 3},
        hovertemplate="epoch %{x}: %{y:.4f}",
        row=2,
        col=1,
    )


def curves_plot(view: RunView, stage: Literal[1, 2]) -> Plot | None:
    """Return the figure, or None without a trial to show."""
    data = curves_data(view, stage)
    if data is None:
        return None
    metric = METRIC_TITLES[data["metric"]]
    who = f"trial {data['number']} (the {data['role']})"
    terms = "; ".join(
        f"{term} from {known[0]:.4g} to {known[-1]:.4g}"
        for term, values in data["terms"].items()
        if (known := [value for value in values if value is not None])
    )
    return Plot(
        name=f"curves-stage{stage}",
        title=f"Stage {stage}: learning curves",
        caption=f"Above: the mean training loss per epoch of {who}: the total, and each term without its weight. "
        f"Below: its validation {metric}, and that of all other trials.",
        summary=f"Stage {stage} {who}, {len(data['epoch'])} epochs. Losses: {terms}. Best {metric} at epoch "
        f"{data['best_epoch']}.",
        data=data,
        draw=draw_curves,
    )


def _followed(view: RunView, stage: Literal[1, 2]) -> tuple[TrialRecord | None, str]:
    winner = view.winner
    if winner is not None and winner.stage == stage:
        return winner, "winner"
    finalist = None if winner is None else winner.params.get("finalist")
    for trial in view.trials[stage]:
        if str(trial.number) == str(finalist):
            return trial, "finalist"
    return next(((trial, "best so far") for trial in view.ranked(stage)), (None, ""))


def _curve(trial: TrialRecord) -> dict[str, Any]:
    return {
        "number": trial.number,
        "epoch": [metrics["epoch"] for metrics in trial.curve],
        "objective": [objective_value(trial.stage, metrics) for metrics in trial.curve],
    }


def search_plots(view: RunView) -> list[Plot]:
    """Return the figures that the run has data for, in the order of the page."""
    plots = [
        *(
            plot(view, stage)
            for plot in (history_plot, importance_plot, parallel_plot, slices_plot)
            for stage in STAGES
        ),
        handoff_plot(view),
        *(curves_plot(view, stage) for stage in STAGES),
        cost_plot(view),
        failures_plot(view),
    ]
    return [plot for plot in plots if plot is not None]
