"""The losses of classification, eqs. 18-26.

Shapes: B scored slots of one group of pairs, repeats counted; P pairs. Labels are offsets from the centre of their
range: the positive class is above 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from grcf_ray.losses.terms import PairTerms, check_slots, mean, standardised


def separation_terms(
    logit_B: Tensor, label_B: Tensor, pairs_P2: Tensor, margin: float, *, advantage_weighting: bool = True
) -> PairTerms:
    """Return weight and hinge of each pair of both classes, eqs. 18-19; the arguments are those of
    `separation_loss`."""
    check_slots(logit_B, label_B)
    positive_B = label_B > 0
    i_P, j_P = pairs_P2[positive_B[pairs_P2[:, 0]] != positive_B[pairs_P2[:, 1]]].unbind(-1)
    # A sign is exact, and cheaper than swapping indices so that i is the positive.
    gap_P = (logit_B[i_P] - logit_B[j_P]) * torch.where(positive_B[i_P], 1, -1).to(logit_B.dtype)
    weight_P = separation_weight(gap_P.detach()) if advantage_weighting else torch.ones_like(gap_P)
    return PairTerms(weight_P, relu(margin - gap_P))


def separation_weight(gap_P: Tensor) -> Tensor:
    """Return the weights w = 1 - sigmoid(logit_pos - logit_neg) of eq. 19: [P]. gap_P: [P] logit_pos - logit_neg."""
    return torch.sigmoid(-gap_P)


def separation_loss(
    logit_B: Tensor, label_B: Tensor, pairs_P2: Tensor, margin: float, *, advantage_weighting: bool = True
) -> Tensor:
    """Return the separation loss L_sep, eq. 20: the mean of w max(0, margin - (logit_pos - logit_neg)).

    The mean is over pairs of both classes. The weight is w = 1 - sigmoid(logit_pos - logit_neg), detached (eq. 19);
    `advantage_weighting=False` sets it to 1.

    logit_B, label_B: [B]. pairs_P2: int64 [P, 2], indices into B in either order; pairs of one class are left out.
    margin: m_sep of eq. 18, in logits. Scalar; 0 with a zero gradient if no pair is left.
    """
    return separation_terms(logit_B, label_B, pairs_P2, margin, advantage_weighting=advantage_weighting).loss()


def compactness_loss(
    logit_B: Tensor,
    label_B: Tensor,
    pairs_P2: Tensor,
    clip: float,
    *,
    advantage_weighting: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """Return the compactness loss L_comp, eq. 23: the mean of max(0, (logit_i - logit_j)^2 (-A)).

    The mean is over pairs of one class. The advantage A is the reward exp(-(logit_i - logit_j)^2), standardised over
    the pairs (population deviation + `eps`), clipped to +-`clip` and detached (eq. 22). So only pairs further apart
    than the mean count. `advantage_weighting=False` sets A to -1.

    logit_B, label_B: [B]. pairs_P2: int64 [P, 2], indices into B; pairs of both classes are left out. Scalar; 0 with a
    zero gradient if no pair is left.
    """
    check_slots(logit_B, label_B)
    positive_B = label_B > 0
    i_P, j_P = pairs_P2[positive_B[pairs_P2[:, 0]] == positive_B[pairs_P2[:, 1]]].unbind(-1)
    distance_P = (logit_B[i_P] - logit_B[j_P]).square()
    weight_P = (
        _negative_advantage(distance_P.detach(), clip, eps) if advantage_weighting else torch.ones_like(distance_P)
    )
    return mean(relu(distance_P * weight_P))


def boundary_loss(logit_B: Tensor, label_B: Tensor, margin: float) -> Tensor:
    """Return the boundary loss L_bound, eq. 24.

    The mean of max(0, margin - logit) over the positives, plus the mean of max(0, logit + margin) over the negatives.
    logit_B, label_B: [B]. margin: m_b, in logits. Scalar; a class without a slot adds 0.
    """
    check_slots(logit_B, label_B)
    positive_B = label_B > 0
    return mean(relu(margin - logit_B[positive_B])) + mean(relu(logit_B[~positive_B] + margin))


def centering_loss(logit_B: Tensor) -> Tensor:
    """Return the distance of the mean logit from 0, L_cal of eq. 25. logit_B: [B]. Scalar; 0 if B = 0."""
    return mean(logit_B).abs()


def bce_loss(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """Return the binary cross-entropy of the logits, eq. 26. logit_B, label_B: [B]. Scalar; 0 if B = 0."""
    check_slots(logit_B, label_B)
    return mean(binary_cross_entropy_with_logits(logit_B, (label_B > 0).to(logit_B.dtype), reduction="none"))


def _negative_advantage(distance_P: Tensor, clip: float, eps: float) -> Tensor:
    """Return -A of eq. 22: [P], in the distances' dtype."""
    return -standardised(torch.exp(-distance_P.double()), eps).clamp(-clip, clip).to(distance_P.dtype)
