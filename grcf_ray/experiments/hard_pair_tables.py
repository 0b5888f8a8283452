"""The tables of the hard pairs: weights, Table 6 (regression), Tables 7 and 8 (conflicts), and rank correlations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grcf_ray.experiments import paper
from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.experiments.pair_statistics import SEED, Fit, Ints, fit_ols, permuted_p
from grcf_ray.experiments.weighted_pairs import ALL, TOP, WeightedPairs, conflict_sets, gaps, set_title
from grcf_ray.statistics import Floats, finite_spread, rank_correlation
from grcf_ray.tables import P_VALUE, Column, Table

PERMUTATIONS = 199
LETTERS = {"text": "T", "vision": "V", "audio": "A"}
_SUBSETS = (TOP, ALL)
_CLOSENESS = {"minus distance": "-|s_i - s_j|", "inverse distance": "1 / |s_i - s_j|"}


def tables(context: ExperimentContext, seeds: Sequence[WeightedPairs]) -> list[Table]:
    """Return the tables over the seeds of the full model. Two classes have no label distance, so no regression."""
    regression = [
        *(_ols_table(context, seeds, closeness) for closeness in _CLOSENESS),
        _share_table(context, seeds),
    ]
    return [
        _weight_table(seeds),
        *(regression if context.store.info.task == "regression" else ()),
        _count_table(context, seeds),
        _disagreement_table(context, seeds),
        _rank_table(context, seeds),
        _alone_table(seeds),
    ]


def mean_and_deviation(values: Sequence[float | None], prefix: str = "") -> dict[str, float | None]:
    """Return `mean` and `deviation` over the seeds that have the figure, with a prefix of the keys."""
    over = finite_spread(values)
    return {f"{prefix}mean": over.mean if over else None, f"{prefix}deviation": over.deviation if over else None}


def mean_or_none(values: Floats) -> float | None:
    """Return the mean; None without values."""
    return float(values.mean()) if len(values) else None


def _columns(title: str, *more: Column) -> tuple[Column, ...]:
    """Return the columns of the row's title, of `more`, and of mean and deviation of each subset."""
    subsets = (
        Column(f"{subset} {key}", heading, "{:.4g}")
        for subset in _SUBSETS
        for key, heading in (("mean", subset), ("deviation", "deviation"))
    )
    return Column("title", title), *more, *subsets


def _weight_table(seeds: Sequence[WeightedPairs]) -> Table:
    figures: dict[str, Callable[[Floats], float]] = {
        "pairs": len,
        "mean": np.mean,
        "median": np.median,
        "95 % are below": lambda weight_P: float(np.quantile(weight_P, q=0.95)),
        "highest": np.max,
        "share above 0": lambda weight_P: float((weight_P > 0).mean()),
    }
    rows = []
    for title, figure in figures.items():
        row: dict[str, Any] = {"title": title}
        for subset in _SUBSETS:
            values = [float(figure(pairs.weight_P[pairs.subsets[subset]])) for pairs in seeds]
            row |= mean_and_deviation(values, f"{subset} ")
        rows.append(row)
    return Table("weights", "Weights of the pairs", _columns("figure"), rows)


def _ols_table(context: ExperimentContext, seeds: Sequence[WeightedPairs], closeness: str) -> Table:
    """Return Table 6: the weight regressed on nearness and conflicts, coefficients over seeds, and both kinds of p."""
    printed = context.printed(paper.CONFLICTS)
    rows: list[dict[str, Any]] = []
    for subset in _SUBSETS:
        fits = [_fitted(pairs, pairs.subsets[subset], closeness) for pairs in seeds]
        paper_fit = printed if subset == TOP else {}
        for name, title in (("const", "const"), ("proximity", "score proximity"), ("conflict", "conflict count")):
            known = [(fit, p) for fit, p in fits if fit is not None and name in fit.coefficient]
            row: dict[str, Any] = {"subset": subset, "title": f"{subset}: {title}", "seeds": len(known)}
            row |= {f"paper {key}": paper_fit.get(key, {}).get(name) for key in ("coefficient", "error", "t", "p")}
            row["paper n"] = paper_fit.get("n")
            if known:
                coefficient = mean_and_deviation([fit.coefficient[name] for fit, _ in known])
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
        explained = mean_and_deviation([fit.r2 if fit else None for fit, _ in fits])
        rows.append(
            {
                "subset": subset,
                "title": f"{subset}: R²",
                "paper coefficient": paper_fit.get("r2"),
                "coefficient": explained["mean"],
                "deviation": explained["deviation"],
                "seeds": sum(fit is not None for fit, _ in fits),
            }
        )
    notes = [
        "coefficient, error and t are means over seeds, with the deviation of the coefficient; p are medians",
        "the plain p assumes that pairs are independent, and pairs that share an utterance are not; the permuted p "
        f"compares the same t with {PERMUTATIONS} permutations of the utterances, which move labels and unimodal "
        "scores together, as if the weights were unrelated to both predictors; a draw leaves out pairs of equal labels",
    ]
    if "coefficient" in printed:
        notes.append("the paper does not define score proximity; a coefficient of 1.7e-8 fits values of about 1e8")
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
        notes,
    )


def _fitted(pairs: WeightedPairs, index: Ints, closeness: str) -> tuple[Fit | None, dict[str, float | None]]:
    """Return the fit of these pairs, None for too few, and the permuted p of its predictors."""
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
        weight_P, pairs_P2, len(pairs.label_N), t_of, seed=SEED, permutations=PERMUTATIONS if predictors else 0
    )
    return fit, dict(zip(predictors, permuted, strict=True))


def _share_table(context: ExperimentContext, seeds: Sequence[WeightedPairs]) -> Table:
    """Return the shares of the pairs by the modalities in conflict; they add up to 1."""
    printed = context.printed(paper.CONFLICTS).get("shares", {})
    shares = {subset: [pairs.conflict_shares(subset) for pairs in seeds] for subset in _SUBSETS}
    rows = []
    for names in conflict_sets(list(seeds[0].alone)):
        row: dict[str, Any] = {"title": set_title(names), "paper": printed.get("+".join(names) or "none")}
        for subset, by_seed in shares.items():
            row |= mean_and_deviation([seed_shares[names] for seed_shares in by_seed], f"{subset} ")
        rows.append(row)
    columns = _columns("in conflict with the labels", Column("paper", "paper, top 5 %", "{:.4f}"))
    return Table("shares", "Sources of conflict, as shares of the pairs", columns, rows)


def _count_table(context: ExperimentContext, seeds: Sequence[WeightedPairs]) -> Table:
    """Return Table 7: mean weight by conflict count, and the number of pairs with that count."""
    printed, modalities = context.printed(paper.CONFLICTS), seeds[0].alone
    rows = []
    for count in range(len(LETTERS) + 1):
        row: dict[str, Any] = {
            "title": count,
            "paper": printed.get("weight", {}).get(count),
            "paper pairs": printed.get("count", {}).get(count),
        }
        for subset in _SUBSETS if modalities else ():
            weights = [pairs.weights_by_count(subset, count) for pairs in seeds]
            row |= mean_and_deviation([mean_or_none(weight_P) for weight_P in weights], f"{subset} ")
            if count <= len(modalities):
                row[f"{subset} pairs"] = statistics.fmean(len(weight_P) for weight_P in weights)
        rows.append(row)
    columns = [Column("title", "modalities in conflict")]
    if "weight" in printed:
        columns += [Column("paper", "paper", "{:.4f}"), Column("paper pairs", "pairs")]
    for subset in _SUBSETS:
        columns += [
            Column(f"{subset} mean", f"weight, {subset}", "{:.4f}"),
            Column(f"{subset} deviation", "deviation", "{:.4f}"),
            Column(f"{subset} pairs", "pairs", "{:.0f}"),
        ]
    title = "Mean weight by the number of modalities in conflict"
    return Table("counts", title, columns, rows, ("pairs: mean over seeds",))


def _disagreement_table(context: ExperimentContext, seeds: Sequence[WeightedPairs]) -> Table:
    """Return Table 8: mean weight by whether text and another modality disagree."""
    printed = context.printed(paper.CONFLICTS).get("modalities", {})
    rows = []
    for name in ("vision", "audio"):
        for disagree in (False, True):
            row: dict[str, Any] = {
                "title": f"T-{LETTERS[name]}, {'conflict' if disagree else 'no conflict'}",
                "paper": printed.get((name, disagree)),
            }
            if name in seeds[0].alone:
                weights = [pairs.weight_P[pairs.disagree("text", name) == disagree] for pairs in seeds]
                row |= mean_and_deviation([mean_or_none(weight_P) for weight_P in weights])
                row["pairs"] = statistics.fmean(len(weight_P) for weight_P in weights)
            rows.append(row)
    columns = (
        Column("title", "conflict"),
        *([Column("paper", "paper", "{:.4f}")] if printed else []),
        Column("mean", "weight", "{:.4f}"),
        Column("deviation", "deviation", "{:.4f}"),
        Column("pairs", "pairs", "{:.0f}"),
    )
    return Table("modalities", "Mean weight by whether text and another modality disagree", columns, rows)


def _rank_table(context: ExperimentContext, seeds: Sequence[WeightedPairs]) -> Table:
    printed = context.printed(paper.CONFLICTS).get("spearman")
    printed_subset = ALL if context.store.info.task == "classification" else TOP
    rows = []
    for subset in _SUBSETS:
        ranked = [_ranked(pairs, pairs.subsets[subset]) for pairs in seeds if pairs.alone]
        permuted = [p for _, p in ranked if p is not None]
        rows.append(
            {
                "title": subset,
                "paper": printed if subset == printed_subset else None,
                **mean_and_deviation([correlation for correlation, _ in ranked]),
                "permuted": statistics.median(permuted) if permuted else None,
                "pairs": len(seeds[0].subsets[subset]),
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


def _ranked(pairs: WeightedPairs, index: Ints) -> tuple[float, float | None]:
    """Return Spearman's correlation of weight and conflict count, and its p by permutation."""

    def correlation(weight_P: Floats, pairs_P2: Ints) -> Floats:
        drawn, ordered_P = pairs.predictors(pairs_P2, "minus distance")
        if "conflict" not in drawn:
            return np.array([math.nan])
        return np.array([rank_correlation(weight_P[ordered_P], drawn["conflict"])])

    weight_P, pairs_P2 = pairs.weight_P[index], pairs.pairs_P2[index]
    (p,) = permuted_p(weight_P, pairs_P2, len(pairs.label_N), correlation, seed=SEED, permutations=PERMUTATIONS)
    return float(correlation(weight_P, pairs_P2)[0]), p


def _alone_table(seeds: Sequence[WeightedPairs]) -> Table:
    """Return how closely each modality alone orders the pairs as the whole model does."""
    rows = []
    for name in seeds[0].alone:
        both = [(gaps(pairs.alone[name], pairs.pairs_P2), gaps(pairs.score_N, pairs.pairs_P2)) for pairs in seeds]
        over = mean_and_deviation([rank_correlation(alone_P, whole_P) for alone_P, whole_P in both])
        same = mean_and_deviation([float((np.sign(alone_P) == np.sign(whole_P)).mean()) for alone_P, whole_P in both])
        rows.append({"title": name, **over, "same": same["mean"], "same deviation": same["deviation"]})
    return Table(
        "alone",
        "Agreement of each modality alone with the whole model, all pairs",
        (
            Column("title", "modality"),
            Column("mean", "Spearman of the differences", "{:.4f}"),
            Column("deviation", "deviation", "{:.4f}"),
            Column("same", "pairs in the same order", "{:.1%}"),
            Column("same deviation", "deviation", "{:.1%}"),
        ),
        rows,
    )
