"""The tables of the hard pairs: weights, Table 6 (regression), Tables 7 and 8 (conflicts), and rank correlations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.experiments.pair_statistics import (
    ALL,
    SEED,
    TOP,
    Fit,
    Ints,
    Statistic,
    WeightedPairs,
    fit_ols,
    gaps,
    permuted_p,
    set_title,
)
from grcf_ray.statistics import Floats, finite_spread, rank_correlation
from grcf_ray.tables import P_VALUE, Column, Table

PERMUTATIONS = 199
LETTERS = {"text": "T", "vision": "V", "audio": "A"}
_SUBSETS = (TOP, ALL)
_CLOSENESS = {"minus distance": "-|s_i - s_j|", "inverse distance": "1 / |s_i - s_j|"}
_TERMS = {"const": "const", "proximity": "score proximity", "conflict": "conflict count"}
_OLS_COLUMNS = (
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
)


def tables(context: ExperimentContext, seeds: Sequence[WeightedPairs]) -> list[Table]:
    """Return the tables over the seeds of the full model. Two classes have no label distance, so no regression."""
    regression = context.store.info.task == "regression"
    return [
        _weight_table(seeds),
        *(_ols_table(context, seeds, closeness) for closeness in _CLOSENESS if regression),
        *([_share_table(context, seeds)] if regression else ()),
        _count_table(context, seeds),
        _disagreement_table(context, seeds),
        _rank_table(context, seeds),
        _alone_table(seeds),
    ]


def over_seeds(
    values: Iterable[float | None], mean: str = "mean", deviation: str = "deviation"
) -> dict[str, float | None]:
    """Return the mean and deviation of a figure over the seeds that have it, under these keys."""
    over = finite_spread(values)
    return {mean: over.mean, deviation: over.deviation} if over else {mean: None, deviation: None}


def mean_or_none(values: Floats) -> float | None:
    """Return the mean; None without values."""
    return float(values.mean()) if len(values) else None


def _by_subset(values: Mapping[str, Iterable[float | None]]) -> dict[str, float | None]:
    """Return the mean and deviation over the seeds of each subset's figure."""
    cells: dict[str, float | None] = {}
    for subset, by_seed in values.items():
        cells |= over_seeds(by_seed, f"{subset} mean", f"{subset} deviation")
    return cells


def _over_seeds_columns(title: str, spec: str, *, prefix: str = "") -> tuple[Column, Column]:
    """Return the columns of a mean and its deviation over the seeds."""
    return Column(f"{prefix}mean", title, spec), Column(f"{prefix}deviation", "deviation", spec)


def _subset_columns(*first: Column) -> tuple[Column, ...]:
    """Return the given columns, and those of each subset."""
    return *first, *(c for subset in _SUBSETS for c in _over_seeds_columns(subset, "{:.4g}", prefix=f"{subset} "))


def _weight_table(seeds: Sequence[WeightedPairs]) -> Table:
    figures: dict[str, Callable[[Floats], float]] = {
        "pairs": len,
        "mean": np.mean,
        "median": np.median,
        "95 % are below": lambda weight_P: np.quantile(weight_P, q=0.95),
        "highest": np.max,
        "share above 0": lambda weight_P: (weight_P > 0).mean(),
    }
    rows = [
        {"title": title}
        | _by_subset({subset: [float(figure(pairs.weights(subset))) for pairs in seeds] for subset in _SUBSETS})
        for title, figure in figures.items()
    ]
    return Table("weights", "Weights of the pairs", _subset_columns(Column("title", "figure")), rows)


def _ols_table(context: ExperimentContext, seeds: Sequence[WeightedPairs], closeness: str) -> Table:
    """Return Table 6: the weight regressed on nearness and conflicts, coefficients over seeds, and both kinds of p."""
    printed = context.printed("conflicts")
    rows: list[dict[str, Any]] = []
    for subset in _SUBSETS:
        fits = [_fitted(pairs, subset, closeness) for pairs in seeds]
        paper_fit = printed if subset == TOP else {}
        for name, title in _TERMS.items():
            known: list[dict[str, Any]] = [
                {**fit.terms[name], "permuted": permuted.get(name)}
                for fit, permuted in fits
                if fit and name in fit.terms
            ]
            row: dict[str, Any] = {"subset": subset, "title": f"{subset}: {title}", "seeds": len(known)}
            row |= {f"paper {key}": paper_fit.get(key, {}).get(name) for key in ("coefficient", "error", "t", "p")}
            row["paper n"] = paper_fit.get("n")
            if known:
                row |= over_seeds((entry["coefficient"] for entry in known), "coefficient", "deviation")
                row |= {key: statistics.fmean(entry[key] for entry in known) for key in ("error", "t")}
                row["p"] = statistics.median(entry["p"] for entry in known)
                row["n"] = next(fit.n for fit, _ in fits if fit)
                if drawn := [entry["permuted"] for entry in known if entry["permuted"] is not None]:
                    row["permuted"] = statistics.median(drawn)
                row["by seed"] = known
            rows.append(row)
        rows.append(
            {
                "subset": subset,
                "title": f"{subset}: R²",
                "paper coefficient": paper_fit.get("r2"),
                **over_seeds((fit.r2 for fit, _ in fits if fit), "coefficient", "deviation"),
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
        _OLS_COLUMNS,
        rows,
        notes,
    )


def _permuted_p(
    pairs: WeightedPairs, subset: str, statistic: Statistic, permutations: int
) -> tuple[Floats, list[float | None]]:
    """Return the statistic's figures of a subset, and the p of each by permutation."""
    weight_P, pairs_P2 = pairs.weights(subset), pairs.pairs_P2[pairs.subsets[subset]]
    p = permuted_p(weight_P, pairs_P2, len(pairs.label_N), statistic, seed=SEED, permutations=permutations)
    return statistic(weight_P, pairs_P2), p


def _fitted(pairs: WeightedPairs, subset: str, closeness: str) -> tuple[Fit | None, dict[str, float | None]]:
    """Return the fit of a subset, None for too few pairs, and the permuted p of its predictors."""
    predictors, _ = pairs.predictors(pairs.pairs_P2[pairs.subsets[subset]], closeness)
    try:
        fit = fit_ols(pairs.weights(subset), predictors)
    except ValueError:
        return None, {}

    def t_of(weight_P: Floats, pairs_P2: Ints) -> Floats:
        drawn, ordered_P = pairs.predictors(pairs_P2, closeness)
        try:
            terms = fit_ols(weight_P[ordered_P], drawn).terms
        except ValueError:
            terms = {}
        return np.array([terms[name]["t"] if name in terms else math.nan for name in predictors])

    _, permuted = _permuted_p(pairs, subset, t_of, PERMUTATIONS if predictors else 0)
    return fit, dict(zip(predictors, permuted, strict=True))


def _share_table(context: ExperimentContext, seeds: Sequence[WeightedPairs]) -> Table:
    """Return the shares of the pairs by the modalities in conflict; they add up to 1."""
    printed = context.printed("conflicts").get("shares", {})
    rows = [
        {
            "title": set_title(names),
            "paper": printed.get(set_title(names)),
            **_by_subset({subset: [pairs.conflict_share(subset, names) for pairs in seeds] for subset in _SUBSETS}),
        }
        for names in seeds[0].conflict_sets
    ]
    columns = _subset_columns(
        Column("title", "in conflict with the labels"), Column("paper", "paper, top 5 %", "{:.4f}")
    )
    return Table("shares", "Sources of conflict, as shares of the pairs", columns, rows)


def _count_table(context: ExperimentContext, seeds: Sequence[WeightedPairs]) -> Table:
    """Return Table 7: mean weight by conflict count, and the number of pairs with that count."""
    printed, modalities = context.printed("conflicts"), seeds[0].alone
    rows = []
    for count in range(len(LETTERS) + 1):
        row: dict[str, Any] = {"title": count, "paper": None, "paper pairs": None}
        if "weight" in printed:
            row |= {"paper": printed["weight"][count], "paper pairs": printed["count"][count]}
        for subset in _SUBSETS if modalities else ():
            weights = [pairs.weights(subset, count) for pairs in seeds]
            row |= over_seeds(map(mean_or_none, weights), f"{subset} mean", f"{subset} deviation")
            if count <= len(modalities):
                row[f"{subset} pairs"] = statistics.fmean(map(len, weights))
        rows.append(row)
    columns = [Column("title", "modalities in conflict")]
    if "weight" in printed:
        columns += [Column("paper", "paper", "{:.4f}"), Column("paper pairs", "pairs")]
    for subset in _SUBSETS:
        columns += [
            *_over_seeds_columns(f"weight, {subset}", "{:.4f}", prefix=f"{subset} "),
            Column(f"{subset} pairs", "pairs", "{:.0f}"),
        ]
    title = "Mean weight by the number of modalities in conflict"
    return Table("counts", title, columns, rows, ("pairs: mean over seeds",))


def _disagreement_table(context: ExperimentContext, seeds: Sequence[WeightedPairs]) -> Table:
    """Return Table 8: mean weight by whether text and another modality disagree."""
    printed = context.printed("conflicts").get("modalities", {})
    rows = []
    for name in ("vision", "audio"):
        for disagree, status in enumerate(("no conflict", "conflict")):
            title = f"T-{LETTERS[name]}, {status}"
            row: dict[str, Any] = {"title": title, "paper": printed.get(title)}
            if name in seeds[0].alone:
                weights = [pairs.weight_P[pairs.disagree("text", name) == disagree] for pairs in seeds]
                row |= over_seeds(map(mean_or_none, weights))
                row["pairs"] = statistics.fmean(map(len, weights))
            rows.append(row)
    columns = (
        Column("title", "conflict"),
        *([Column("paper", "paper", "{:.4f}")] if printed else []),
        *_over_seeds_columns("weight", "{:.4f}"),
        Column("pairs", "pairs", "{:.0f}"),
    )
    return Table("modalities", "Mean weight by whether text and another modality disagree", columns, rows)


def _rank_table(context: ExperimentContext, seeds: Sequence[WeightedPairs]) -> Table:
    printed_subset = ALL if context.store.info.task == "classification" else TOP
    rows = []
    for subset in _SUBSETS:
        ranked = [_ranked(pairs, subset) for pairs in seeds if pairs.alone]
        permuted = [p for _, p in ranked if p is not None]
        rows.append(
            {
                "title": subset,
                "paper": context.printed("conflicts").get("spearman") if subset == printed_subset else None,
                **over_seeds(correlation for correlation, _ in ranked),
                "permuted": statistics.median(permuted) if permuted else None,
                "pairs": len(seeds[0].subsets[subset]),
            }
        )
    columns = (
        Column("title", "pairs of"),
        Column("paper", "paper", "{:.4f}"),
        *_over_seeds_columns("correlation", "{:.4f}"),
        Column("permuted", "p permuted", P_VALUE),
        Column("pairs", "pairs"),
    )
    return Table("spearman", "Spearman's correlation of weight and conflict count", columns, rows)


def _ranked(pairs: WeightedPairs, subset: str) -> tuple[float, float | None]:
    """Return Spearman's correlation of weight and conflict count, and its p by permutation."""

    def correlation(weight_P: Floats, pairs_P2: Ints) -> Floats:
        drawn, ordered_P = pairs.predictors(pairs_P2, "minus distance")
        return np.array([rank_correlation(weight_P[ordered_P], drawn["conflict"]) if "conflict" in drawn else math.nan])

    figure_1, (p,) = _permuted_p(pairs, subset, correlation, PERMUTATIONS)
    return float(figure_1[0]), p


def _alone_table(seeds: Sequence[WeightedPairs]) -> Table:
    """Return how closely each modality alone orders the pairs as the whole model does."""
    rows = []
    for name in seeds[0].alone:
        both = [(gaps(pairs.alone[name], pairs.pairs_P2), gaps(pairs.score_N, pairs.pairs_P2)) for pairs in seeds]
        same = (float((np.sign(alone_P) == np.sign(whole_P)).mean()) for alone_P, whole_P in both)
        row = over_seeds(rank_correlation(alone_P, whole_P) for alone_P, whole_P in both)
        rows.append({"title": name, **row, **over_seeds(same, "same", "same deviation")})
    columns = (
        Column("title", "modality"),
        *_over_seeds_columns("Spearman of the differences", "{:.4f}"),
        Column("same", "pairs in the same order", "{:.1%}"),
        Column("same deviation", "deviation", "{:.1%}"),
    )
    return Table("alone", "Agreement of each modality alone with the whole model, all pairs", columns, rows)
