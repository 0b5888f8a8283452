"""Compare an optimizer step with that of a loop that encodes both members of every pair."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from grcf_ray.bench.measure import TIMES, Variant, interleave, kept_bytes, timed_rows
from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.data.batches import Batch, collate, length_sorted, micro_batches
from grcf_ray.data.features import Features
from grcf_ray.data.pairs import Group, Step, draw_pairs, epoch_steps
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.stage import StageLoop, predict

if TYPE_CHECKING:
    # A process of benchmarks/end_to_end.py imports this module and must not pay for Ray.
    from grcf_ray.bench.setup import Setup

PAPER_STEP = {"pairs.pairs_per_group": 96, "pairs.groups_per_step": 8}
"""The paper's batch: eight groups of 96 pairs."""
SMALL_STEP = {"pairs.pairs_per_group": 32, "pairs.groups_per_step": 1}
"""The batch of the search spaces for CPUs: a group of 32 pairs."""

_COMPARED = {"pairs.groups_per_step": 2}
"""A smaller step for the comparison of gradients, since the loop takes all of its pairs."""

_SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows of the matrices whose product gives a device's peak speed: enough to keep it busy for a millisecond or more."""

_ONCE = "each utterance once"
_COLUMNS = (
    Column("name", "step of 768 pairs"),
    *TIMES,
    Column("bound", "bound by tokens", "{:.2f}"),
    Column("kept_mb", "activations, MB", "{:.0f}"),
    Column("peak_share", "of peak", "{:.0%}"),
    Column("difference", "gradient, rel. L2", "{:.1e}"),
)


class LiteralStep:
    """A step that encodes both members of every pair, a group at a time.

    sort: batch utterances of similar length; otherwise pad all texts to `features.max_tokens`.
    """

    def __init__(self, loop: StageLoop, step: Step, *, sort: bool) -> None:
        self.loop, self.step, self.sort = loop, step, sort

    def batches(self, group: int) -> tuple[list[Batch], NDArray[np.int64]]:
        """Return the encoder's batches of a group's slots, and the place of each slot in them."""
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
        """Add the gradient of the first `groups` groups of the step [default: all]."""
        loop = self.loop
        for index, group in enumerate(self.step.groups[:groups]):
            batches, place_S = self.batches(index)
            moved = [batch.to(loop.device, loop.dtype) for batch in batches]
            with loop.autocast():
                score_S = loop.model(moved, torch.from_numpy(place_S).to(loop.device))
            _, loss = loop.totals(score_S, constants(loop, self.step, [group]))
            loss.backward()  # type: ignore[no-untyped-call]

    def tokens(self) -> int:
        """Return the number of encoded subwords, with padding."""
        return sum(batch.tokens for group in range(len(self.step.groups)) for batch in self.batches(group)[0])


def constants(loop: StageLoop, step: Step, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Return what the labels decide about some groups of a step, on the device of the loop."""
    known = loop.objective.constants(step.utterance_U, groups)
    return {name: torch.from_numpy(array).to(loop.device) for name, array in known.items()}


def new_loop(
    features: Features, config: RunConfig, device: torch.device, changes: dict[str, Any], *, dropout: bool = True
) -> StageLoop:
    """Return a Stage 1 loop with fresh weights that writes no checkpoint."""
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
    """Return a full step of the first epoch."""
    pairs = loop.config.pairs
    drawn = draw_pairs(
        len(loop.features.train), pairs.pairs_per_group * pairs.groups_per_step, np.random.default_rng(loop.seed)
    )
    return next(iter(epoch_steps(drawn, pairs)))


def step_table(setup: Setup) -> Table:
    """Time a step that encodes each utterance once, and compare its gradients with those of the loop over pairs."""
    (features, config), device = setup.paper_features(), setup.device
    loop = new_loop(features, config, device, {**PAPER_STEP, **_unbounded(config)})
    bounded = new_loop(features, config, device, {**PAPER_STEP, "pairs.activation_tokens": _group_tokens(config)})
    step = first_step(loop)
    literal, by_length = LiteralStep(loop, step, sort=False), LiteralStep(loop, step, sort=True)
    groups = len(step.groups)
    variants = [
        Variant(f"pair by pair, padded to {config.features.max_tokens}", lambda: literal.backward(1), groups),
        Variant("pair by pair, sorted by length", lambda: by_length.backward(1), groups),
        Variant(_ONCE, lambda: loop.backward(step)),
        Variant("each once, within the first line's memory", lambda: bounded.backward(step)),
    ]
    order_U = length_sorted(features.train, step.utterance_U)
    cut = micro_batches(features, features.train, order_U, config.pairs.micro_batch_tokens, device=device)
    tokens_once = sum(batch.tokens for batch in cut)
    tokens = [literal.tokens(), by_length.tokens(), tokens_once, tokens_once]
    setup.say("gradients")
    differences = _differences(features, config, device)
    setup.say("activations")
    # These calls also warm up.
    kept, operations = [], []
    for variant in variants:
        owner = bounded if variant is variants[-1] else loop
        with FlopCounterMode(display=False) as counter:
            kept.append(kept_bytes(variant.run, list(owner.model.parameters())) / 1e6)
        operations.append(variant.scale * counter.get_total_flops())
    dtype, side = _matmul_dtype(loop), _SIDE.get(device.type, _SIDE["cpu"])
    peak = matmul_flops(setup, dtype, side)
    bounds = [tokens[0] / count for count in tokens]
    rows = timed_rows(setup, variants, warm=True, bound=bounds, kept_mb=kept, difference=differences)
    for row, count in zip(rows, operations, strict=True):
        row["peak_share"] = count / row["median"] / peak
    return Table(
        "step",
        "An optimizer step of the paper's batch: pairs share encoded utterances",
        _COLUMNS,
        rows,
        (
            f"{groups} groups of {PAPER_STEP['pairs.pairs_per_group']} pairs, {len(step.utterance_U)} distinct "
            f"utterances in {2 * sum(len(g.pairs_P2) for g in step.groups)} slots; time of the loops over pairs: "
            f"one group, times {groups}",
            f"gradients: difference to the first line in {_comparison_precision(config)}, without dropout, "
            f"on a step of {_COMPARED['pairs.groups_per_step']} groups",
            f"of peak: floating-point operations of matrix products per second, relative to the {peak / 1e12:.3g} "
            f"tera-operations of a product of two matrices {side} x {side} in {str(dtype).removeprefix('torch.')}",
        ),
    )


def matmul_flops(setup: Setup, dtype: torch.dtype, side: int) -> float:
    """Return the floating-point operations per second of a large product of square matrices, in its fastest call."""
    matrix = torch.randn(side, side, device=setup.device, dtype=dtype)
    variant = Variant("a matrix product", lambda: matrix @ matrix)
    (seconds,) = interleave([variant], setup.repetitions, setup.device, setup.say)
    return float(2 * side**3 / min(seconds))


def _matmul_dtype(loop: StageLoop) -> torch.dtype:
    """Return the precision of the encoder's matrix products."""
    kind = loop.device.type
    with loop.autocast():
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else loop.dtype


def _group_tokens(config: RunConfig) -> int:
    """Return the subwords of a group in the loop over pairs, whose activations bound its memory."""
    return 2 * PAPER_STEP["pairs.pairs_per_group"] * config.features.max_tokens


def _unbounded(config: RunConfig) -> dict[str, int]:
    """Return the setting that keeps all activations of a step, whatever the length of its texts."""
    return {"pairs.activation_tokens": PAPER_STEP["pairs.groups_per_step"] * _group_tokens(config)}


def _comparison_precision(config: RunConfig) -> str:
    """Return the precision for gradients: a low one rounds differently from batch to batch."""
    return "float64" if config.train.precision == "float64" else "float32"


def _differences(features: Features, config: RunConfig, device: torch.device) -> list[float | None]:
    gradients = []
    for variant in ("padded", "sorted", "once", "bounded"):
        # A bound of one subword makes the encoder run twice.
        budget = {"pairs.activation_tokens": 1} if variant == "bounded" else _unbounded(config)
        changes = {**PAPER_STEP, **_COMPARED, **budget, "train.precision": _comparison_precision(config)}
        loop = new_loop(features, config, device, changes, dropout=False)
        step = first_step(loop)
        if variant in ("once", "bounded"):
            loop.backward(step)
        else:
            LiteralStep(loop, step, sort=variant == "sorted").backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in loop.model.parameters() if p.grad is not None]))
    first, *others = gradients
    return [None, *(((other - first).norm() / first.norm()).item() for other in others)]


def shares_table(setup: Setup) -> Table:
    """Time the other parts of a step, and validation: for the paper's batch and for the space's.

    The time of a step comes from the part `step`, if it has run.
    """
    features, config = setup.paper_features()
    device, say, repetitions = setup.device, setup.say, setup.repetitions
    loop = new_loop(features, config, device, {**PAPER_STEP, **_unbounded(config), "pairs.pairs_per_epoch": None})
    small_loop = new_loop(features, config, device, {})
    step, small_step = first_step(loop), first_step(small_loop)
    small_steps = small_loop.steps_per_epoch
    loop.backward(step)
    # A parameter group's own `fused` would override the optimizer's argument.
    groups = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in loop.optimizer.param_groups]
    unfused = torch.optim.AdamW(groups, fused=False, foreach=True)
    slots = sum(len(group.slot_S) for group in step.groups)
    budget = loop.config.pairs.micro_batch_tokens

    def losses() -> None:
        score_S = torch.zeros(slots, device=device, requires_grad=True)
        _, loss = loop.totals(score_S, constants(loop, step, step.groups))
        loss.backward()  # type: ignore[no-untyped-call]

    def validate() -> None:
        predict(loop.model, loop.features, loop.features.valid, device=device, token_budget=budget)

    variants = [
        Variant("losses of all groups, forward and backward", losses),
        Variant(
            f"pairs, drawn and grouped once an epoch of {loop.steps_per_epoch} steps",
            lambda: list(loop.steps()),
            1 / loop.steps_per_epoch,
        ),
        Variant("AdamW, fused", loop.optimizer.step),
        Variant("AdamW, not fused", unfused.step),
        Variant(f"validation, once an epoch of {loop.steps_per_epoch} steps", validate, 1 / loop.steps_per_epoch),
        Variant("a full step of the space's batch", lambda: small_loop.take_step(small_step)),
        Variant(f"validation, once an epoch of {small_steps} of those", validate, 1 / small_steps),
    ]
    if "step" in setup.tables:
        once = next(row["seconds"] for row in setup.tables["step"].rows if row["name"] == _ONCE)
    else:
        (once,) = interleave([Variant(_ONCE, lambda: loop.backward(step))], repetitions, device, say, warm=True)
    timings = [once, *interleave(variants, repetitions, device, say)]
    names = ["encoder and head, forward and backward", *(variant.name for variant in variants)]
    medians = [statistics.median(seconds) for seconds in timings]
    rows = [
        # The last rows are of the space's batch.
        {"name": name, "median": median, "share": median / medians[0 if place < 6 else 6], "seconds": seconds}
        for place, (name, median, seconds) in enumerate(zip(names, medians, timings, strict=True))
    ]
    columns = (Column("name", "part"), Column("median", "median s", "{:.4f}"), Column("share", "of a step", "{:.2%}"))
    title = "Shares of a step of the paper's batch and of the space's batch"
    return Table("shares", title, columns, rows, ("work done once an epoch is divided by the steps of the epoch",))


def padded(batch: Batch, length: int, pad: int) -> Batch:
    """Return the batch with its texts padded to a length."""
    assert batch.token_BL is not None and batch.mask_BL is not None
    more = (0, length - batch.token_BL.shape[1])
    return dataclasses.replace(
        batch,
        token_BL=functional.pad(batch.token_BL, more, value=pad),
        mask_BL=functional.pad(batch.mask_BL, more, value=False),
        full=batch.full and not more[1],
    )
