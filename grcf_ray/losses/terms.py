"""Building blocks of the losses of both tasks. P pairs; B scored slots.

Every function takes one group, [B] or [P], or several at once, [G, B] or [G, P], padded to the size of the largest.
`share` then has the shape of the values: 1/n for each of the n real values of a group, 0 for padding.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PairTerms(NamedTuple):
    """Weighted hinges of P pairs, eqs. 9 and 20; without a pair, all values are 0."""

    weight_P: Tensor
    """w of each pair, detached."""
    hinge_P: Tensor
    """L_rank of each pair, in units of the scores; carries the gradient."""
    share_P: Tensor | None = None

    def loss(self) -> Tensor:
        """Return the mean of weight times hinge: scalar, or [G]."""
        return mean(self.weight_P * self.hinge_P, self.share_P)

    def figures(self) -> dict[str, Tensor]:
        """Return the mean weight, and the share of pairs with positive weight and hinge: scalars or [G], to log."""
        active_P = (self.weight_P * self.hinge_P.detach() > 0).to(self.weight_P.dtype)
        return {"active_pairs": mean(active_P, self.share_P), "pair_weight": mean(self.weight_P, self.share_P)}


def mean(value_P: Tensor, share_P: Tensor | None = None) -> Tensor:
    """Return the mean of each group: scalar, or [G]; 0, attached to the graph, if there are no values."""
    if share_P is None:
        return value_P.sum(-1) / max(value_P.shape[-1], 1)
    return (value_P * share_P).sum(-1)


def standardised(reward_P: Tensor, eps: float, share_P: Tensor | None = None) -> Tensor:
    """Return the advantage of each pair: reward less mean, over population deviation + eps; float64.

    reward_P: float64. In float32 the rounding error of the mean of equal rewards exceeds eps, and would look like an
    advantage.
    """
    centred_P = reward_P - mean(reward_P, share_P).unsqueeze(-1)
    return centred_P / (mean(centred_P.square(), share_P).sqrt() + eps).unsqueeze(-1)


def check_slots(score_B: Tensor, label_B: Tensor, share_B: Tensor | None = None) -> None:
    """Raise ValueError for shapes that would broadcast into a wrong loss, such as [B, 1] with [B]."""
    if score_B.dim() != (1 if share_B is None else 2) or score_B.shape != label_B.shape:
        raise ValueError(f"scores and labels must both be [B], got {list(score_B.shape)} and {list(label_B.shape)}")
