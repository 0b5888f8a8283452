"""The main results: the winner's configuration on test over fresh seeds, beside what the paper prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from grcf_ray.data.datasets import TWO_READINGS
from grcf_ray.experiments import paper
from grcf_ray.experiments.arms import full_arm, head_metrics
from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.experiments.result import ExperimentResult
from grcf_ray.metrics import METRIC_DIRECTIONS, METRIC_TITLES, Ties, split_metric
from grcf_ray.report.view import Predictions
from grcf_ray.search.comparisons import few_seeds
from grcf_ray.statistics import spread
from grcf_ray.tables import Column, Table

_TIES: Mapping[Ties, str] = {"drop": "PairwiseAcc (ties dropped)", "literal": "PairwiseAcc (eq. 28 as printed)"}
"""Both readings of eq. 28, which stand in place of the one that the run was measured by."""


def main(context: ExperimentContext) -> ExperimentResult:
    """Tables 1 and 2, Figure 4: methods by metric, the paper's rows first and ours last."""
    models = context.models([full_arm(context)], "main")["full"]
    # A context starts from a run whose winner has been measured.
    assert context.view.metrics is not None
    printed = dict(context.printed_results)
    baselines = context.printed(paper.BASELINES)
    found: dict[str, dict[str, Any]] = {name: dict(figures) for name, figures in baselines.items()}
    if printed:
        found["GRCF, the paper"] = printed
    # A run of the first releases has no scores of its winner on record.
    scored = context.view.scored("test")
    found["the search's winner, one seed"] = context.view.metrics["test"] | (
        _both_ties(context, scored) if scored else {}
    )
    tests = [{**model.metrics["test"], **_both_ties(context, model.scored("test"))} for model in models]
    # What is undefined for one of the models, such as a correlation of constant scores, has no mean.
    shared = set.intersection(*map(set, tests))
    over = {name: spread([test[name] for test in tests]) for name in shared}
    found[f"GRCF here, mean over seeds ({len(models)})"] = {name: figure.mean for name, figure in over.items()}
    found["± deviation"] = {name: figure.deviation for name, figure in over.items()}

    titles = {**METRIC_TITLES, **{_key(ties): title for ties, title in _TIES.items()}}
    metrics = [
        key for name in head_metrics(context) for key in (map(_key, _TIES) if name == "pairwise_acc" else [name])
    ]
    # The paper's baselines have the weighted F1 where GRCF has the positive class's.
    metrics += [name for figures in baselines.values() for name in figures if name not in metrics]
    metrics = list(dict.fromkeys(metrics))
    falling = [titles[name] for name in metrics if METRIC_DIRECTIONS.get(name) == "min"]
    results = Table(
        "results",
        f"{context.facts.title if context.facts else context.store.info.name}, test",
        (
            Column("title", "method"),
            *(Column(name, titles[name], "{:.4f}") for name in metrics),
        ),
        [{"title": name, **{metric: figures.get(metric) for metric in metrics}} for name, figures in found.items()],
        [
            f"lower is better of {', '.join(falling)}, higher of the others",
            *(note for note in (few_seeds(len(models)),) if note),
        ],
    )
    tables, reasons = [results], list(context.view.metrics["not_comparable"])
    if printed and reasons:
        rows = [{"reason": reason} for reason in reasons]
        tables.insert(0, Table("not comparable", "Not comparable with the paper", (Column("reason", "here"),), rows))
    return ExperimentResult(
        name="main",
        title=f"Main results on {context.store.info.name}",
        paper="Tables 1 and 2, Figure 4",
        tables=tables,
        notes=(
            *(
                ("Baselines: all rows of the paper's table, as it prints them; it gives one seed, no deviation.",)
                if baselines
                else ()
            ),
            *(
                ("The paper's one column F1 fits the weighted F1 of its baselines and the positive class's of GRCF.",)
                if "f1_positive" in printed
                else ()
            ),
            *(
                ("Figure 4 gives its baselines as bars without numbers; they are left out.",)
                if printed and not baselines
                else ()
            ),
            *(("The paper has no figures of this data set.",) if not printed else ()),
            *((TWO_READINGS,) if "acc2_mmsa" in printed else ()),
            *(
                (
                    "PairwiseAcc: eq. 28 as printed depends on the order of the rows where labels or scores tie. With "
                    "ties dropped, pairs of equal labels are left out and equal scores are wrong. This run has "
                    f"metrics.ties = {context.config.metrics.ties}.",
                )
                if _key("drop") in metrics
                else ()
            ),
            "Valid chose the configuration; no figure of test chose anything.",
        ),
        data={"by seed": {model.index: test for model, test in zip(models, tests, strict=True)}},
    )


def _key(ties: Ties) -> str:
    return f"pairwise_acc_{ties}"


def _both_ties(context: ExperimentContext, scored: Predictions) -> dict[str, float]:
    """PairwiseAcc of a split's rows, in their order, under both readings; without those that are undefined."""
    found = {
        _key(ties): split_metric(
            "pairwise_acc",
            scored.score_N,
            scored.label_N,
            protocol=context.protocol,
            limit=context.half_range,
            center=context.center,
            ties=ties,
        )
        for ties in _TIES
    }
    return {key: value for key, value in found.items() if math.isfinite(value)}
