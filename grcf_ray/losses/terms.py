"""What the losses of both tasks are made of. P pairs; B scored slots."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PairTerms(NamedTuple):
    """Weighted hinges of P pairs, eqs. 9 and 20; with no pair, loss and figures are 0."""

    weight_P: Tensor
    """w of each pair, detached."""
    hinge_P: Tensor
    """L_rank of each pair, in units of the scores; carries the gradient."""

    def loss(self) -> Tensor:
        """Mean of weight times hinge: scalar."""
        return mean(self.weight_P * self.hinge_P)

    def mean_weight(self) -> Tensor:
        """Mean weight: scalar, for logging."""
        return mean(self.weight_P)

    def active_share(self) -> Tensor:
        """Share of the pairs that add to the loss, weight and hinge both positive: scalar, for logging."""
        return mean((self.weight_P * self.hinge_P.detach() > 0).to(self.weight_P.dtype))


def mean(value_P: Tensor) -> Tensor:
    """Mean that is 0, and keeps the graph, where there is nothing to average."""
    return value_P.sum() / max(value_P.numel(), 1)


def standardised(reward_P: Tensor, eps: float) -> Tensor:
    """Advantage of each pair: its reward less their mean, over their population deviation + eps; [P], float64.

    reward_P: float64. In float32 the rounding of the mean of equal rewards is larger than eps, and would pass for an
    advantage.
    """
    centred_P = reward_P - mean(reward_P)
    return centred_P / (mean(centred_P.square()).sqrt() + eps)


def check_slots(score_B: Tensor, label_B: Tensor) -> None:
    """Refuse shapes that would broadcast into a wrong loss, [B, 1] against [B] above all."""
    if score_B.dim() != 1 or score_B.shape != label_B.shape:
        raise ValueError(f"scores and labels must both be [B], got {list(score_B.shape)} and {list(label_B.shape)}")
