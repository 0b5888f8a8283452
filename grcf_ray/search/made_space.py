"""Make a search space for a data set and a machine: recipe, number of trials, epochs and pairs for a time limit.

The recipes are those of search_spaces/mosi_cpu.yaml, demo.yaml and mustard_cpu.yaml, whose headers give the reasons. A
ladder of budgets goes from many long trials to few short ones; the space takes the first that fits the time limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from grcf_ray.config import RunConfig, short_name
from grcf_ray.data.schema import TableInfo
from grcf_ray.search.space import Choice, Dimension, Range, Space, stage_budgets

SOURCE = "the space made for the data"
"""The source of a made space, in messages."""
CPU_SECONDS, GPU_SECONDS = 30 * 60.0, 120 * 60.0
"""Time limit of a search in a made space without --time-budget."""
_PLANNED = {1: 0.4, 2: 0.75}
"""Share of the time limit by which a stage should end. The search's own deadlines are 0.5 and 0.97."""
_STEP_COST = 1.5
"""Cost of a training step over that of its text encoder: heads, losses and optimizer."""
_START_S, TRIAL_S = 40.0, 1.0
"""Seconds to start and to end a search, and to start a trial."""
_MEMORY_SHARE = 0.15
"""Largest share of a node's memory for the output of frozen layers."""
_SMALL_WIDTH = 384
"""Width of the encoder that the learning rates of mosi_cpu.yaml are for; wider ones get a fifth."""


class Machine(NamedTuple):
    """The resources of a cluster, or of this machine."""

    cpus: int
    node_cpus: int
    """CPUs of the smallest node with any."""
    gpus: int
    """0 if trials train on CPUs."""
    memory: int
    """Bytes of memory of a node."""


class Encoder(NamedTuple):
    """A text encoder, and the reason for it."""

    name: str
    reason: str
    layers: int
    width: int
    splits: bool = True
    """Whether some of its layers can be frozen."""


class _Budget(NamedTuple):
    trials: int
    """Trials of each stage."""
    epochs: tuple[int, int]
    passes: float
    """Passes over the training utterances in an epoch."""
    frozen: float
    """Share of the encoder's layers that are frozen."""


_SHORT = ((6, 1.0), (6, 0.5), (4, 0.5), (4, 0.25), *((3, 2.0**-halvings) for halvings in range(2, 8)))
"""Trials and passes of the shortest searches, of 1 and 2 epochs."""
_CPU_BUDGETS = (
    *(_Budget(trials, (5, 7), 1.0, 1 / 3) for trials in (40, 28, 20, 14)),
    _Budget(14, (5, 7), 1.0, 2 / 3),
    _Budget(10, (3, 4), 1.0, 2 / 3),
    _Budget(8, (2, 3), 1.0, 2 / 3),
    *(_Budget(trials, (1, 2), passes, 2 / 3) for trials, passes in _SHORT),
)
_GPU_BUDGETS = (
    *(_Budget(trials, (8, 5), 4.0, 0.0) for trials in (40, 28, 20)),
    _Budget(14, (5, 4), 2.0, 0.0),
    _Budget(10, (3, 3), 1.0, 0.0),
    *(_Budget(trials, (1, 2), passes, 0.0) for trials, passes in _SHORT),
)


@dataclasses.dataclass(frozen=True)
class MadeSpace:
    """A made space, before the user's own settings."""

    space: Space
    seconds: float
    """Time limit that the space was made for."""
    summary: str
    """The space in one line."""

    def as_dict(self) -> dict[str, Any]:
        """Return the content of a run record."""
        return {"space": self.space.as_dict(), "seconds": self.seconds, "summary": self.summary}


def make_space(
    info: TableInfo,
    encoder: Encoder,
    machine: Machine,
    *,
    tokens: float,
    text_seconds: float,
    seconds: float,
    fixed: Mapping[str, Any],
) -> MadeSpace:
    """Return the space of the first budget on the ladder that fits the time limit, or else of its last.

    tokens: mean subwords of a text. text_seconds: forward and backward pass of a text on one CPU thread, or on one GPU.
    seconds: the time limit, infinite for none. fixed: the user's settings, which change the cost.
    """
    ladder = _GPU_BUDGETS if machine.gpus else _CPU_BUDGETS
    for budget in ladder:
        space = _space(info, encoder, machine, tokens, budget)
        config = space.with_settings(fixed).config()
        ends = planned_seconds(config, info, encoder, machine, text_seconds)
        if all(end <= _PLANNED[stage] * seconds for stage, end in ends.items()):
            break
    trials, epochs = (" + ".join(map(str, part)) for part in zip(*stage_budgets(config).values(), strict=True))
    frozen = encoder.layers if config.model.frozen_layers == "all" else config.model.frozen_layers
    minutes = max(1, round(max(ends.values()) / 60))
    late = "" if minutes * 60 <= seconds else f", longer than the limit of {seconds / 60:g} min"
    summary = (
        f"{short_name(encoder.name)} ({encoder.reason}), {frozen} of {encoder.layers} layers frozen, "
        f"{trials} trials of {epochs} epochs, about {minutes} minute{'s' * (minutes != 1)}{late}"
    )
    return MadeSpace(space, seconds, summary)


def planned_seconds(
    config: RunConfig, info: TableInfo, encoder: Encoder, machine: Machine, text_seconds: float
) -> dict[int, float]:
    """Return the estimated seconds from the start of a search to the end of each stage that has epochs."""
    search = config.search
    utterances = info.splits["train"] + info.splits["valid"]
    at_a_time = machine.gpus or max(1, machine.cpus // search.cpus_per_worker)
    # The forward pass is a third of the cost. All CPUs share the passes through the frozen layers.
    ahead = (_frozen_share(config, encoder) + search.ridge_baseline) * utterances / (machine.gpus or machine.cpus)
    clock = _START_S + text_seconds / 3 * ahead
    epoch = epoch_seconds(config, info, encoder, text_seconds, on_gpu=machine.gpus > 0)
    ends: dict[int, float] = {}
    for stage, (trials, epochs) in stage_budgets(config).items():
        # ASHA spent 43 % of the epochs of 5 and 7 (docs/performance/pruning.md); it cannot shorten a single epoch.
        spent = 0.5 + 0.5 / epochs if search.pruning else 1.0
        together = min(trials, search.concurrent or at_a_time, at_a_time)
        clock += (trials * TRIAL_S + trials * epochs * spent * epoch) / together
        ends[stage] = clock
    return ends


def epoch_seconds(config: RunConfig, info: TableInfo, encoder: Encoder, text_seconds: float, *, on_gpu: bool) -> float:
    """Return the estimated seconds of an epoch of a trial of one worker."""
    pairs, train = config.pairs, info.splits["train"]
    slots = 2 * pairs.pairs_per_group * pairs.groups_per_step
    steps = (pairs.pairs_per_epoch or 39 * train) * 2 / slots
    # A step encodes each of its distinct utterances once; validation has no backward pass.
    encoded = steps * train * (1 - (1 - 1 / train) ** slots)
    rate = 1.0 if on_gpu else config.search.cpus_per_worker**0.8
    texts = _STEP_COST * encoded + info.splits["valid"] / 3
    return float(texts * (1 - _frozen_share(config, encoder)) * text_seconds / rate)


def _frozen_share(config: RunConfig, encoder: Encoder) -> float:
    return 1.0 if config.model.frozen_layers == "all" else config.model.frozen_layers / encoder.layers


def _space(info: TableInfo, encoder: Encoder, machine: Machine, tokens: float, budget: _Budget) -> Space:
    train, valid = info.splits["train"], info.splits["valid"]
    states = 4.0 * encoder.width * tokens * (train + valid)
    fits = encoder.splits and states <= _MEMORY_SHARE * machine.memory
    frozen = round(budget.frozen * encoder.layers) if fits else 0
    # At least ten steps an epoch, however few the utterances.
    group = 32 if train >= 640 else 16 if train >= 200 else 8
    pairs = max(10, round(budget.passes * train / 2 / group)) * group
    pace = 1.0 if encoder.width <= _SMALL_WIDTH else 0.2
    # A short training needs larger learning rates, as in demo.yaml.
    hurry = 2 if budget.epochs[0] * pairs / group < 60 else 1
    regression, others = info.task == "regression", bool(info.dims)
    scale = (info.label_range[1] - info.label_range[0]) / 6

    def rate(low: float, first: float, span: int = 10) -> Range:
        return Range(_plain(low * pace), _plain(span * low * pace), True, _plain(min(first * hurry, 5 * low) * pace))

    fixed: dict[str, Any] = {
        "model.backbone": encoder.name,
        "model.text_vector": "cls" if encoder.name.endswith("deberta-v3-base") else "mean",
        "model.frozen_layers": frozen,
        "model.unified_dropout": 0.1,
        **({"model.modality_dropout": 0.2} if others else {}),
        "pairs.pairs_per_epoch": pairs,
        "pairs.pairs_per_group": group,
        "pairs.groups_per_step": 1,
        **({"pairs.micro_batch_tokens": 8192} if machine.gpus else {}),
        "stage1.epochs": budget.epochs[0],
        "stage1.weight_decay": 0.01,
        **(
            {"stage1.group_weight": 1.0, "stage1.reg_margin": 0.003}
            if regression
            else {"stage1.boundary_weight": 0.1, "stage1.centering_weight": 0.01}
        ),
        "stage2.epochs": budget.epochs[1],
        **({"stage2.mae_weight": 1.0} if regression else {"stage2.top_layers": 0}),
        "search.stage1_trials": budget.trials,
        "search.stage2_trials": budget.trials,
        "search.finalists": 3 if budget.trials >= 8 else 2,
        "search.cpus_per_worker": 1 if machine.gpus else min(8, max(1, machine.node_cpus // 8)),
        "search.reduction_factor": 3.0,
        "search.ridge_baseline": not machine.gpus,
    }
    dropout = Range(0.0, 0.5, False, 0.1)
    stage1: dict[str, Dimension] = {
        "stage1.encoder_lr": rate(4e-5, 1e-4),
        "stage1.head_lr": rate(2e-4, 1e-3),
        "model.fusion_dropout": dropout,
    }
    stage2: dict[str, Dimension] = {"stage2.head_lr": rate(1e-4, 5e-4, 30), "stage2.fusion_dropout": dropout}
    if regression:
        # L_reg is in squared label units, and the ranking loss in label units: their weights' ratio follows the range.
        stage1["stage1.reg_weight"] = Range(_plain(0.03 / scale), _plain(1 / scale), True, _plain(0.6 / scale))
        stage1["ranking.base_margin"] = Range(0.3, 1.5, True, 0.5)
        stage2["stage2.encoder_top_lr"] = rate(3e-5, 1e-4)
        stage2["stage2.group_weight"] = Range(0.03, 1.0, True, 0.3)
    else:
        stage1["stage1.compactness_weight"] = Range(0.05, 1.0, True, 0.5)
        stage1["classes.separation_margin"] = Range(0.3, 3.0, True, 1.0)
        stage2["stage2.weight_decay"] = Range(1e-3, 1e-1, True, 1e-2)
    # With the lower half frozen, all trained layers are top layers, with a learning rate of their own.
    if not regression or frozen < encoder.layers / 2:
        stage2["stage2.encoder_base_lr"] = rate(2e-5, 5e-5)
    if others:
        stage1["model.modalities"] = Choice(("text", "all"), "text")
    # for_labels scales all margins from MOSI's range.
    scaled = Space("mosi", fixed, stage1, stage2, SOURCE).for_labels("", 3 * scale, info.task)
    return dataclasses.replace(scaled, dataset=info.name)


def _plain(value: float) -> float:
    return float(f"{value:.3g}")
