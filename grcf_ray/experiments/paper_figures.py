"""The paper's figures of a search and of its models: importances, loss curves, truth against prediction, t-SNE.

All but t-SNE are drawn from the search's record. N utterances, C case-study samples, D the width of z_final.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grcf_ray.data.schema import LABEL_DECIMALS
from grcf_ray.errors import ConfigError
from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.experiments.grids import ablation_arms
from grcf_ray.experiments.plotting import COLOURS, panels
from grcf_ray.experiments.result import ExperimentResult, Picture, few_seeds_notes
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.figures.importance import METHODS, importance_data, importance_warning
from grcf_ray.report.figures.palette import GREY, ORANGE, SCALE
from grcf_ray.report.figures.predictions import agreement_data, class_scores_data, projection_data
from grcf_ray.report.figures.search import curves_data
from grcf_ray.search.predictions import Predictions
from grcf_ray.statistics import finite_spread, paired_p
from grcf_ray.tables import P_VALUE, Column, Table
from grcf_ray.train.curve import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = ("full", "no-advantage", "static-margin", "no-stage1", "no-stage2")
"""The arms of Figure 5, (a) to (e)."""
_BLOCK = 512
"""Case-study samples in one block of distances."""


def tsne(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Figure 5: z_final of test in the full model and its ablations, and the case-study clusters."""
    arms = [arm for arm in ablation_arms(context) if arm.name in _PANELS]
    models = context.models(arms, "tsne")
    task, label_range = context.store.info.task, context.store.info.label_range
    remarks = context.printed("clusters")
    shown, rows, notes = [], [], []
    by_seed: dict[str, dict[int, float]] = {}
    for letter, arm in zip("abcde", arms, strict=False):
        if not models[arm.name]:
            notes.append(f"{arm.title}: no training finished.")
            continue
        scored = {model.index: model.scored("test") for model in models[arm.name]}
        first, *_ = scored
        projection = projection_data(scored[first], task, label_range)
        if projection is None:
            notes.append(f"{arm.title}: not drawn; too few utterances, or the same representation for all.")
        else:
            shown.append(projection | {"title": f"({letter}) {arm.title}", "index": first})
        figures = {index: cluster_figures(test.state_ND, _cases(test, context)) for index, test in scored.items()}
        by_seed[arm.name] = {index: figure["silhouette"] for index, figure in figures.items() if figure}
        row: dict[str, Any] = {"name": arm.name, "title": arm.title, "paper": remarks.get(arm.name)}
        for name in ("silhouette", "ratio"):
            if over := finite_spread(figure[name] for figure in figures.values() if figure):
                row |= {name: over.mean, f"{name} deviation": over.deviation, f"{name} values": list(over.values)}
        if arm.name != "full":
            row |= _paired(by_seed["full"], by_seed[arm.name])
        rows.append(row | {"seeds": len(figures)})
    if not shown:
        raise ConfigError("t-SNE needs at least five test utterances with different representations")
    case_N = _cases(models["full"][0].scored("test"), context)
    if cluster_figures(np.zeros((len(case_N), 1), np.float32), case_N) is None:
        notes.append(
            f"Case-study samples among the {len(case_N)} test utterances: {case_N.sum()}. A cluster takes two, and one "
            "utterance outside it, so its figures are not available."
        )
    if task == "classification":
        notes.append("Two classes have no case-study samples; the figures are of the positive class.")
    below = shown[0]["below"]
    samples = "the positive class" if below is None else f"the samples with a label below {below:.3g}"
    table = Table(
        "clusters",
        f"Compactness of {samples} in z_final, test",
        (
            Column("title", "model"),
            Column("silhouette", "silhouette", "{:.3f}"),
            Column("silhouette deviation", "deviation", "{:.3f}"),
            Column("difference", "less full", "{:+.3f}"),
            Column("p", "p", P_VALUE),
            Column("ratio", "within / between", "{:.3f}"),
            Column("ratio deviation", "deviation", "{:.3f}"),
            Column("seeds", "seeds"),
            *([Column("paper", "the paper sees")] if remarks else []),
        ),
        rows,
        [
            "both figures use Euclidean distances in z_final, not in the projection",
            f"silhouette: mean over {samples}, against all others; 1 is compact and separate, 0 is mixed",
            "within / between: mean distance among them over mean distance to the others; below 1 is a cluster",
            "less full: silhouette less that of the full model under the same seeds; p: paired t test, uncorrected",
            *few_seeds_notes(min(filter(None, map(len, models.values())))),
        ],
    )
    crosses = "Red crosses" if below is not None else "Diamonds"
    return _figure_result(
        context,
        "tsne",
        "Representations of the ablations",
        [table],
        caption=f"z_final of the test utterances by t-SNE, one seed of each model. {crosses} are {samples}. t-SNE "
        "keeps neighbours together; distances between clusters, their sizes and the axes mean nothing.",
        data={"panels": shown},
        draw=draw_projections,
        notes=notes,
    )


def _figure_result(
    context: ExperimentContext,
    name: str,
    title: str,
    tables: Sequence[Table],
    *,
    caption: str,
    data: Mapping[str, Any],
    draw: Callable[[Mapping[str, Any]], Figure],
    notes: Sequence[str],
) -> ExperimentResult:
    """Return the result of an experiment that has one figure. name: the figure's. title: without the data set."""
    return ExperimentResult(
        title=f"{title} on {context.store.info.name}",
        tables=tables,
        pictures=[Picture(name=name, caption=caption, data=data, draw=draw)],
        notes=notes,
    )


def _paired(reference: Mapping[int, float], arm: Mapping[int, float]) -> dict[str, float | None]:
    """Return the mean difference over the shared seeds, and the p of a paired t test; {} without shared seeds."""
    gain_S = np.array([arm[index] - reference[index] for index in sorted(arm.keys() & reference.keys())])
    return {"difference": float(gain_S.mean()), "p": paired_p(gain_S)} if len(gain_S) else {}


def cluster_figures(state_ND: NDArray[np.float32], case_N: NDArray[np.bool_]) -> dict[str, float] | None:
    """Return the mean `silhouette` of the case-study samples against all others, and the `ratio` of mean distances.

    The ratio is the mean distance between two samples over the mean distance between a sample and another utterance.
    None with fewer than two samples, or without another utterance.
    """
    from scipy.spatial.distance import cdist

    count = int(case_N.sum())
    if count < 2 or count == len(case_N):
        return None
    within, between = [], []
    # Blocks bound the memory: all distances at once grow with the square of the split.
    for block_CD in np.array_split(state_ND[case_N], -(-count // _BLOCK)):
        distance_CN = cdist(block_CD, state_ND)
        within.append(distance_CN[:, case_N].sum(axis=1) / (count - 1))
        between.append(distance_CN[:, ~case_N].mean(axis=1))
    within_C, between_C = np.concatenate(within), np.concatenate(between)
    wider_C = np.maximum(within_C, between_C)
    # Points in one place have a silhouette of 0.
    silhouette_C = np.divide(between_C - within_C, wider_C, out=np.zeros(count), where=wider_C > 0)
    apart = float(between_C.mean())
    return {"silhouette": float(silhouette_C.mean()), "ratio": float(within_C.mean()) / apart if apart else 1.0}


def _cases(scored: Predictions, context: ExperimentContext) -> NDArray[np.bool_]:
    """Return [N] whether an utterance is a case-study sample: a label below -2 of 3, or the positive class."""
    info = context.store.info
    if info.task == "classification":
        return scored.label_N > info.center
    return scored.label_N < round(info.center - 2 * info.half_range / 3, LABEL_DECIMALS)


def draw_projections(data: Mapping[str, Any]) -> Figure:
    """Draw a panel for each model: points in the colour of their label, the case-study samples as crosses."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("labels", [(place, colour) for place, colour in SCALE])
    figure, axes = panels(len(data["panels"]), columns=3, width=3.6)
    for axis, panel in zip(axes, data["panels"], strict=True):
        low, high = panel["range"]
        two = panel["task"] == "classification"
        marked: list[Mapping[str, Any]] = []
        others: list[Mapping[str, Any]] = []
        for point in panel["points"]:
            (marked if (point["label"] > (low + high) / 2 if two else point["case"]) else others).append(point)
        points = axis.scatter(
            *_places(others), c=[p["label"] for p in others], vmin=low, vmax=high, cmap=colours, s=12, alpha=0.8
        )
        if two:
            axis.scatter(*_places(marked), marker="D", s=14, facecolors="none", edgecolors=COLOURS[0], label="positive")
        elif marked:
            axis.scatter(*_places(marked), marker="x", s=28, c="#d00000", label=f"label below {panel['below']:.3g}")
        axis.set(title=f"{panel['title']}, seed {panel['index']}", xticks=[], yticks=[])
        if marked:
            axis.legend(fontsize="x-small", loc="best")
    if data["panels"][0]["task"] == "regression":
        figure.colorbar(points, ax=axes, label="label", shrink=0.6)
    return figure


def _places(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [p["x"] for p in points], [p["y"] for p in points]


def importance(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Figure 9: the importance of the searched parameters in each stage."""
    tables, shown, notes = [], [], []
    for stage in STAGES:
        trials = context.view.trials[stage]
        if not trials:
            continue
        data = importance_data(trials, stage, context.view.space)
        if not data["methods"]:
            notes.append(
                f"Stage {stage}: {data['trials']} trials ran to the end, too few or too similar for importances."
            )
            continue
        if warning := importance_warning(data):
            notes.append(f"Stage {stage}: {warning[0].lower()}{warning[1:]}")
        metric = METRIC_TITLES[context.view.objective(stage)]
        remarks = context.printed("importance").get(f"stage{stage}", {})
        tables.append(_importance_table(data, f"stage{stage}", metric, remarks))
        shown.append({**data, "title": f"Stage {stage}, of valid {metric}"})
    if not shown:
        remedy = "A search with --set search.pruning=false stops no trial early."
        raise ConfigError(" ".join(["no stage's search has enough finished trials for importances.", *notes, remedy]))
    return _figure_result(
        context,
        "importance",
        "Importance of the searched parameters",
        tables,
        caption="Share of each parameter by random forest, mean and deviation over forests of several seeds, from the "
        "trials that ran to the end.",
        data={"panels": shown},
        draw=draw_importances,
        notes=(
            "The paper searched all parameters of a stage; a parameter that this search held fixed has no row.",
            *notes,
        ),
    )


def _importance_table(data: Mapping[str, Any], name: str, metric: str, remarks: Mapping[str, str]) -> Table:
    """Return the importances of a stage. remarks: the paper's, by parameter."""
    rows = [
        {
            "title": parameter,
            "paper": remarks.get(parameter),
            **{name: shares["mean"][index] for name, shares in data["methods"].items()},
            "spread": data["methods"]["forest"]["spread"][index],
        }
        for index, parameter in enumerate(data["parameters"])
    ]
    notes = [f"from {data['trials']} trials that ran to the end; out-of-bag R² of the forest {data['explained']:.2f}"]
    if data["constant"]:
        notes.append(f"the same in all these trials: {', '.join(data['constant'])}")
    columns = (
        Column("title", "parameter"),
        *([Column("paper", "the paper says")] if remarks else []),
        Column("forest", METHODS["forest"], "{:.1%}"),
        Column("spread", "deviation", "{:.1%}"),
        *(Column(name, title, "{:.1%}") for name, title in METHODS.items() if name != "forest"),
    )
    title = f"Stage {name[-1]}: share in the differences of validation {metric}"
    return Table(name, title, columns, rows, notes)


def draw_importances(data: Mapping[str, Any]) -> Figure:
    """Draw bars of each stage's parameters, the most important at the top."""
    figure, axes = panels(len(data["panels"]), width=5.5)
    for axis, panel in zip(axes, data["panels"], strict=True):
        shares, places = panel["methods"]["forest"], range(len(panel["labels"]))
        axis.barh(places, shares["mean"], xerr=shares["spread"], color=COLOURS[0], ecolor=GREY, capsize=2)
        axis.set_yticks(places, panel["labels"], parse_math=False)
        axis.set(title=panel["title"], xlabel="share of the importance", xlim=(0, None))
        axis.invert_yaxis()
        axis.grid(alpha=0.3, axis="x")
    return figure


def curves(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Figure 3: the losses of the winner's stages by term."""
    remarks = context.printed("curves")
    columns = (
        Column("title", "term"),
        Column("first", "first epoch", "{:.4f}"),
        Column("last", "last", "{:.4f}"),
        Column("low", "lowest", "{:.4f}"),
        Column("high", "highest", "{:.4f}"),
        *([Column("paper", "the paper sees")] if remarks else []),
    )
    tables, shown = [], []
    for stage in STAGES:
        data = curves_data(context.view, stage)
        if data is None or not data["terms"]:
            continue
        rows = []
        for term, values in data["terms"].items():
            if known := [value for value in values if value is not None]:
                row = {"title": term, "first": known[0], "last": known[-1], "low": min(known), "high": max(known)}
                rows.append(row | {"paper": remarks.get(f"stage{stage}", {}).get(term)})
        title = f"Stage {stage}, trial {data['number']} ({data['role']}): mean training loss of an epoch"
        note = "terms are before their weights; total is weighted"
        tables.append(Table(f"stage{stage}", title, columns, rows, (note,)))
        shown.append(data)
    if not shown:
        raise ConfigError("the run's record has no losses of the winner's trials")
    return _figure_result(
        context,
        "curves",
        "Training curves",
        tables,
        caption="Mean training loss of each epoch by term, before its weight, and in total, for the trials that led to "
        "the winner; below, their validation metric.",
        data={"stages": shown},
        draw=draw_curves,
        notes=("One trial of each stage under one seed, as in the paper, so there is no deviation.",),
    )


def draw_curves(data: Mapping[str, Any]) -> Figure:
    """Draw a row for each stage: the loss terms, and the validation metric with the epoch of the kept model."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = panels(2 * len(data["stages"]))
    for place, stage in enumerate(data["stages"]):
        losses, metric = axes[2 * place : 2 * place + 2]
        for index, (term, values) in enumerate(stage["terms"].items()):
            losses.plot(stage["epoch"], values, marker="o", ms=3, color=COLOURS[index % len(COLOURS)], label=term)
        losses.set(title=f"Stage {stage['stage']}", xlabel="epoch", ylabel="training loss")
        for text in losses.legend(fontsize="small").get_texts():
            text.set_parse_math(False)
        metric.plot(stage["epoch"], stage["objective"], marker="o", ms=3, color=COLOURS[0])
        if stage["best_epoch"] is not None:
            metric.axvline(stage["best_epoch"], color=GREY, linestyle="--", label="kept epoch")
            metric.legend(fontsize="small")
        metric.set(title=f"Stage {stage['stage']}", xlabel="epoch", ylabel=f"valid {METRIC_TITLES[stage['metric']]}")
        for axis in (losses, metric):
            axis.grid(alpha=0.3)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def scatter(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Figure 10: truth against prediction of the winner on test; for two classes, the scores of each."""
    scored = context.view.scored("test")
    if scored is None or context.view.metrics is None:
        raise ConfigError("the run has no predictions of its winner on record; a search with this version writes them")
    recorded, printed = context.view.metrics["test"], context.printed_results
    label_range = context.store.info.label_range
    if context.store.info.task == "classification":
        names, data, draw = ("auroc", "acc2"), class_scores_data(scored, label_range, recorded), draw_classes
        caption = "Histogram of the test logits of each class; the threshold is 0."
        note = "The paper shows this figure for regression alone, not for two classes."
    else:
        names, data, draw = ("corr", "mae"), agreement_data(scored, label_range, recorded), draw_agreement
        points = data.pop("points")
        data |= {key: [point[key] for point in points] for key in ("label", "score")}
        caption = "Test labels and predictions; a perfect model lies on the dashed line."
        note = "A high correlation does not show that predictions have the right size; points near the line do."
    table = Table(
        "figures",
        f"The winner on {len(scored.label_N)} test utterances",
        (Column("title", "metric"), Column("paper", "paper", "{:.3f}"), Column("value", "winner", "{:.4f}")),
        [
            {"name": name, "title": METRIC_TITLES[name], "paper": printed.get(name), "value": recorded.get(name)}
            for name in names
        ],
        ("one model under one seed; `reproduce main` has the figures over seeds",),
    )
    return _figure_result(
        context,
        "scatter",
        "Truth against prediction",
        [table],
        caption=caption,
        data=data,
        draw=draw,
        notes=[note],
    )


def draw_agreement(data: Mapping[str, Any]) -> Figure:
    """Draw a point for each utterance, and the diagonal."""
    figure, (axis,) = panels(1, width=4.8, height=4.5)
    axis.scatter(data["label"], data["score"], s=14, alpha=0.5, color=COLOURS[0])
    axis.plot(data["range"], data["range"], color=GREY, linestyle="--")
    axis.set(xlabel="label", ylabel="prediction")
    _title(axis, data["recorded"])
    return figure


def draw_classes(data: Mapping[str, Any]) -> Figure:
    """Draw the histograms of both classes, and the threshold."""
    figure, (axis,) = panels(1, width=5.5, height=3.8)
    for name, colour, style in (("negative", ORANGE, ":"), ("positive", COLOURS[0], "-")):
        axis.stairs(data[name], data["edges"], label=f"{name} ({sum(data[name])})", color=colour, linestyle=style, lw=2)
    axis.axvline(0, color=GREY, linestyle="--")
    axis.set(xlabel="logit of the positive class", ylabel="utterances")
    axis.legend(fontsize="small")
    _title(axis, data["recorded"])
    return figure


def _title(axis: Axes, recorded: Mapping[str, float]) -> None:
    axis.set_title(", ".join(f"{METRIC_TITLES[name]} {value:.4f}" for name, value in recorded.items()))
    axis.grid(alpha=0.3)
