"""Attention pooling of a modality's rows, eqs. 1-2."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionPooling(nn.Module):
    """Pool rows with the softmax of a learned projection as weights, eqs. 1-2.

    The projection has the bias that Table 12 counts (dim + 1 parameters), though the softmax does not depend on it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, 1)

    def forward(self, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the pooled rows [B, A]; zero, with zero gradient, for a sample without rows.

        row_BLA: padded rows. mask_BL: true for real rows.
        """
        weight_BL = self.projection(row_BLA).squeeze(-1)
        # The lowest finite number rather than -inf, so that a sample without rows has no NaN in its softmax.
        weight_BL = weight_BL.masked_fill(~mask_BL, torch.finfo(weight_BL.dtype).min).softmax(-1)
        return torch.einsum("bl,bla->ba", weight_BL * mask_BL, row_BLA.to(weight_BL.dtype))


def masked_mean(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the mean [B, D] over the real positions, in single precision at least."""
    hidden_BLD = hidden_BLD.to(torch.promote_types(hidden_BLD.dtype, torch.float32))
    mask_BL1 = mask_BL.unsqueeze(-1).to(hidden_BLD.dtype)
    return (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1).clamp_min(1)
