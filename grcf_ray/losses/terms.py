"""Building blocks of the losses of both tasks. P pairs; B scored slots."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PairTerms(NamedTuple):
    """Weighted hinges of P pairs, eqs. 9 and 20; without a pair, all values are 0."""

    weight_P: Tensor
    """w of each pair, detached."""
    hinge_P: Tensor
    """L_rank of each pair, in units of the scores; carries the gradient."""

    def loss(self) -> Tensor:
        """Return the mean of weight times hinge: scalar."""
        return mean(self.weight_P * self.hinge_P)

    def figures(self) -> dict[str, Tensor]:
        """Return the mean weight, and the share of pairs with positive weight and hinge: scalars, for logging."""
        active_P = (self.weight_P * self.hinge_P.detach() > 0).to(self.weight_P.dtype)
        return {"active_pairs": mean(active_P), "pair_weight": mean(self.weight_P)}


def mean(value_P: Tensor) -> Tensor:
    """Return the mean; 0, attached to the graph, if there are no values."""
    return value_P.sum() / max(value_P.numel(), 1)


def standardised(reward_P: Tensor, eps: float) -> Tensor:
    """Return the advantage of each pair: reward less mean, over population deviation + eps; [P], float64.

    reward_P: float64. In float32 the rounding error of the mean of equal rewards exceeds eps, and would look like an
    advantage.
    """
    centred_P = reward_P - mean(reward_P)
    return centred_P / (mean(centred_P.square()).sqrt() + eps)


def check_slots(score_B: Tensor, label_B: Tensor) -> None:
    """Raise ValueError for shapes that would broadcast into a wrong loss, such as [B, 1] with [B]."""
    if score_B.dim() != 1 or score_B.shape != label_B.shape:
        raise ValueError(f"scores and labels must both be [B], got {list(score_B.shape)} and {list(label_B.shape)}")
