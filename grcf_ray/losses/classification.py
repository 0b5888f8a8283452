"""The losses of classification, eqs. 18-26.

Shapes: B scored slots of one group of pairs, repeats counted; P pairs. Labels are offsets from the centre of their
range: the positive class is above 0. With `share` (see `terms`), the slots and pairs are those of G groups, [G, B] and
[G, P], and so are the losses, [G].
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
    first_P = positive_B[i_P]
    positive_P, negative_P = torch.where(first_P, i_P, j_P), torch.where(first_P, j_P, i_P)
    return ordered_terms(logit_B, positive_P, negative_P, margin, advantage_weighting=advantage_weighting)


def ordered_terms(
    logit_B: Tensor,
    positive_P: Tensor,
    negative_P: Tensor,
    margin: float,
    share_P: Tensor | None = None,
    *,
    advantage_weighting: bool = True,
) -> PairTerms:
    """Return weight and hinge of pairs of a positive and a negative slot, eqs. 18-19.

    logit_B: the logits, [B] for any number of groups. positive_P, negative_P: int64, indices into B.
    """
    gap_P = logit_B[positive_P] - logit_B[negative_P]
    weight_P = separation_weight(gap_P.detach()) if advantage_weighting else torch.ones_like(gap_P)
    return PairTerms(weight_P, relu(margin - gap_P), share_P)


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
    return alike_loss(logit_B, i_P, j_P, clip, advantage_weighting=advantage_weighting, eps=eps)


def alike_loss(
    logit_B: Tensor,
    i_P: Tensor,
    j_P: Tensor,
    clip: float,
    share_P: Tensor | None = None,
    *,
    advantage_weighting: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """Return L_comp of eq. 23 over pairs of one class. logit_B: [B] for any number of groups; i_P, j_P: int64."""
    distance_P = (logit_B[i_P] - logit_B[j_P]).square()
    if not advantage_weighting:
        return mean(distance_P, share_P)
    return mean(relu(distance_P * _negative_advantage(distance_P.detach(), clip, eps, share_P)), share_P)


def boundary_loss(logit_B: Tensor, label_B: Tensor, margin: float) -> Tensor:
    """Return the boundary loss L_bound, eq. 24.

    The mean of max(0, margin - logit) over the positives, plus the mean of max(0, logit + margin) over the negatives.
    logit_B, label_B: [B]. margin: m_b, in logits. Scalar; a class without a slot adds 0.
    """
    check_slots(logit_B, label_B)
    shares = (side_B.to(logit_B.dtype) / side_B.sum().clamp_min(1) for side_B in (label_B > 0, label_B <= 0))
    return sides_loss(logit_B, margin, *shares)


def sides_loss(logit_B: Tensor, margin: float, positive_share_B: Tensor, negative_share_B: Tensor) -> Tensor:
    """Return L_bound of eq. 24. The shares are 1/n for the n slots of the class and 0 elsewhere."""
    return mean(relu(margin - logit_B), positive_share_B) + mean(relu(logit_B + margin), negative_share_B)


def centering_loss(logit_B: Tensor, share_B: Tensor | None = None) -> Tensor:
    """Return the distance of the mean logit from 0, L_cal of eq. 25. logit_B: [B]. Scalar; 0 if B = 0."""
    return mean(logit_B, share_B).abs()


def bce_loss(logit_B: Tensor, label_B: Tensor, share_B: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy of the logits, eq. 26. logit_B, label_B: [B]. Scalar; 0 if B = 0."""
    check_slots(logit_B, label_B, share_B)
    target_B = (label_B > 0).to(logit_B.dtype)
    return mean(binary_cross_entropy_with_logits(logit_B, target_B, reduction="none"), share_B)


def _negative_advantage(distance_P: Tensor, clip: float, eps: float, share_P: Tensor | None) -> Tensor:
    """Return -A of eq. 22: [P], in the distances' dtype."""
    return -standardised(torch.exp(-distance_P.double()), eps, share_P).clamp(-clip, clip).to(distance_P.dtype)
