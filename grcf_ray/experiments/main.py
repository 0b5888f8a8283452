"""The main results: the winner's configuration on test over fresh seeds, beside the paper's figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from grcf_ray.data.datasets import TWO_READINGS
from grcf_ray.experiments.arms import full_arm, head_metrics, metric_of
from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.experiments.result import ExperimentResult, few_seeds_notes
from grcf_ray.experiments.rivals import rivals
from grcf_ray.metrics import METRIC_DIRECTIONS, METRIC_TITLES, Ties
from grcf_ray.plugins import model_title
from grcf_ray.search.predictions import Predictions
from grcf_ray.statistics import spread
from grcf_ray.tables import Column, Table

_TIES: Mapping[Ties, str] = {"drop": "PairwiseAcc (ties dropped)", "literal": "PairwiseAcc (eq. 28 as printed)"}
"""Both readings of eq. 28, shown in place of the run's own reading."""


def main(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Tables 1 and 2 and Figure 4: methods by metric, the paper's rows first, this run's last.

    With --models the methods are trained here instead.
    """
    if context.options.models:
        return rivals(context)
    models = context.models([full_arm(context)], "main")["full"]
    # ExperimentContext refuses runs without a measured winner.
    assert context.view.metrics is not None
    printed = dict(context.printed_results)
    baselines = context.printed("baselines")
    methods: dict[str, dict[str, Any]] = {name: dict(figures) for name, figures in baselines.items()}
    if printed:
        methods["GRCF, the paper"] = printed
    # Runs of the first releases have no recorded scores.
    scored = context.view.scored("test")
    winner_ties = _both_ties(context, scored) if scored else {}
    methods["the search's winner, one seed"] = context.view.metrics["test"] | winner_ties
    tests = [{**model.metrics["test"], **_both_ties(context, model.scored("test"))} for model in models]
    # A metric that is undefined for one model, such as a correlation of constant scores, has no mean.
    shared = set.intersection(*map(set, tests))
    over = {name: spread([test[name] for test in tests]) for name in shared}
    own = model_title(context.config.model.name)
    methods[f"{own} here, mean over seeds ({len(models)})"] = {name: figure.mean for name, figure in over.items()}
    methods["± deviation"] = {name: figure.deviation for name, figure in over.items()}

    titles = {**METRIC_TITLES, **{_key(ties): title for ties, title in _TIES.items()}}
    metrics = [
        key for name in head_metrics(context) for key in (map(_key, _TIES) if name == "pairwise_acc" else [name])
    ]
    # The paper gives the weighted F1 of its baselines, and the positive class's of GRCF.
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
        [{"title": name, **{metric: figures.get(metric) for metric in metrics}} for name, figures in methods.items()],
        [
            f"lower is better for {', '.join(falling)}, higher for the others",
            *few_seeds_notes(len(models)),
        ],
    )
    tables, reasons = [results], list(context.view.metrics["not_comparable"])
    if printed and reasons:
        rows = [{"reason": reason} for reason in reasons]
        tables.insert(0, Table("not comparable", "Not comparable with the paper", (Column("reason", "here"),), rows))
    notes = []
    if baselines:
        notes.append("Baselines: all rows of the paper's table, as printed; it gives one seed and no deviation.")
    if "f1_positive" in printed:
        notes.append("The paper's column F1 fits the weighted F1 of its baselines and the positive class's F1 of GRCF.")
    if printed and not baselines:
        notes.append("Figure 4 shows its baselines as bars without numbers; they are left out.")
    if not context.is_grcf:
        notes.append(f"This run's model is {own}, so the paper's figures of GRCF are left out.")
    elif not printed:
        notes.append(f"The paper has no figures of this data set for {context.store.info.task}.")
    if "acc2_mmsa" in printed:
        notes.append(TWO_READINGS)
    if _key("drop") in metrics:
        notes.append(
            "PairwiseAcc: eq. 28 as printed depends on the order of the rows if labels or scores tie. With ties "
            "dropped, pairs of equal labels are left out and equal scores count as wrong. This run has "
            f"metrics.ties = {context.config.metrics.ties}."
        )
    notes.append("Valid chose the configuration; no figure of test chose anything.")
    return ExperimentResult(
        title=f"Main results on {context.store.info.name}",
        tables=tables,
        notes=notes,
        data={"by seed": {model.index: test for model, test in zip(models, tests, strict=True)}},
    )


def _key(ties: Ties) -> str:
    return f"pairwise_acc_{ties}"


def _both_ties(context: ExperimentContext, scored: Predictions) -> dict[str, float]:
    """Return PairwiseAcc of a split's rows, in their order, under both readings; undefined values are left out."""
    values = {
        _key(ties): metric_of(context, "pairwise_acc", ties=ties)(scored.score_N, scored.label_N) for ties in _TIES
    }
    return {key: value for key, value in values.items() if math.isfinite(value)}
