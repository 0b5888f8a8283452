"""The figures of a run's best model: on the test split once it has been read, else on valid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grcf_ray.config import build_config
from grcf_ray.metrics import METRIC_DIRECTIONS, METRIC_TITLES
from grcf_ray.report.figures import predictions
from grcf_ray.report.figures.layout import name_axis, new_figure, points, shown, two_columns
from grcf_ray.report.figures.palette import BLUE, GREEN, GREY, ORANGE
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.comparisons import baseline_kind, retrainings
from grcf_ray.search.predictions import Predictions
from grcf_ray.train.objectives import ordinal_groups

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_ARMS = {"winner": "winner retrained", "start": "starting point retrained"}
_PANEL_PX = 175
_FEW = 30
"""Below so many utterances, the figure of a group or class is mostly chance."""


def scoreboard_data(metrics: Mapping[str, Any], seeds: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the recorded values of each metric.

    metrics: best/metrics.json. seeds: seeds/metrics.json if the winner was retrained; its entries have a deviation.
    """
    panels: list[dict[str, Any]] = []
    for name, title in METRIC_TITLES.items():
        if name not in metrics["test"]:
            continue
        sources = {"valid": metrics["valid"], "test": metrics["test"]}
        if ensemble := metrics.get("ensemble"):
            sources[f"ensemble of {len(ensemble['members'])}, test"] = ensemble["test"]
        sources |= {f"{baseline_kind(base['name'])}, test": base["test"] for base in metrics["baselines"]}
        sources |= {"paper, test": metrics["paper"]}
        values = {source: {"mean": figures.get(name), "deviation": None} for source, figures in sources.items()}
        if seeds:
            values |= {f"{words}, test": seeds["arms"][arm]["test"].get(name) for arm, words in _ARMS.items()}
        entries = [
            {"what": source, "value": value["mean"], "deviation": value["deviation"]}
            for source, value in values.items()
            if value and value["mean"] is not None
        ]
        panels.append({"metric": name, "title": title, "better": METRIC_DIRECTIONS[name], "entries": entries})
    columns = list(dict.fromkeys(entry["what"] for panel in panels for entry in panel["entries"]))
    return {
        "panels": panels,
        "seeds": seeds["seeds"] if seeds else None,
        "not_comparable": list(metrics["not_comparable"]),
        "columns": columns,
    }


def draw_scoreboard(data: Mapping[str, Any]) -> Figure:
    """Draw a panel for each metric on its own scale; whiskers are deviations over the seeds."""
    panels, columns = data["panels"], data["columns"]
    lines = -(-len(panels) // 2)
    height = 88 + (_PANEL_PX + 12 * max(0, len(columns) - 4)) * lines
    titles = [f"<b>{shown(panel['title'])}</b> {'↑' if panel['better'] == 'max' else '↓'}" for panel in panels]
    gap = min(0.35 / lines, 0.2)
    grid, places = two_columns(len(panels), shared_yaxes=True, horizontal_spacing=0.06, vertical_spacing=gap)
    # Space for plotly's buttons, which would cover the first titles on a narrow page.
    figure = new_figure(height, grid, showlegend=False, margin={"l": 10, "r": 20, "t": 58, "b": 30})
    figure.update_xaxes(nticks=4, tickangle=0, title="")
    names = [shown(column, 32) for column in columns]
    figure.update_yaxes(range=[len(names) - 0.5, -0.5], showgrid=True, title="", **name_axis(names))
    for panel, title, place in zip(panels, titles, places, strict=True):
        corner = {"x": 0, "y": 1, "xref": "x domain", "yref": "y domain", "xanchor": "left", "yanchor": "bottom"}
        figure.add_annotation(text=title, showarrow=False, **corner, **place)
        entries = [
            {**entry, "line": columns.index(entry["what"]), "said": shown(entry["what"])} for entry in panel["entries"]
        ]
        figure.add_scatter(
            **points(entries, "value", "line", "said"),
            error_x={"type": "data", "array": [entry["deviation"] for entry in entries], "color": GREY},
            mode="markers",
            marker={
                "size": 9,
                "color": [_colour(entry["what"]) for entry in entries],
                "symbol": ["circle" if entry["what"] == "test" else "diamond-open" for entry in entries],
                "line": {"width": 2},
            },
            hovertemplate="%{customdata[0]}: %{x:.4f}<extra></extra>",
            **place,
        )
    return figure


def _colour(source: str) -> str:
    if source in ("valid", "test"):
        return BLUE
    if source == "paper, test":
        return ORANGE
    return GREEN if source.endswith("retrained, test") else GREY


def model_plots(view: RunView) -> list[Plot]:
    """Return the figures of the best model, in the order of the page; none without its predictions."""
    scored = view.scored(view.shown_split)
    if scored is None:
        return []
    makers = [_scoreboard, _agreement, _confusion, _errors, _projection, _pairs]
    return [plot for plot in (maker(view, scored) for maker in makers) if plot is not None]


def _recorded(view: RunView) -> Mapping[str, float] | None:
    return None if view.metrics is None else view.metrics[view.shown_split]


def _said(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{METRIC_TITLES[name]} {value:.4f}" for name, value in figures.items())


def _seen(view: RunView) -> str | None:
    if view.shown_split == "test" and view.info.test_seen:
        return "Test was seen before selection ended: the search continued after test had been read."
    return None


def _few(view: RunView, scored: Predictions) -> str | None:
    count = len(scored.id_N)
    return _seen(view) or (f"Only {count} utterances: much of this figure is chance." if count < _FEW else None)


def _where(view: RunView, scored: Predictions, *, sampled: bool = False) -> str:
    total = len(scored.id_N)
    return predictions.of_split(view.shown_split, min(total, predictions.MOST_SHOWN) if sampled else total, total)


def _scoreboard(view: RunView, scored: Predictions) -> Plot | None:
    if view.metrics is None:
        return None
    data = scoreboard_data(view.metrics, retrainings(view.record, view.metrics["trial"]))
    more = ""
    if data["seeds"]:
        more += f" Retrainings are means over {data['seeds']} fresh seeds; whiskers are standard deviations."
    if data["not_comparable"]:
        more += f" Not comparable with the paper: {'; '.join(data['not_comparable'])}."
    return Plot(
        name="figures-by-metric",
        title="The best model by metric",
        caption="↑: higher is better; ↓: lower is better. Valid is optimistic: it chose the best of several trials. "
        f"Test was read afterwards. One model under one seed says little about small differences.{more}",
        summary=f"On test: {_said({p['metric']: view.metrics['test'][p['metric']] for p in data['panels'][:4]})}.",
        data=data,
        draw=draw_scoreboard,
        warning=_seen(view),
    )


def _agreement(view: RunView, scored: Predictions) -> Plot:
    if view.task == "classification":
        data = predictions.class_scores_data(scored, view.label_range, _recorded(view))
        figures = f" {_said(data['recorded'])}." if data["recorded"] else ""
        return Plot(
            name="scores-by-class",
            title="Scores of each class",
            caption=f"Logits of the {_where(view, scored)} The model cannot tell the classes apart where their "
            "logits overlap; the calibration shows how confident it should be.",
            summary=f"{sum(data['positive'])} positives and {sum(data['negative'])} negatives.{figures}",
            data=data,
            draw=predictions.draw_class_scores,
            warning=_few(view, scored),
        )
    data = predictions.agreement_data(scored, view.label_range, _recorded(view))
    figures = f" {_said(data['recorded'])} on all utterances." if data["recorded"] else ""
    return Plot(
        name="truth-and-prediction",
        title="Truth against prediction",
        caption=f"{_where(view, scored, sampled=True)}{figures} A high correlation does not mean that the predictions "
        "have the right size; closeness to the dashed line does.",
        summary=f"Predictions against labels of {data['total']} utterances.{figures}",
        data=data,
        draw=predictions.draw_agreement,
        warning=_few(view, scored),
    )


def _confusion(view: RunView, scored: Predictions) -> Plot | None:
    data = predictions.confusion_data(scored, view.protocol, view.label_range)
    if data is None:
        return None
    low, high = view.label_range
    scaled = "" if (low, high) == (-3, 3) else f" of [{low:g}, {high:g}] brought to [-3, 3]"
    classes = {
        "acc2": "both classes",
        "acc5": "the five classes of Acc5",
        "acc7": f"the seven classes of Acc7, labels{scaled} rounded to whole ones",
        "acc_whole": f"the whole labels from {data['classes'][0]} to {data['classes'][-1]}, the nearest of each label",
    }[data["metric"]]
    right = sum(row[index] for index, row in enumerate(data["counts"]))
    return Plot(
        name="confusion",
        title="Confusion of classes",
        caption=f"{_where(view, scored)} Rows are {classes}; columns are predictions. A cell shows its count and "
        "its share of the row. Shares in rows with few utterances are mostly chance.",
        summary=f"{right} of {data['total']} utterances are predicted in their class, a share of {data['right']:.4f}.",
        data=data,
        draw=predictions.draw_confusion,
        warning=_few(view, scored),
    )


def _errors(view: RunView, scored: Predictions) -> Plot:
    if view.task == "classification":
        data = predictions.calibration_data(scored, view.label_range)
        return Plot(
            name="calibration",
            title="Errors by confidence",
            caption=f"{_where(view, scored)} Share of errors by confidence, the probability of the predicted class. "
            "Above the dashed line the model is overconfident. Points with few utterances are mostly chance.",
            summary=f"{data['wrong']} of {data['total']} predictions are wrong.",
            data=data,
            draw=predictions.draw_calibration,
            warning=_few(view, scored),
        )
    # Predictions are written beside a model, after its provenance.
    assert view.provenance is not None
    low, high = view.label_range
    groups = ordinal_groups(build_config(view.provenance["settings"]).ranking, (high - low) / 2)
    data = predictions.group_errors_data(scored, view.label_range, groups)
    full = [group for group in data["groups"] if group["utterances"]]
    worst = max(full, key=lambda group: group["mae"])
    few = [f"{g['low']:.3g} to {g['high']:.3g}" for g in data["groups"] if g["utterances"] < _FEW]
    return Plot(
        name="errors-by-group",
        title="Error by ordinal group",
        caption=f"{_where(view, scored)} The model's settings define the ordinal groups; an utterance counts "
        "in each group that contains its label. An uncertain model usually predicts values too near the "
        "middle, so errors at both ends do not prove a fault of the loss.",
        summary=f"The mean absolute error is largest, {worst['mae']:.4f}, for labels from {worst['low']:.3g} to "
        f"{worst['high']:.3g} ({worst['utterances']} utterances).",
        data=data,
        draw=predictions.draw_group_errors,
        warning=_seen(view) or (f"Fewer than {_FEW} utterances in {', '.join(few)}." if few else None),
    )


def _projection(view: RunView, scored: Predictions) -> Plot | None:
    data = predictions.projection_data(scored, view.task, view.label_range)
    if data is None:
        return None
    cases = sum(point["case"] for point in data["points"])
    crosses = f" Crosses mark labels below {data['below']:.3g} ({cases})." if data["below"] is not None else ""
    return Plot(
        name="representation",
        title="The representation before the head (t-SNE)",
        caption=f"{_where(view, scored, sampled=True)}{crosses} t-SNE keeps neighbours together; the axes, and the "
        f"sizes and distances of clusters, have no meaning (perplexity {data['perplexity']:.3g}, seed {data['seed']}).",
        summary=f"{len(data['points'])} utterances in two dimensions, coloured by label.{crosses}",
        data=data,
        draw=predictions.draw_projection,
        warning=_few(view, scored),
    )


def _pairs(view: RunView, scored: Predictions) -> Plot | None:
    data = predictions.hardest_pairs_data(scored, view.task)
    if not data["pairs"]:
        return None
    equation = 19 if view.task == "classification" else 9
    return Plot(
        name="hardest-pairs",
        title="The hardest pairs",
        caption=f"{data['pairs']} pairs of different labels among {_where(view, scored, sampled=True)} The "
        f"figure shows the {len(data['table']['rows'])} hardest: wrong orders with the largest difference first, then "
        f"narrow right orders, at most two per utterance. The weight comes from eq. {equation} of the paper, over all "
        "pairs. The cause of a hard pair may be a wrong label as well as a wrong prediction.",
        summary=f"{data['wrong']} of {data['pairs']} pairs are in the wrong order.",
        data=data,
        draw=predictions.draw_hardest_pairs,
        warning=_few(view, scored),
    )
