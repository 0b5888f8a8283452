"""Which training pairs the advantage weights single out (appendix B.1): near labels, or conflicting modalities.

The full model scores each modality alone, with the others masked. A modality is in conflict in a pair if its two scores
are in the opposite order of the labels; equal scores are no conflict. Two modalities disagree if they order the pair
differently: quadrants II and IV of Figure 7.
"""

from __future__ import annotations

from grcf_ray.console import sentence
from grcf_ray.data.schema import labels_of
from grcf_ray.errors import ConfigError
from grcf_ray.experiments import hard_pair_figures, hard_pair_tables
from grcf_ray.experiments.arms import full_arm
from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.experiments.pair_statistics import SEED, WeightedPairs, complete_rows, differing_pairs, unimodal_scores
from grcf_ray.experiments.result import ExperimentResult, few_seeds_notes
from grcf_ray.search.winner import available_threads
from grcf_ray.train.stage import use_deterministic_torch

PAIRS = 62_500
"""The most pairs that are used; the paper's 3,125 are 5 % of them."""


def hard_pairs(context: ExperimentContext) -> ExperimentResult:
    """Compute Tables 6 to 8: what goes with the weight of a training pair, over the seeds of the full model."""
    if not context.config.model.sees_text:
        raise ConfigError("hard-pairs compares the text with the other modalities; this run's model has no text")
    models = context.models([full_arm(context)], "hard-pairs")["full"]
    task = context.store.info.task
    use_deterministic_torch(available_threads())
    train = context.store.read("train")
    seeds: list[WeightedPairs] = []
    total = utterances = 0
    for model in models:
        saved = model.load()
        rows = complete_rows(saved, train)
        utterances = len(rows)
        label_N = labels_of(rows)
        pairs_P2, total = differing_pairs(label_N, PAIRS, seed=SEED)
        if not total:
            raise ConfigError(
                "hard-pairs compares training utterances of different labels that have all of "
                f"{', '.join(['text', *saved.model.modality_dims])}; {utterances} of {len(train)} utterances do, and "
                "no pair is left"
            )
        alone = unimodal_scores(saved, rows)
        seeds.append(WeightedPairs(label_N, saved.score(rows), alone, pairs_P2, task))
    return ExperimentResult(
        title=f"Pairs that the advantage weights single out on {context.store.info.name}",
        tables=[table for table in hard_pair_tables.tables(context, seeds) if table.rows],
        pictures=hard_pair_figures.pictures(seeds),
        notes=[
            *_pair_notes(seeds[0], total, f"{utterances} of {len(train)}"),
            *_conflict_notes(context, seeds[0]),
            *map(sentence, few_seeds_notes(len(models))),
        ],
    )


def _pair_notes(first: WeightedPairs, total: int, utterances: str) -> list[str]:
    count = len(first.pairs_P2)
    drawn = f"; {count} of these pairs are drawn at random (seed {SEED})" if total > count else ""
    equation = "eq. 19" if first.task == "classification" else "eq. 9"
    return [
        f"{utterances} training utterances have every modality that the model sees. {total} pairs of them have "
        f"different labels{drawn}.",
        f"The weight is the loss's own, over all these pairs together: {equation}.",
    ]


def _conflict_notes(context: ExperimentContext, first: WeightedPairs) -> list[str]:
    notes = []
    if lacking := [name for name in ("vision", "audio") if name not in first.alone]:
        has = context.store.info.dims
        needs = [
            f"{name} ({'the winner does not read it' if name in has else 'the data have none'})" for name in lacking
        ]
        conflicts = f"conflicts of {' and '.join(lacking)}" if first.alone else "conflicts of any kind"
        notes.append(f"Cells with -: {conflicts} need features of {' and '.join(needs)}.")
    if first.alone:
        notes += [
            "The full model scores each modality alone, with the others masked. Audio and vision are masked as "
            "missing, the text by zeros in place of its vector at the fusion.",
            "A modality is in conflict if its two scores are in the opposite order of the labels; equal scores are no "
            "conflict. Two modalities disagree if they order the pair differently. The paper defines neither.",
            "If one modality decides the model's scores, its conflicts are the model's own errors, which the weight "
            "measures. The last table shows how near each modality alone is to the whole model.",
        ]
    return notes
