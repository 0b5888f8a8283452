"""The main results: the winner's configuration on test over fresh seeds, beside what the paper prints."""

from __future__ import annotations

from typing import Any

from grcf_ray.metrics import METRIC_DIRECTIONS
from grcf_ray.report.terminal import METRIC_TITLES
from grcf_ray.reproduce import paper
from grcf_ray.reproduce.arms import few_seeds, full_arm, head_metrics
from grcf_ray.reproduce.lab import Lab
from grcf_ray.reproduce.outcome import Outcome
from grcf_ray.reproduce.statistics import spread
from grcf_ray.tables import Column, Table

__all__ = ["main"]


def main(lab: Lab) -> Outcome:
    """Tables 1 and 2, Figure 4: methods by metric, the paper's rows first and ours last."""
    models = lab.models([full_arm(lab)], "main")["full"]
    # A lab starts from a run whose winner has been measured.
    assert lab.view.metrics is not None
    printed = dict(lab.printed_results)
    baselines = lab.printed(paper.BASELINES)
    found: dict[str, dict[str, Any]] = {name: dict(figures) for name, figures in baselines.items()}
    if printed:
        found["GRCF, the paper"] = printed
    found["the search's winner, one seed"] = dict(lab.view.metrics["test"])
    # What is undefined for one of the models, such as a correlation of constant scores, has no mean.
    shared = set.intersection(*(set(model.metrics["test"]) for model in models))
    over = {name: spread([model.metrics["test"][name] for model in models]) for name in shared}
    found[f"GRCF here, mean over seeds ({len(models)})"] = {name: figure.mean for name, figure in over.items()}
    found["± deviation"] = {name: figure.deviation for name, figure in over.items()}

    metrics = list(head_metrics(lab))
    # The paper's baselines have the weighted F1 where GRCF has the positive class's.
    metrics += [name for figures in baselines.values() for name in figures if name not in metrics]
    metrics = list(dict.fromkeys(metrics))
    falling = [METRIC_TITLES[name] for name in metrics if METRIC_DIRECTIONS[name] == "min"]
    result = Table(
        "results",
        f"{lab.facts.title if lab.facts else lab.store.info.name}, test",
        (
            Column("title", "method"),
            *(Column(name, METRIC_TITLES[name], "{:.4f}") for name in metrics),
        ),
        [{"title": name, **{metric: figures.get(metric) for metric in metrics}} for name, figures in found.items()],
        [
            f"lower is better of {', '.join(falling)}, higher of the others",
            *(note for note in (few_seeds(len(models)),) if note),
        ],
    )
    tables, reasons = [result], list(lab.view.metrics["not_comparable"])
    if printed and reasons:
        rows = [{"reason": reason} for reason in reasons]
        tables.insert(0, Table("not comparable", "Not comparable with the paper", (Column("reason", "here"),), rows))
    return Outcome(
        name="main",
        title=f"Main results on {lab.store.info.name}",
        paper="Tables 1 and 2, Figure 4",
        tables=tables,
        notes=(
            *(
                ("Baselines: the three of the lowest MAE, as the paper prints them; it gives one seed, no deviation.",)
                if baselines
                else ()
            ),
            *(
                ("The paper's one column F1 fits the weighted F1 of its baselines and the positive class's of GRCF.",)
                if any("f1_weighted" in figures for figures in baselines.values())
                else ()
            ),
            *(
                ("Figure 4 gives its baselines as bars without numbers; they are left out.",)
                if printed and not baselines
                else ()
            ),
            *(("The paper has no figures of this data set.",) if not printed else ()),
            *(
                ("The paper does not say how its Acc2 and F1 take zeros; ours are those of the field's code (MMSA).",)
                if "acc2_mmsa" in printed
                else ()
            ),
            "Valid chose the configuration; no figure of test chose anything.",
        ),
        data={"by seed": {model.index: dict(model.metrics["test"]) for model in models}},
    )
