"""Learning curves by loss term (the paper's Figure 3), and the objective of all trials by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.figures.layout import count_axis, new_figure, rows
from grcf_ray.report.figures.palette import BLUE, GREEN, GREY, OCHRE, ORANGE, PURPLE
from grcf_ray.report.figures.parameters import number
from grcf_ray.report.figures.text import shown
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord
from grcf_ray.train.curve import objective_value

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_LOSS = "loss/"
_LINES = ((ORANGE, "solid"), (GREEN, "dash"), (PURPLE, "dot"), (OCHRE, "dashdot"), (GREY, "longdash"))


def curves_data(view: RunView, stage: Literal[1, 2]) -> dict[str, Any] | None:
    """Return the loss terms and the objective of one trial by epoch, and the objective of all other trials.

    `role` of that trial: "winner", "finalist" (the winner started from it), or "best so far" without a winner. None
    without a trial to show.
    """
    shown_trial, role = _shown(view, stage)
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
        "terms": {term: [number(metrics.get(_LOSS + term)) for metrics in curve] for term in terms},
        "objective": _objectives(shown_trial),
        "best_epoch": None if shown_trial.best is None else shown_trial.best["epoch"],
        "others": [
            {
                "number": trial.number,
                "epoch": [metrics["epoch"] for metrics in trial.curve],
                "objective": _objectives(trial),
            }
            for trial in view.trials[stage]
            if trial is not shown_trial and trial.curve
        ],
    }


def draw_curves(data: Mapping[str, Any]) -> Figure:
    """Draw loss terms above, and below them the objective among those of all other trials."""
    from plotly.graph_objects import Scatter

    above, below = rows([1, 1], gap=0.14)
    last = max(map(len, [data["epoch"], *(trial["epoch"] for trial in data["others"])]))
    figure = new_figure(
        540,
        xaxis={"anchor": "y", "matches": "x2", "showticklabels": False},
        yaxis={"title": "training loss", "domain": above, "rangemode": "tozero", "automargin": True},
        xaxis2={"title": "epoch", "anchor": "y2", "automargin": True, **count_axis(last)},
        yaxis2={"title": f"valid {METRIC_TITLES[data['metric']]}", "domain": below, "anchor": "x2", "automargin": True},
    )
    for index, (term, values) in enumerate(data["terms"].items()):
        colour, dash = _LINES[index % len(_LINES)]
        figure.add_trace(
            Scatter(
                x=data["epoch"],
                y=values,
                mode="lines+markers",
                name=shown(term, 24),
                line={"color": colour, "dash": dash},
                marker={"size": 4},
                hovertemplate="epoch %{x}: %{y:.4g}",
            )
        )
    # One trace for all other trials, with a gap after each: a thousand traces would be slow.
    epochs, values, numbers = [], [], []
    for trial in data["others"]:
        epochs += [*trial["epoch"], None]
        values += [*trial["objective"], None]
        numbers += [trial["number"]] * (len(trial["epoch"]) + 1)
    figure.add_trace(
        Scatter(
            x=epochs,
            y=values,
            customdata=numbers,
            xaxis="x2",
            yaxis="y2",
            mode="lines+markers",
            name="other trials",
            line={"color": GREY, "width": 1},
            marker={"size": 3},
            opacity=0.45,
            hovertemplate="trial %{customdata}, epoch %{x}: %{y:.4f}",
        )
    )
    figure.add_trace(
        Scatter(
            x=data["epoch"],
            y=data["objective"],
            xaxis="x2",
            yaxis="y2",
            mode="lines+markers",
            name=f"trial {data['number']} ({data['role']})",
            line={"color": BLUE, "width": 3},
            hovertemplate="epoch %{x}: %{y:.4f}",
        )
    )
    return figure


def curves_plot(view: RunView, stage: Literal[1, 2]) -> Plot | None:
    """Return the figure, or None without a trial to show."""
    data = curves_data(view, stage)
    if data is None:
        return None
    metric = METRIC_TITLES[data["metric"]]
    who = f"trial {data['number']}, the {data['role']}"
    terms = "; ".join(
        f"{term} from {known[0]:.4g} to {known[-1]:.4g}"
        for term, values in data["terms"].items()
        if (known := [value for value in values if value is not None])
    )
    return Plot(
        name=f"curves-stage{stage}",
        title=f"Stage {stage}: learning curves",
        caption=f"Above: mean training loss of {who} by epoch, in total and by unweighted term. Below: its validation "
        f"{metric} and those of all other trials.",
        summary=f"Stage {stage} {who}, {len(data['epoch'])} epochs. Losses: {terms}. Best {metric} at epoch "
        f"{data['best_epoch']}.",
        data=data,
        draw=draw_curves,
    )


def _shown(view: RunView, stage: Literal[1, 2]) -> tuple[TrialRecord | None, str]:
    winner = view.winner
    if winner is not None:
        if winner.stage == stage:
            return winner, "winner"
        finalist = winner.params.get("finalist")
        for trial in view.trials[stage]:
            if str(trial.number) == str(finalist):
                return trial, "finalist"
    best = view.ranked(stage)
    return (best[0], "best so far") if best else (None, "")


def _objectives(trial: TrialRecord) -> list[float | None]:
    return [number(objective_value(trial.stage, metrics)) for metrics in trial.curve]
