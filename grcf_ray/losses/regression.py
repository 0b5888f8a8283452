"""The losses of regression, eqs. 6-11 and the MAE of eq. 13.

Shapes: B scored slots of one group of pairs, repeats counted; P pairs. Scores and labels are in label units. With
`share` (see `terms`), the slots and pairs are those of G groups, [G, B] and [G, P], and so are the losses, [G].
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
    i_P, j_P = pairs_P2[label_B[pairs_P2[:, 0]] != label_B[pairs_P2[:, 1]]].unbind(-1)
    swapped_P = label_B[i_P] < label_B[j_P]
    high_P, low_P = torch.where(swapped_P, j_P, i_P), torch.where(swapped_P, i_P, j_P)
    margin: Tensor | float = base_margin
    if dynamic_margin:
        member_BK = groups.membership(label_B)
        distance_P = groups.membership_distance(member_BK[high_P], member_BK[low_P])
        margin = margins(distance_P, intra_margin, base_margin, margin_step).to(score_B.dtype)
    return ordered_terms(score_B, high_P, low_P, margin, advantage_weighting=advantage_weighting, eps=eps)


def ordered_terms(
    score_B: Tensor,
    high_P: Tensor,
    low_P: Tensor,
    margin_P: Tensor | float,
    share_P: Tensor | None = None,
    *,
    advantage_weighting: bool = True,
    eps: float = 1e-8,
) -> PairTerms:
    """Return weight and hinge of pairs whose order and margins are known, eqs. 8-9.

    score_B: the scores, [B] for any number of groups. high_P, low_P: int64, indices into B of the slot with the higher
    and the lower label. margin_P: m_ij in label units, or a single one for all pairs. Reads nothing back from a GPU.
    """
    gap_P = score_B[high_P] - score_B[low_P]
    weight_P = advantage_weight(gap_P.detach(), eps, share_P) if advantage_weighting else torch.ones_like(gap_P)
    return PairTerms(weight_P, relu(margin_P - gap_P), share_P)


def margins(distance_P: Tensor, intra_margin: float, base_margin: float, margin_step: float) -> Tensor:
    """Return the margins m_ij of eq. 7 from the distances of eq. 6: float64 [P], in label units."""
    return (base_margin + distance_P.double() * margin_step).masked_fill(distance_P == 0, intra_margin)


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
    return moments_loss(score_B, *moments(label_B), margin)


def moments_loss(
    score_B: Tensor, label_mean: Tensor, label_deviation: Tensor, margin: float, share_B: Tensor | None = None
) -> Tensor:
    """Return L_reg of eq. 10 from M_r and D_r, the `moments` of the labels: scalars, or [G] each."""
    score_mean, score_deviation = moments(score_B, share_B)
    squares = (score_mean - label_mean).square(), (score_deviation - label_deviation).square()
    return relu(squares[0] - margin) + relu(squares[1] - margin)


def moments(value_B: Tensor, share_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and population deviation, M and D of eq. 10; D has a zero gradient where it is 0, as for B = 0."""
    mean_1 = mean(value_B, share_B)
    variance = mean((value_B - mean_1.unsqueeze(-1)).square(), share_B)
    flat = variance == 0
    # The root has an infinite gradient at 0, which even a mask after it would turn into NaN.
    return mean_1, variance.masked_fill(flat, 1).sqrt().masked_fill(flat, 0)


def boundary_loss(score_B: Tensor, limit: float, share_B: Tensor | None = None) -> Tensor:
    """Return the boundary loss L_bound, eq. 11: mean(max(0, |score| - limit)).

    score_B: [B], offsets from the centre of the label range. limit: S > 0, in label units. Scalar; 0 if all scores lie
    within the limit, or if B = 0.
    """
    return mean(relu(score_B.abs() - limit), share_B)


def mae_loss(score_B: Tensor, label_B: Tensor, share_B: Tensor | None = None) -> Tensor:
    """Return the mean absolute error L_mae, eq. 13: mean(|score - label|).

    score_B, label_B: [B]. Scalar; 0 if B = 0.
    """
    check_slots(score_B, label_B, share_B)
    return mean((score_B - label_B).abs(), share_B)


def advantage_weight(gap_P: Tensor, eps: float = 1e-8, share_P: Tensor | None = None) -> Tensor:
    """Return the weights w_ij = ReLU(-A_ij) of eq. 9, standardised over the given pairs: [P], in the gaps' dtype.

    gap_P: [P] score_i - score_j over s_i > s_j. 0 if all gaps are equal.
    """
    return relu(-standardised(gap_P.double().sigmoid(), eps, share_P)).to(gap_P.dtype)
