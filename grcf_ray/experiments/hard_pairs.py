"""Which training pairs the advantage weights single out (appendix B.1): near labels, or modalities at odds.

A modality is scored alone by the full model, with the others masked: audio and vision as if the utterance lacked them,
the text by zeros in place of its vector where the modalities are fused. It is in conflict in a pair where its two
scores are in the opposite order of the labels, equal scores not counted; two modalities are at odds where they order
the pair differently, quadrants II and IV of Figure 7.

N utterances that have every modality which the model sees; P pairs of different labels, the higher one first.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.console import sentence
from grcf_ray.data.features import LABEL_DECIMALS
from grcf_ray.data.frames import Frames
from grcf_ray.errors import ConfigError
from grcf_ray.experiments import paper
from grcf_ray.experiments.arms import full_arm
from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.experiments.pair_statistics import (
    Fit,
    Floats,
    Ints,
    differing_pairs,
    fit_ols,
    permuted_p,
)
from grcf_ray.experiments.plotting import COLOURS, draw_lines, panels
from grcf_ray.experiments.result import ExperimentResult, Picture
from grcf_ray.losses.classification import separation_weight
from grcf_ray.losses.regression import advantage_weight
from grcf_ray.search.comparisons import few_seeds
from grcf_ray.search.winner import available_threads
from grcf_ray.statistics import rank_correlation, spread
from grcf_ray.tables import P_VALUE, Column, Table
from grcf_ray.train.export import SavedModel, load_model
from grcf_ray.train.stage import use_deterministic_torch

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

PAIRS = 62_500
"""Of more pairs so many are drawn: the paper's 3,125 are 5 % of them."""
TOP = 0.05
PERMUTATIONS = 199
_SEED = 0
_POINTS = 2000
"""Pairs that a scatter has points for."""
_LETTERS = {"text": "T", "vision": "V", "audio": "A"}
_CLOSENESS = {"minus distance": "-|s_i - s_j|", "inverse distance": "1 / |s_i - s_j|"}


@dataclasses.dataclass(frozen=True)
class WeighedPairs:
    """Pairs with what a model makes of them."""

    label_N: Floats
    score_N: Floats
    """Of the whole model."""
    alone: Mapping[str, Floats]
    """[N] scores by modality; empty where the model sees the text alone, whose conflict would be its own error."""
    pairs_P2: Ints
    task: Task

    @cached_property
    def weight_P(self) -> Floats:
        """The loss's own weight, eq. 9, or eq. 19 of two classes, over all these pairs together."""
        gap_P = torch.from_numpy(_gaps(self.score_N, self.pairs_P2))
        weigh = separation_weight if self.task == "classification" else advantage_weight
        weight_P: Floats = weigh(gap_P).numpy()
        return weight_P

    @cached_property
    def conflict(self) -> Mapping[str, NDArray[np.bool_]]:
        """[P] by modality, whether it orders the pair against its labels."""
        return {name: _gaps(score_N, self.pairs_P2) < 0 for name, score_N in self.alone.items()}

    @cached_property
    def count_P(self) -> Ints:
        """How many modalities are in conflict."""
        count_P = np.zeros(len(self.pairs_P2), np.int64)
        for conflict_P in self.conflict.values():
            count_P += conflict_P
        return count_P

    def at_odds(self, one: str, other: str) -> NDArray[np.bool_]:
        """[P] whether two modalities order the pair differently."""
        product_P: NDArray[np.bool_] = (
            _gaps(self.alone[one], self.pairs_P2) * _gaps(self.alone[other], self.pairs_P2) < 0
        )
        return product_P

    def top(self) -> Ints:
        """The pairs of the highest weight, a twentieth of all, the heaviest first."""
        number = max(1, round(TOP * len(self.pairs_P2)))
        return np.argsort(-self.weight_P, kind="stable")[:number]

    def predictors(self, pairs_P2: Ints, closeness: str) -> tuple[dict[str, Floats], NDArray[np.bool_]]:
        """Nearness of the labels and conflict count of pairs in either order, and which have an order: [P] each.

        Figures are of those that have one. A predictor that does not vary among them is left out.
        """
        distance_P = _gaps(self.label_N, pairs_P2)
        ordered_P = distance_P != 0
        pairs_P2, distance_P = pairs_P2[ordered_P], distance_P[ordered_P]
        far_P = np.round(np.abs(distance_P), LABEL_DECIMALS)
        found = {"proximity": -far_P if closeness == "minus distance" else 1 / far_P}
        if self.alone:
            against = [_gaps(score_N, pairs_P2) * distance_P < 0 for score_N in self.alone.values()]
            found["conflict"] = np.sum(against, axis=0).astype(np.float64)
        return {name: values for name, values in found.items() if len(values) and np.ptp(values)}, ordered_P


def hard_pairs(context: ExperimentContext) -> ExperimentResult:
    """Tables 6 to 8: what goes with the weight of a training pair, over the seeds of the full model."""
    if not context.config.model.sees_text:
        raise ConfigError("hard-pairs compares the text with the other modalities; this run's model has no text")
    models = context.models([full_arm(context)], "hard-pairs")["full"]
    task = context.store.info.task
    use_deterministic_torch(available_threads())
    train = context.store.read("train")
    found: list[WeighedPairs] = []
    total = utterances = 0
    for model in models:
        with model.place.reading_folder() as folder:
            saved = load_model(folder)
        rows = _complete(saved, train)
        utterances = len(rows)
        label_N = np.round(rows["label"].to_numpy().astype(np.float64), LABEL_DECIMALS)
        pairs_P2, total = differing_pairs(label_N, PAIRS, seed=_SEED)
        if not total:
            raise ConfigError(
                "hard-pairs compares training utterances of different labels that have all of "
                f"{', '.join(['text', *saved.model.modality_dims])}; {utterances} of {len(train)} utterances do, and "
                "no pair is left"
            )
        alone = unimodal_scores(saved, rows)
        found.append(WeighedPairs(label_N, saved.score(rows), alone, pairs_P2, task))
    seen = list(found[0].alone)
    subsets = _subsets(found)
    tables = [_weight_table(found, subsets)]
    pictures = []
    if task == "regression":
        tables += [_ols_table(context, found, subsets, closeness) for closeness in _CLOSENESS]
        tables.append(_share_table(context, found, subsets))
        pictures.append(_near_picture(found))
    tables += [_count_table(context, found, subsets), _odds_table(context, found), _rank_table(context, found, subsets)]
    tables.append(_share_of_the_whole(found))
    if seen:
        pictures.append(_conflict_picture(found) if task == "regression" else _quadrant_picture(found))
    pairs = len(found[0].pairs_P2)
    return ExperimentResult(
        name="hard-pairs",
        title=f"Pairs that the advantage weights single out on {context.store.info.name}",
        paper="Tables 6 to 8, Figures 6 and 7",
        tables=[table for table in tables if table.rows],
        pictures=pictures,
        notes=(
            f"Of {len(train)} training utterances {utterances} have every modality that the model sees; {total} pairs "
            f"of them have different labels"
            + (f", of which {pairs} are drawn, each as likely as any other (seed {_SEED})." if total > pairs else "."),
            "The weight is the loss's own, over all these pairs together: "
            + ("eq. 19." if task == "classification" else "eq. 9."),
            *_missing(context, seen),
            *(
                (
                    "A modality is scored alone by the full model with the others masked: audio and vision as if the "
                    "utterance lacked them, the text by zeros in place of its vector where modalities are fused.",
                    "A modality is in conflict where its two scores are in the opposite order of the labels (equal "
                    "scores are not); two are at odds where they order the pair differently. The paper defines "
                    "neither.",
                    "Where one modality decides the whole model's scores, its conflicts are the model's own errors, "
                    "and those are what the weight measures: the last table says how near each alone is to the whole.",
                )
                if seen
                else ()
            ),
            *(sentence(note) for note in (few_seeds(len(models)),) if note),
        ),
    )


def unimodal_scores(saved: SavedModel, table: pa.Table) -> dict[str, Floats]:
    """[N] scores of each modality alone; none where the model sees the text alone."""
    import pyarrow as pa

    names = ["text", *saved.model.modality_dims]
    if len(names) == 1:
        return {}
    found = {}
    for kept in names:
        alone = table
        for name in saved.model.modality_dims:
            if name != kept:
                place = table.column_names.index(name)
                alone = alone.set_column(place, name, pa.nulls(len(table), table[name].type))
        if kept == "text":
            found[kept] = saved.score(alone)
            continue
        assert saved.model.text_encoder is not None
        hook = saved.model.text_encoder.register_forward_hook(lambda _, __, vector_BD: torch.zeros_like(vector_BD))
        try:
            found[kept] = saved.score(alone)
        finally:
            hook.remove()
    return found


def _complete(saved: SavedModel, table: pa.Table) -> pa.Table:
    """The utterances that have every modality which the model sees."""
    import pyarrow as pa

    has_N = np.ones(len(table), bool)
    for name in saved.model.modality_dims:
        has_N &= Frames.of(table[name]).lengths_N > 0
    return table.filter(pa.array(has_N))


def _gaps(value_N: Floats, pairs_P2: Ints) -> Floats:
    """[P] the first of each pair less the second."""
    gap_P: Floats = value_N[pairs_P2[:, 0]] - value_N[pairs_P2[:, 1]]
    return gap_P


def _subsets(found: Sequence[WeighedPairs]) -> dict[str, list[Ints]]:
    """By name, the pairs of each seed."""
    return {"top 5 %": [pairs.top() for pairs in found], "all": [np.arange(len(pairs.pairs_P2)) for pairs in found]}


def _over(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and deviation over the seeds that have the figure."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    figure = spread(known) if known else None
    return {"mean": figure.mean if figure else None, "deviation": figure.deviation if figure else None}


def _missing(context: ExperimentContext, seen: Sequence[str]) -> list[str]:
    lacking = [name for name in ("vision", "audio") if name not in seen]
    if not lacking:
        return []
    there = {"audio": context.store.info.audio_dim, "vision": context.store.info.vision_dim}
    needs = [f"{name} ({'the winner does not read it' if there[name] else 'the data have none'})" for name in lacking]
    what = "conflicts of any kind" if not seen else f"conflicts of {' and '.join(lacking)}"
    return [f"Cells with -: {what} need features of {' and '.join(needs)}."]


def _weight_table(found: Sequence[WeighedPairs], subsets: Mapping[str, Sequence[Ints]]) -> Table:
    figures: dict[str, Callable[[Floats], float]] = {
        "pairs": len,
        "mean": np.mean,
        "median": np.median,
        "95 % are below": partial(np.quantile, q=0.95),
        "highest": np.max,
        "share above 0": lambda weight_P: float((weight_P > 0).mean()),
    }
    rows = []
    for title, figure in figures.items():
        row: dict[str, Any] = {"title": title}
        for subset, of in subsets.items():
            values = [float(figure(pairs.weight_P[index])) for pairs, index in zip(found, of, strict=True)]
            row |= {f"{subset} {key}": value for key, value in _over(values).items()}
        rows.append(row)
    return Table("weights", "Weights of the pairs", _columns("figure", subsets), rows)


def _columns(title: str, subsets: Mapping[str, Any], *more: Column) -> tuple[Column, ...]:
    """The row's title, further columns, and mean and deviation of each subset."""
    each = (
        Column(f"{name} {key}", heading, "{:.4g}")
        for name in subsets
        for key, heading in (("mean", name), ("deviation", "deviation"))
    )
    return Column("title", title), *more, *each


def _ols_table(
    context: ExperimentContext, found: Sequence[WeighedPairs], subsets: Mapping[str, Sequence[Ints]], closeness: str
) -> Table:
    """The weight on nearness and conflicts: coefficients over seeds, and both kinds of p."""
    printed = context.printed(paper.CONFLICTS)
    rows: list[dict[str, Any]] = []
    for subset, of in subsets.items():
        fits = [_fitted(pairs, index, closeness) for pairs, index in zip(found, of, strict=True)]
        theirs = printed if subset.startswith("top") else {}
        for name, title in (("const", "const"), ("proximity", "score proximity"), ("conflict", "conflict count")):
            known = [(fit, p) for fit, p in fits if fit is not None and name in fit.coefficient]
            row: dict[str, Any] = {"subset": subset, "title": f"{subset}: {title}", "seeds": len(known)}
            row |= {f"paper {key}": theirs.get(key, {}).get(name) for key in ("coefficient", "error", "t", "p")}
            row["paper n"] = theirs.get("n")
            if known:
                coefficient = _over([fit.coefficient[name] for fit, _ in known])
                row |= {"coefficient": coefficient["mean"], "deviation": coefficient["deviation"]}
                row |= {
                    "error": statistics.fmean(fit.error[name] for fit, _ in known),
                    "t": statistics.fmean(fit.t[name] for fit, _ in known),
                    "p": statistics.median(fit.p[name] for fit, _ in known),
                    "n": known[0][0].n,
                }
                if permuted := [value for _, p in known if (value := p.get(name)) is not None]:
                    row["permuted"] = statistics.median(permuted)
                row["by seed"] = [
                    {"coefficient": fit.coefficient[name], "error": fit.error[name], "t": fit.t[name], "p": fit.p[name]}
                    | {"permuted": p.get(name)}
                    for fit, p in known
                ]
            rows.append(row)
        explained = [fit.r2 if fit else None for fit, _ in fits]
        rows.append(
            {
                "subset": subset,
                "title": f"{subset}: R²",
                "paper coefficient": theirs.get("r2"),
                "coefficient": _over(explained)["mean"],
                "deviation": _over(explained)["deviation"],
                "seeds": sum(fit is not None for fit, _ in fits),
            }
        )
    return Table(
        f"ols {closeness}",
        f"Ordinary least squares of the weight; score proximity is {_CLOSENESS[closeness]}",
        (
            Column("title", "variable"),
            Column("paper coefficient", "paper", "{:.4g}"),
            Column("paper error", "paper std. err.", "{:.4g}"),
            Column("paper t", "paper t", "{:.3f}"),
            Column("paper p", "paper p", P_VALUE),
            Column("paper n", "paper pairs"),
            Column("coefficient", "coefficient", "{:.4g}"),
            Column("deviation", "deviation", "{:.4g}"),
            Column("error", "std. err.", "{:.4g}"),
            Column("t", "t", "{:.3f}"),
            Column("p", "p", P_VALUE),
            Column("permuted", "p permuted", P_VALUE),
            Column("n", "pairs"),
            Column("seeds", "seeds"),
        ),
        rows,
        (
            "coefficient, error and t: means over seeds, with the deviation of the coefficient; p: medians",
            "plain p are as if pairs were independent, which those that share an utterance are not; permuted, the same "
            f"t stands against {PERMUTATIONS} permutations of the utterances, labels and unimodal scores together, as "
            "if the weights were unrelated to both predictors; a permuted pair of equal labels is left out of its draw",
            *(("the paper does not define score proximity; a coefficient of 1.7e-8 is that of values about 1e8",))
            * ("coefficient" in printed),
        ),
    )


def _fitted(pairs: WeighedPairs, index: Ints, closeness: str) -> tuple[Fit | None, dict[str, float | None]]:
    """The fit of these pairs, None where there are too few, and its predictors' p by permutation."""
    weight_P, pairs_P2 = pairs.weight_P[index], pairs.pairs_P2[index]
    predictors, _ = pairs.predictors(pairs_P2, closeness)
    try:
        fit = fit_ols(weight_P, predictors)
    except ValueError:
        return None, {}

    def t_of(weight_P: Floats, pairs_P2: Ints) -> Floats:
        drawn, ordered_P = pairs.predictors(pairs_P2, closeness)
        try:
            t = fit_ols(weight_P[ordered_P], drawn).t
        except ValueError:
            t = {}
        return np.array([t.get(name, math.nan) for name in predictors])

    permuted = permuted_p(
        weight_P, pairs_P2, len(pairs.label_N), t_of, seed=_SEED, permutations=PERMUTATIONS if predictors else 0
    )
    return fit, dict(zip(predictors, permuted, strict=True))


def _share_table(
    context: ExperimentContext, found: Sequence[WeighedPairs], subsets: Mapping[str, Sequence[Ints]]
) -> Table:
    """Which modalities are in conflict, as shares of the pairs that add up to 1."""
    printed = context.printed(paper.CONFLICTS).get("shares", {})
    shares = {
        subset: [conflict_shares(pairs, index) for pairs, index in zip(found, of, strict=True)]
        for subset, of in subsets.items()
    }
    rows = []
    for names in _kinds(list(found[0].alone)):
        row: dict[str, Any] = {"title": _kind_title(names), "paper": printed.get("+".join(names) or "none")}
        for subset, of_seeds in shares.items():
            row |= {f"{subset} {key}": value for key, value in _over([one[names] for one in of_seeds]).items()}
        rows.append(row)
    columns = _columns("in conflict with the labels", subsets, Column("paper", "paper, top 5 %", "{:.4f}"))
    return Table("shares", "Sources of conflict, as shares of the pairs", columns, rows)


def _kinds(seen: Sequence[str]) -> list[tuple[str, ...]]:
    """All sets of modalities, the smallest first; none where conflicts cannot be had."""
    return [names for size in range(len(seen) + 1) for names in itertools.combinations(seen, size)] if seen else []


def _kind_title(names: Sequence[str]) -> str:
    return " and ".join(names) or "no conflict"


def conflict_shares(pairs: WeighedPairs, index_P: Ints) -> dict[tuple[str, ...], float]:
    """Of these pairs, the share in which a set of modalities is in conflict and no other; all of them add up to 1."""
    conflict = {name: conflict_P[index_P] for name, conflict_P in pairs.conflict.items()}
    return {
        names: float(np.all([conflict_P == (name in names) for name, conflict_P in conflict.items()], axis=0).mean())
        for names in _kinds(list(conflict))
    }


def _count_table(
    context: ExperimentContext, found: Sequence[WeighedPairs], subsets: Mapping[str, Sequence[Ints]]
) -> Table:
    """Table 7: mean weight by conflict count, with how many pairs have it."""
    printed = context.printed(paper.CONFLICTS)
    rows = []
    for count in range(len(_LETTERS) + 1):
        row: dict[str, Any] = {
            "title": count,
            "paper": printed.get("weight", {}).get(count),
            "paper pairs": printed.get("count", {}).get(count),
        }
        for subset, of in subsets.items() if found[0].alone else ():
            weights = [pairs.weight_P[i][pairs.count_P[i] == count] for pairs, i in zip(found, of, strict=True)]
            row |= {f"{subset} {key}": value for key, value in _over([_mean(w) for w in weights]).items()}
            if count <= len(found[0].alone):
                row[f"{subset} pairs"] = statistics.fmean(len(weight_P) for weight_P in weights)
        rows.append(row)
    more = [Column("paper", "paper", "{:.4f}"), Column("paper pairs", "pairs")] if "weight" in printed else []
    columns = [Column("title", "modalities in conflict"), *more]
    for subset in subsets:
        columns += [
            Column(f"{subset} mean", f"weight, {subset}", "{:.4f}"),
            Column(f"{subset} deviation", "deviation", "{:.4f}"),
            Column(f"{subset} pairs", "pairs", "{:.0f}"),
        ]
    return Table(
        "counts", "Mean weight by the number of modalities in conflict", columns, rows, ("pairs: mean over seeds",)
    )


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _odds_table(context: ExperimentContext, found: Sequence[WeighedPairs]) -> Table:
    """Table 8: mean weight by whether text and another modality are at odds."""
    printed = context.printed(paper.CONFLICTS).get("modalities", {})
    rows = []
    for name in ("vision", "audio"):
        for odds in (False, True):
            row: dict[str, Any] = {
                "title": f"T-{_LETTERS[name]}, {'conflict' if odds else 'no conflict'}",
                "paper": printed.get((name, odds)),
            }
            if name in found[0].alone:
                weights = [pairs.weight_P[pairs.at_odds("text", name) == odds] for pairs in found]
                row |= _over([_mean(weight_P) for weight_P in weights])
                row["pairs"] = statistics.fmean(len(weight_P) for weight_P in weights)
            rows.append(row)
    more = [Column("paper", "paper", "{:.4f}")] if printed else []
    columns = (
        *(Column("title", "conflict"), *more, Column("mean", "weight", "{:.4f}")),
        *(Column("deviation", "deviation", "{:.4f}"), Column("pairs", "pairs", "{:.0f}")),
    )
    return Table("modalities", "Mean weight by whether text and another modality are at odds", columns, rows)


def _rank_table(
    context: ExperimentContext, found: Sequence[WeighedPairs], subsets: Mapping[str, Sequence[Ints]]
) -> Table:
    printed = context.printed(paper.CONFLICTS).get("spearman")
    theirs = "all" if context.store.info.task == "classification" else "top 5 %"
    rows = []
    for subset, of in subsets.items():
        values, permuted = [], []
        for pairs, index in zip(found, of, strict=True) if found[0].alone else ():
            value, p = _ranked(pairs, index)
            values.append(value)
            permuted += [p] if p is not None else []
        rows.append(
            {
                "title": subset,
                "paper": printed if subset == theirs else None,
                **_over(values),
                "permuted": statistics.median(permuted) if permuted else None,
                "pairs": len(of[0]),
            }
        )
    return Table(
        "spearman",
        "Spearman's correlation of weight and conflict count",
        (
            Column("title", "pairs of"),
            Column("paper", "paper", "{:.4f}"),
            Column("mean", "correlation", "{:.4f}"),
            Column("deviation", "deviation", "{:.4f}"),
            Column("permuted", "p permuted", P_VALUE),
            Column("pairs", "pairs"),
        ),
        rows,
    )


def _share_of_the_whole(found: Sequence[WeighedPairs]) -> Table:
    """How far each modality alone orders the pairs as the whole model does."""
    rows = []
    for name in found[0].alone:
        gaps = [(_gaps(pairs.alone[name], pairs.pairs_P2), _gaps(pairs.score_N, pairs.pairs_P2)) for pairs in found]
        over = _over([rank_correlation(alone_P, whole_P) for alone_P, whole_P in gaps])
        same = _over([float((np.sign(alone_P) == np.sign(whole_P)).mean()) for alone_P, whole_P in gaps])
        rows.append({"title": name, **over, "same": same["mean"], "same deviation": same["deviation"]})
    return Table(
        "alone",
        "How near a modality alone is to the whole model, all pairs",
        (
            Column("title", "modality"),
            Column("mean", "Spearman of the differences", "{:.4f}"),
            Column("deviation", "deviation", "{:.4f}"),
            Column("same", "pairs in the same order", "{:.1%}"),
            Column("same deviation", "deviation", "{:.1%}"),
        ),
        rows,
    )


def _ranked(pairs: WeighedPairs, index: Ints) -> tuple[float, float | None]:
    """Spearman's correlation of weight and conflict count, and its p by permutation."""

    def correlation(weight_P: Floats, pairs_P2: Ints) -> Floats:
        drawn, ordered_P = pairs.predictors(pairs_P2, "minus distance")
        if "conflict" not in drawn:
            return np.array([math.nan])
        return np.array([rank_correlation(weight_P[ordered_P], drawn["conflict"])])

    weight_P, pairs_P2 = pairs.weight_P[index], pairs.pairs_P2[index]
    (p,) = permuted_p(weight_P, pairs_P2, len(pairs.label_N), correlation, seed=_SEED, permutations=PERMUTATIONS)
    return float(correlation(weight_P, pairs_P2)[0]), p


def _near_picture(found: Sequence[WeighedPairs]) -> Picture:
    """Mean weight by the distance of the labels, in tenths of the pairs."""
    first = found[0]
    distance_P = _gaps(first.label_N, first.pairs_P2)
    edges = np.unique(np.quantile(distance_P, np.linspace(0, 1, 11)))
    bin_P = np.clip(np.searchsorted(edges, distance_P, side="right") - 1, 0, max(0, len(edges) - 2))
    bins = [bin_P == k for k in range(max(1, len(edges) - 1)) if (bin_P == k).any()]
    over = [_over([float(pairs.weight_P[within_P].mean()) for pairs in found]) for within_P in bins]
    line = {
        "name": "mean weight",
        "x": [float(distance_P[within_P].mean()) for within_P in bins],
        "y": [figure["mean"] for figure in over],
        "error": [figure["deviation"] or 0.0 for figure in over],
    }
    panel = {
        "title": "Weight by distance of the labels",
        "x_title": "|s_i - s_j|",
        "y_title": "mean weight",
        "lines": [line],
    }
    return Picture(
        name="proximity",
        caption="Mean weight of all pairs in tenths by the distance of their labels, over seeds, bars of one "
        "deviation.",
        data={"panels": [panel]},
        draw=draw_lines,
    )


def _conflict_picture(found: Sequence[WeighedPairs]) -> Picture:
    """Figure 6: of the top pairs, the spread of weights by conflict count, their mean, and what is in conflict."""
    tops = [pairs.top() for pairs in found]
    seen = list(found[0].alone)
    boxes, trend = [], []
    for count in range(len(seen) + 1):
        weights = [p.weight_P[i][p.count_P[i] == count] for p, i in zip(found, tops, strict=True)]
        if len(weights[0]):
            low, q1, med, q3, high = np.quantile(weights[0], [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
            box = {"whislo": low, "q1": q1, "med": med, "q3": q3, "whishi": high, "label": f"{count}"}
            boxes.append({**box, "place": count, "pairs": len(weights[0])})
        over = _over([_mean(weight_P) for weight_P in weights])
        if over["mean"] is not None:
            trend.append({"x": count, "y": over["mean"], "error": over["deviation"] or 0.0})
    of_seeds = [conflict_shares(pairs, index) for pairs, index in zip(found, tops, strict=True)]
    shares = []
    for names in _kinds(seen):
        over = _over([one[names] for one in of_seeds])
        shares.append({"name": _kind_title(names), "share": over["mean"], "error": over["deviation"] or 0.0})
    return Picture(
        name="conflicts",
        caption="Of the top 5 % by weight: (a) weights by the number of modalities in conflict, one seed, whiskers at "
        "5 and 95 %; (b) their mean over seeds; (c) what is in conflict, shares over seeds. Bars of one deviation.",
        data={"boxes": boxes, "trend": trend, "shares": shares},
        draw=draw_conflicts,
    )


def draw_conflicts(data: Mapping[str, Any]) -> Figure:
    """Boxes, trend and bars, as Figure 6 has them."""
    figure, (box, trend, bars) = panels(3, columns=3, width=4.2, height=3.6)
    keys = ("whislo", "q1", "med", "q3", "whishi")
    box.bxp(
        [
            {**{key: entry[key] for key in keys}, "label": f"{entry['label']}\n{entry['pairs']} pairs"}
            for entry in data["boxes"]
        ],
        positions=[entry["place"] for entry in data["boxes"]],
        showfliers=False,
        widths=0.6,
    )
    box.set(title="(a) Weight", xlabel="modalities in conflict", ylabel="weight")
    points = data["trend"]
    trend.errorbar(
        [p["x"] for p in points],
        [p["y"] for p in points],
        yerr=[p["error"] for p in points],
        color=COLOURS[0],
        marker="o",
        ms=4,
        capsize=3,
    )
    trend.set(title="(b) Mean weight", xlabel="modalities in conflict", ylabel="mean weight")
    trend.set_xticks([p["x"] for p in points])
    places = range(len(data["shares"]))
    bars.barh(
        places,
        [entry["share"] for entry in data["shares"]],
        xerr=[entry["error"] for entry in data["shares"]],
        color=COLOURS[1],
        capsize=2,
    )
    bars.set_yticks(places, [entry["name"] for entry in data["shares"]], fontsize="small")
    bars.invert_yaxis()
    bars.set(title="(c) In conflict", xlabel="share of the pairs", xlim=(0, None))
    for axis in (box, trend, bars):
        axis.grid(alpha=0.3)
    return figure


def _quadrant_picture(found: Sequence[WeighedPairs]) -> Picture:
    """Figure 7: how text and another modality order each pair, by weight; the first seed."""
    first = found[0]
    drawn_P = np.arange(len(first.pairs_P2))
    if len(drawn_P) > _POINTS:
        drawn_P = np.sort(np.random.default_rng(_SEED).choice(len(drawn_P), _POINTS, replace=False))
    pairs_P2 = first.pairs_P2[drawn_P]
    shown = [
        {
            "title": f"T-{_LETTERS[name]}",
            "other": name,
            "x": _gaps(first.alone["text"], pairs_P2).tolist(),
            "y": _gaps(first.alone[name], pairs_P2).tolist(),
            "weight": first.weight_P[drawn_P].tolist(),
        }
        for name in ("vision", "audio")
        if name in first.alone
    ]
    return Picture(
        name="quadrants",
        caption=f"{len(drawn_P)} of {len(first.pairs_P2)} pairs, one seed: by how much text and another modality, each "
        "alone, put the positive one above the negative one. In quadrants II and IV the two are at odds. Colour and "
        "size are the weight.",
        data={"panels": shown},
        draw=draw_quadrants,
    )


def draw_quadrants(data: Mapping[str, Any]) -> Figure:
    """A point for each pair, darker and larger the more it weighs, the heaviest in front."""
    figure, axes = panels(len(data["panels"]), width=4.6, height=4.0)
    for axis, panel in zip(axes, data["panels"], strict=True):
        order = np.argsort(panel["weight"])
        weight_P = np.array(panel["weight"])[order]
        points = axis.scatter(
            np.array(panel["x"])[order],
            np.array(panel["y"])[order],
            c=weight_P,
            s=6 + 60 * weight_P / max(weight_P.max(), 1e-12),
            cmap="cividis_r",
            alpha=0.7,
        )
        axis.axhline(0, color="#808080", lw=1)
        axis.axvline(0, color="#808080", lw=1)
        axis.set(title=panel["title"], xlabel="text: difference of the logits", ylabel=panel["other"])
        figure.colorbar(points, ax=axis, label="weight")
    return figure
