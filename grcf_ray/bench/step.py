"""An optimizer step: ours, and that of a loop which encodes both members of every pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from grcf_ray.bench.measure import TIMES, Timing, Variant, interleave, kept_bytes, timed_row
from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.data.batches import Batch, collate, length_sorted, micro_batches
from grcf_ray.data.features import Features
from grcf_ray.data.pairs import Step, draw_pairs, epoch_steps
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.stage import StageLoop

PAPER_STEP = {"pairs.pairs_per_group": 96, "pairs.groups_per_step": 8}
"""The paper's batch: eight groups of 96 pairs."""
SMALL_STEP = {"pairs.pairs_per_group": 32, "pairs.groups_per_step": 1}
"""The batch of the search spaces for CPUs."""

_COMPARED = {"pairs.groups_per_step": 2}
"""Of the step whose gradients are compared: all of its pairs are looped over."""

_ONCE = "each utterance once"
_COLUMNS = (
    Column("name", "step of 768 pairs"),
    *TIMES,
    Column("bound", "bound by tokens", "{:.2f}"),
    Column("kept_mb", "activations, MB", "{:.0f}"),
    Column("difference", "gradient, rel. L2", "{:.1e}"),
)


class LiteralStep:
    """What a loop over pairs does: both members of every pair are encoded, a group at a time.

    sort: in micro-batches of utterances of like length; otherwise all padded to `features.max_tokens`.
    """

    def __init__(self, loop: StageLoop, step: Step, *, sort: bool) -> None:
        self.loop, self.step, self.sort = loop, step, sort

    def batches(self, group: int) -> tuple[list[Batch], NDArray[np.int64]]:
        """The group's slots as the encoder takes them, and the place of each slot among them."""
        loop = self.loop
        chosen_S = self.step.utterance_U[self.step.groups[group].slot_S]
        features, train = loop.features, loop.features.train
        if not self.sort:
            batch = collate(features, train, chosen_S)
            return [padded(batch, loop.config.features.max_tokens, features.pad_token_id)], np.arange(len(chosen_S))
        order_S = np.argsort(train.lengths_of(chosen_S), kind="stable")
        batches = micro_batches(
            features, train, chosen_S[order_S], loop.config.pairs.micro_batch_tokens, device=loop.device
        )
        return list(batches), np.argsort(order_S)

    def backward(self, groups: int | None = None) -> None:
        """The gradient of the first groups of the step, or of all."""
        loop = self.loop
        for index, group in enumerate(self.step.groups[:groups]):
            batches, place_S = self.batches(index)
            moved = [batch.to(loop.device, loop.dtype) for batch in batches]
            with loop.autocast():
                score_S = loop.model(moved, torch.from_numpy(place_S).to(loop.device))
            label_S = loop.features.train.label_N[self.step.utterance_U[group.slot_S]]
            terms = loop.losses(group, score_S, torch.from_numpy(label_S).to(loop.device, loop.dtype))
            loss: Tensor = group.weight * terms["loss/total"]
            loss.backward()  # type: ignore[no-untyped-call]

    def tokens(self) -> int:
        """Padded subwords that it encodes."""
        return sum(batch.tokens for group in range(len(self.step.groups)) for batch in self.batches(group)[0])


def new_loop(
    features: Features, config: RunConfig, device: torch.device, changes: dict[str, Any], *, dropout: bool = True
) -> StageLoop:
    """A Stage 1 loop with fresh weights, that saves nothing."""
    config = build_config({**flatten(config), **changes})
    features = select_modalities(features, config.model.modalities)
    model = initial_model(config.model, features, seed=config.seed)
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    loop = StageLoop(model, features, config, 1, seed=config.seed, protocol="mosi", device=device)
    loop.model.train()
    return loop


def first_step(loop: StageLoop) -> Step:
    """A whole step of its first epoch."""
    pairs = loop.config.pairs
    drawn = draw_pairs(
        len(loop.features.train), pairs.pairs_per_group * pairs.groups_per_step, np.random.default_rng(loop.seed)
    )
    return next(iter(epoch_steps(drawn, pairs)))


def encoder_table(
    features: Features, config: RunConfig, device: torch.device, repetitions: int, say: Callable[[str], None]
) -> Table:
    """What encoding each utterance of a step once saves, with its gradients beside those of the loop over pairs."""
    loop = new_loop(features, config, device, {**PAPER_STEP, **_kept(config)})
    bounded = new_loop(features, config, device, {**PAPER_STEP, "pairs.activation_tokens": _group_tokens(config)})
    step = first_step(loop)
    literal, by_length = LiteralStep(loop, step, sort=False), LiteralStep(loop, step, sort=True)
    groups = len(step.groups)
    variants = [
        Variant(f"pair by pair, padded to {config.features.max_tokens}", lambda: literal.backward(1), groups),
        Variant("pair by pair, sorted by length", lambda: by_length.backward(1), groups),
        Variant(_ONCE, lambda: loop.backward(step)),
        Variant("each once, in the first one's memory", lambda: bounded.backward(step)),
    ]
    say("activations, and a first run of each")
    parameters = list(loop.model.parameters())
    kept = [
        kept_bytes(lambda: literal.backward(1), parameters),
        kept_bytes(lambda: by_length.backward(1), parameters),
        kept_bytes(lambda: loop.backward(step), parameters),
        kept_bytes(lambda: bounded.backward(step), list(bounded.model.parameters())),
    ]
    timings = interleave(variants, repetitions, device, say, warm=True)
    order_U = length_sorted(features.train, step.utterance_U)
    cut = micro_batches(features, features.train, order_U, config.pairs.micro_batch_tokens, device=device)
    ours = sum(batch.tokens for batch in cut)
    tokens = [literal.tokens(), by_length.tokens(), ours, ours]
    say("gradients")
    differences = _differences(features, config, device)
    rows = [
        timed_row(variant.name, timing, timings[0], bound=tokens[0] / count, kept_mb=size / 1e6, difference=difference)
        for variant, timing, count, size, difference in zip(variants, timings, tokens, kept, differences, strict=True)
    ]
    return Table(
        "step",
        "An optimizer step of the paper's batch, the encoder's part shared between pairs",
        _COLUMNS,
        rows,
        (
            f"{groups} groups of {PAPER_STEP['pairs.pairs_per_group']} pairs, {len(step.utterance_U)} distinct "
            f"utterances in {2 * sum(len(g.pairs_P2) for g in step.groups)} slots; the loops over pairs were timed on "
            f"one of the {groups} groups, times {groups}",
            f"gradients: against the first line, {_whole_precision(config)}, without dropout, on a step of "
            f"{_COMPARED['pairs.groups_per_step']} groups",
        ),
    )


def _group_tokens(config: RunConfig) -> int:
    """Subwords of a group of the loop over pairs, whose activations are its memory."""
    return 2 * PAPER_STEP["pairs.pairs_per_group"] * config.features.max_tokens


def _kept(config: RunConfig) -> dict[str, int]:
    """Room for the activations of a whole step, however long its texts are."""
    return {"pairs.activation_tokens": PAPER_STEP["pairs.groups_per_step"] * _group_tokens(config)}


def _whole_precision(config: RunConfig) -> str:
    """What gradients are compared in: the space's own would round differently from one batch to another."""
    return "float64" if config.train.precision == "float64" else "float32"


def _differences(features: Features, config: RunConfig, device: torch.device) -> list[float | None]:
    gradients = []
    for way in ("padded", "sorted", "once", "bounded"):
        # So little room that it does encode twice.
        budget = {"pairs.activation_tokens": 1} if way == "bounded" else _kept(config)
        changes = {**PAPER_STEP, **_COMPARED, **budget, "train.precision": _whole_precision(config)}
        loop = new_loop(features, config, device, changes, dropout=False)
        step = first_step(loop)
        if way in ("once", "bounded"):
            loop.backward(step)
        else:
            LiteralStep(loop, step, sort=way == "sorted").backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in loop.model.parameters() if p.grad is not None]))
    first, *others = gradients
    return [None, *(((other - first).norm() / first.norm()).item() for other in others)]


def shares_table(
    features: Features,
    config: RunConfig,
    device: torch.device,
    repetitions: int,
    say: Callable[[str], None],
    whole: Table | None = None,
) -> Table:
    """What the rest of a step takes, and what validation takes of an epoch: the paper's, and the space's own.

    whole: `encoder_table`, whose step is the same one, where it has been measured.
    """
    from grcf_ray.train.stage import predict

    loop = new_loop(features, config, device, {**PAPER_STEP, **_kept(config), "pairs.pairs_per_epoch": None})
    own = new_loop(features, config, device, {})
    step, own_step = first_step(loop), first_step(own)
    loop.backward(step)
    # What a group says of itself outranks what the optimizer is told: `fused` too.
    groups = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in loop.optimizer.param_groups]
    each = torch.optim.AdamW(groups, fused=False, foreach=True)
    slots = sum(len(group.slot_S) for group in step.groups)
    budget = loop.config.pairs.micro_batch_tokens

    def losses() -> None:
        score_S = torch.zeros(slots, device=device, requires_grad=True)
        _, loss = loop.totals(step, step.groups, score_S)
        loss.backward()  # type: ignore[no-untyped-call]

    def validate() -> None:
        predict(loop.model, loop.features, loop.features.valid, device=device, token_budget=budget)

    variants = [
        Variant("losses of its groups, forward and backward", losses),
        Variant(
            f"pairs, drawn and grouped once an epoch of {loop.steps_per_epoch} steps",
            lambda: list(loop.steps()),
            1 / loop.steps_per_epoch,
        ),
        Variant("AdamW, fused", loop.optimizer.step),
        Variant("AdamW, not fused", each.step),
        Variant(f"validation, once an epoch of {loop.steps_per_epoch} steps", validate, 1 / loop.steps_per_epoch),
        Variant("a step of the space's own batch, whole", lambda: own.take_step(own_step)),
        Variant(f"validation, once an epoch of {own.steps_per_epoch} of those", validate, 1 / own.steps_per_epoch),
    ]
    if whole is None:
        once = interleave([Variant(_ONCE, lambda: loop.backward(step))], repetitions, device, say, warm=True)[0]
    else:
        once = Timing(next(row["seconds"] for row in whole.rows if row["name"] == _ONCE))
    timings = [once, *interleave(variants, repetitions, device, say)]
    names = ["encoder and head, forward and backward", *(variant.name for variant in variants)]
    wholes = [once.median] * 6 + [timings[6].median] * 2
    return Table(
        "shares",
        "Shares of a step of the paper's batch, and of the space's own",
        (
            Column("name", "part"),
            Column("median", "median s", "{:.4f}"),
            Column("share", "of a step", "{:.2%}"),
        ),
        [
            {"name": name, "median": t.median, "share": t.median / all_, "seconds": t.seconds}
            for name, t, all_ in zip(names, timings, wholes, strict=True)
        ],
        ("what happens once an epoch is divided by its steps",),
    )


def padded(batch: Batch, length: int, pad: int) -> Batch:
    """The same batch, its texts padded to a length."""
    assert batch.token_BL is not None and batch.mask_BL is not None
    more = (0, length - batch.token_BL.shape[1])
    return dataclasses.replace(
        batch,
        token_BL=functional.pad(batch.token_BL, more, value=pad),
        mask_BL=functional.pad(batch.mask_BL, more, value=False),
    )
