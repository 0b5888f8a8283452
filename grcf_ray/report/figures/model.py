"""The figures of a run's best model: on the test split once it has been read, else on valid."""

from __future__ import annotations

from collections.abc import Mapping

from grcf_ray.config import build_config
from grcf_ray.losses.groups import OrdinalGroups
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.figures.agreement import agreement_data, class_scores_data, draw_agreement, draw_class_scores
from grcf_ray.report.figures.confusion import confusion_data, draw_confusion
from grcf_ray.report.figures.errors import calibration_data, draw_calibration, draw_group_errors, group_errors_data
from grcf_ray.report.figures.pairs import draw_hardest_pairs, hardest_pairs_data
from grcf_ray.report.figures.projection import draw_projection, projection_data
from grcf_ray.report.figures.scoreboard import draw_scoreboard, scoreboard_data
from grcf_ray.report.figures.utterances import MOST_SHOWN, of_split
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import Predictions, RunView
from grcf_ray.search.comparisons import retrainings
from grcf_ray.train.objectives import ordinal_groups

_FEW = 30
"""Below so many utterances, the figure of a group or class is mostly chance."""


def model_plots(view: RunView) -> list[Plot]:
    """Return the figures of the best model, in the order of the page; none without its predictions."""
    scored = view.scored(view.shown_split)
    if scored is None:
        return []
    makers = [_scoreboard, _agreement, _confusion, _errors, _projection, _pairs]
    return [plot for plot in (maker(view, scored) for maker in makers) if plot is not None]


def _groups(view: RunView) -> OrdinalGroups:
    """Return the ordinal groups that the model was trained with."""
    # Predictions are written beside a model, after its provenance.
    assert view.provenance is not None
    low, high = view.label_range
    return ordinal_groups(build_config(view.provenance["settings"]).ranking, (high - low) / 2)


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
    return of_split(view.shown_split, min(total, MOST_SHOWN) if sampled else total, total)


def _scoreboard(view: RunView, scored: Predictions) -> Plot | None:
    if view.metrics is None:
        return None
    data = scoreboard_data(view.metrics, retrainings(view.record, view.metrics["trial"]))
    beside = f" Not comparable with the paper: {'; '.join(data['not_comparable'])}." if data["not_comparable"] else ""
    spread = (
        f" Retrainings are means over {data['seeds']} fresh seeds; whiskers are standard deviations."
        if data["seeds"]
        else ""
    )
    return Plot(
        name="figures-by-metric",
        title="The best model by metric",
        caption="↑: higher is better; ↓: lower is better. Valid is optimistic: it chose the best of several trials. "
        "Test "
        f"was read afterwards. One model under one seed says little about small differences.{spread}{beside}",
        summary=f"On test: {_said({p['metric']: view.metrics['test'][p['metric']] for p in data['panels'][:4]})}.",
        data=data,
        draw=draw_scoreboard,
        warning=_seen(view),
    )


def _agreement(view: RunView, scored: Predictions) -> Plot:
    if view.task == "classification":
        data = class_scores_data(scored, view.label_range, _recorded(view))
        figures = f" {_said(data['recorded'])}." if data["recorded"] else ""
        return Plot(
            name="scores-by-class",
            title="Scores of each class",
            caption=f"Logits of the {_where(view, scored)} The model cannot tell the classes apart where their "
            "logits overlap; "
            "the calibration shows how confident it should be.",
            summary=f"{sum(data['positive'])} positives and {sum(data['negative'])} negatives.{figures}",
            data=data,
            draw=draw_class_scores,
            warning=_few(view, scored),
        )
    data = agreement_data(scored, view.label_range, _recorded(view))
    figures = f" {_said(data['recorded'])} on all utterances." if data["recorded"] else ""
    return Plot(
        name="truth-and-prediction",
        title="Truth against prediction",
        caption=f"{_where(view, scored, sampled=True)}{figures} A high correlation does not mean that the predictions "
        "have the right size; closeness to the dashed line does.",
        summary=f"Predictions against labels of {data['total']} utterances.{figures}",
        data=data,
        draw=draw_agreement,
        warning=_few(view, scored),
    )


def _confusion(view: RunView, scored: Predictions) -> Plot | None:
    data = confusion_data(scored, view.protocol, view.label_range)
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
        draw=draw_confusion,
        warning=_few(view, scored),
    )


def _errors(view: RunView, scored: Predictions) -> Plot:
    if view.task == "classification":
        data = calibration_data(scored, view.label_range)
        return Plot(
            name="calibration",
            title="Errors by confidence",
            caption=f"{_where(view, scored)} Share of errors by confidence, the probability of the predicted class. "
            "Above the dashed line the model is overconfident. Points with few utterances are mostly chance.",
            summary=f"{data['wrong']} of {data['total']} predictions are wrong.",
            data=data,
            draw=draw_calibration,
            warning=_few(view, scored),
        )
    data = group_errors_data(scored, view.label_range, _groups(view))
    full = [group for group in data["groups"] if group["utterances"]]
    worst = max(full, key=lambda group: group["mae"])
    few = [f"{g['low']:.3g} to {g['high']:.3g}" for g in data["groups"] if g["utterances"] < _FEW]
    return Plot(
        name="errors-by-group",
        title="Error by ordinal group",
        caption=f"{_where(view, scored)} The model's settings define the ordinal groups; an utterance counts "
        "in each group that contains its label. Uncertain models usually err towards the middle at both ends, which "
        "does not prove a fault of the loss.",
        summary=f"The mean absolute error is largest, {worst['mae']:.4f}, for labels from {worst['low']:.3g} to "
        f"{worst['high']:.3g} ({worst['utterances']} utterances).",
        data=data,
        draw=draw_group_errors,
        warning=_seen(view) or (f"Fewer than {_FEW} utterances in {', '.join(few)}." if few else None),
    )


def _projection(view: RunView, scored: Predictions) -> Plot | None:
    data = projection_data(scored, view.task, view.label_range)
    if data is None:
        return None
    cases = sum(point["case"] for point in data["points"])
    crosses = f" Crosses are the {cases} with a label below {data['below']:.3g}." if data["below"] is not None else ""
    return Plot(
        name="representation",
        title="The representation before the head (t-SNE)",
        caption=f"{_where(view, scored, sampled=True)}{crosses} t-SNE keeps neighbours together; the axes, and the "
        f"sizes and distances of clusters, have no meaning (perplexity {data['perplexity']:.3g}, seed {data['seed']}).",
        summary=f"{len(data['points'])} utterances in two dimensions, coloured by label.{crosses}",
        data=data,
        draw=draw_projection,
        warning=_few(view, scored),
    )


def _pairs(view: RunView, scored: Predictions) -> Plot | None:
    data = hardest_pairs_data(scored, view.task)
    if not data["pairs"]:
        return None
    equation = 19 if view.task == "classification" else 9
    return Plot(
        name="hardest-pairs",
        title="The hardest pairs",
        caption=f"{data['pairs']} pairs of different labels among {_where(view, scored, sampled=True)} The "
        f"figure shows the {len(data['table']['rows'])} pairs whose predictions differ most in the wrong direction, "
        "at most "
        f"two per utterance. The weight is that of eq. {equation} over all pairs. The cause of a hard pair may be a "
        "wrong "
        "label as well as a wrong prediction.",
        summary=f"{data['wrong']} of {data['pairs']} pairs are in the wrong order.",
        data=data,
        draw=draw_hardest_pairs,
        warning=_few(view, scored),
    )
