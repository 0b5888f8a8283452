"""The losses of regression, eqs. 6-11 and the MAE of eq. 13.

Shapes: B scored slots of one group of pairs, repeats counted; P pairs. Scores and labels are in label units.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu

from grcf_ray.losses.groups import OrdinalGroups
from grcf_ray.losses.terms import PairTerms, check_slots, mean, standardised


def ranking_terms(
    score_B: Tensor,
    label_B: Tensor,
    pairs_P2: Tensor,
    groups: OrdinalGroups,
    *,
    intra_margin: float,
    base_margin: float,
    margin_step: float,
    advantage_weighting: bool = True,
    dynamic_margin: bool = True,
    eps: float = 1e-8,
) -> PairTerms:
    """Return weight and hinge of each pair of different labels, eqs. 6-9; the arguments are those of
    `group_ranking_loss`."""
    check_slots(score_B, label_B)
    ordered_P = label_B[pairs_P2[:, 0]] != label_B[pairs_P2[:, 1]]
    i_P, j_P = pairs_P2[ordered_P].unbind(-1)
    # A sign is exact, and cheaper than swapping indices so that s_i > s_j.
    gap_P = (score_B[i_P] - score_B[j_P]) * (label_B[i_P] - label_B[j_P]).sign().to(score_B.dtype)

    if dynamic_margin:
        member_BK = groups.membership(label_B)
        distance_P = groups.membership_distance(member_BK[i_P], member_BK[j_P])
        between_P = base_margin + distance_P.to(gap_P.dtype) * margin_step
        margin_P = between_P.masked_fill(distance_P == 0, intra_margin)
    else:
        margin_P = torch.full_like(gap_P, base_margin)

    weight_P = advantage_weight(gap_P.detach(), eps) if advantage_weighting else torch.ones_like(margin_P)
    return PairTerms(weight_P, relu(margin_P - gap_P))


def group_ranking_loss(
    score_B: Tensor,
    label_B: Tensor,
    pairs_P2: Tensor,
    groups: OrdinalGroups,
    *,
    intra_margin: float,
    base_margin: float,
    margin_step: float,
    advantage_weighting: bool = True,
    dynamic_margin: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """Return the group-aware ranking loss L_group, eq. 9: the mean of w_ij max(0, m_ij - (score_i - score_j)).

    The mean is over the pairs with s_i > s_j. The margin m_ij is `intra_margin` for two labels that share a group, else
    `base_margin` + distance * `margin_step` (eqs. 6, 7). The weight is w_ij = ReLU(-A_ij), detached. A_ij is the reward
    sigmoid(score_i - score_j), standardised over the pairs (population deviation + `eps`). So only pairs that are
    harder than the mean count, and equally hard pairs, or a single pair, give a loss of 0.

    score_B, label_B: [B], labels as offsets from the centre of their range. pairs_P2: int64 [P, 2], indices into B in
    either order; pairs of equal labels are left out, and N_p counts the rest. Margins: in label units.
    `advantage_weighting=False` sets w_ij = 1, `dynamic_margin=False` sets m_ij = `base_margin`. Scalar; 0 with a zero
    gradient if no pair is left.
    """
    return ranking_terms(
        score_B,
        label_B,
        pairs_P2,
        groups,
        intra_margin=intra_margin,
        base_margin=base_margin,
        margin_step=margin_step,
        advantage_weighting=advantage_weighting,
        dynamic_margin=dynamic_margin,
        eps=eps,
    ).loss()


def distribution_loss(score_B: Tensor, label_B: Tensor, margin: float) -> Tensor:
    """Return the distribution regularisation L_reg, eq. 10: [(M_p - M_r)^2 - margin]+ + [(D_p - D_r)^2 - margin]+.

    M is the mean and D the population deviation over the slots. score_B, label_B: [B]. margin: in squared label units.
    Scalar; 0 if B = 0. If all scores are equal, the gradient of D_p is taken as 0.
    """
    check_slots(score_B, label_B)
    if len(score_B) == 0:
        return score_B.sum() * 0
    mean_gap = score_B.mean() - label_B.mean()
    deviation_gap = score_B.std(correction=0) - label_B.std(correction=0)
    return relu(mean_gap.square() - margin) + relu(deviation_gap.square() - margin)


def boundary_loss(score_B: Tensor, limit: float) -> Tensor:
    """Return the boundary loss L_bound, eq. 11: mean(max(0, |score| - limit)).

    score_B: [B], offsets from the centre of the label range. limit: S > 0, in label units. Scalar; 0 if all scores lie
    within the limit, or if B = 0.
    """
    return mean(relu(score_B.abs() - limit))


def mae_loss(score_B: Tensor, label_B: Tensor) -> Tensor:
    """Return the mean absolute error L_mae, eq. 13: mean(|score - label|).

    score_B, label_B: [B]. Scalar; 0 if B = 0.
    """
    check_slots(score_B, label_B)
    return mean((score_B - label_B).abs())


def advantage_weight(gap_P: Tensor, eps: float = 1e-8) -> Tensor:
    """Return the weights w_ij = ReLU(-A_ij) of eq. 9, standardised over the given pairs: [P], in the gaps' dtype.

    gap_P: [P] score_i - score_j over s_i > s_j. 0 if all gaps are equal.
    """
    return relu(-standardised(gap_P.double().sigmoid(), eps)).to(gap_P.dtype)
