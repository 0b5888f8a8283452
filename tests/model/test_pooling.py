from __future__ import annotations

import pytest
import torch
from torch import Tensor

from grcf_ray.model.pooling import AttentionPooling, masked_mean

MASK_BL = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1]]).bool()


def rows(seed: int = 0) -> Tensor:
    return torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooler() -> AttentionPooling:
    torch.manual_seed(1)
    return AttentionPooling(3).double()


def pooled_loop(row_BLA: Tensor, mask_BL: Tensor, pool: AttentionPooling) -> Tensor:
    """Eqs. 1-2, row by row."""
    weight_A = pool.projection.weight[0]
    pooled = []
    for row_LA, mask_L in zip(row_BLA, mask_BL, strict=True):
        real = [row for row, mask in zip(row_LA, mask_L, strict=True) if mask]
        strength = [torch.exp(weight_A @ row) for row in real]
        total = sum(strength)
        pooled.append(sum(value / total * row for value, row in zip(strength, real, strict=True)))
    return torch.stack(pooled)


def test_pooling_matches_a_loop() -> None:
    pool, row_BLA = pooler(), rows()
    actual, loop = pool(row_BLA, MASK_BL), pooled_loop(row_BLA, MASK_BL, pool)
    torch.testing.assert_close(actual, loop, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(pooled.pow(3).sum(), pool.projection.weight)[0] for pooled in (actual, loop)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)
    assert grads[0].abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_without_rows_gives_zeros_and_zero_gradients(dtype: torch.dtype) -> None:
    pool = pooler().to(dtype)
    row_BLA = rows().to(dtype).requires_grad_()
    mask_BL = MASK_BL.clone()
    mask_BL[1] = False
    pooled = pool(row_BLA, mask_BL)
    assert pooled[1].tolist() == [0, 0, 0]
    assert (pooled[[0, 2, 3]] != 0).all()
    grads = torch.autograd.grad(pooled.sum(), [row_BLA, *pool.parameters()])
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[0][1] == 0).all() and (grads[0][0] != 0).all()
    # Nobody has rows.
    pooled = pool(row_BLA, torch.zeros_like(mask_BL))
    grads = torch.autograd.grad(pooled.sum(), [row_BLA, *pool.parameters()])
    assert all((grad == 0).all() for grad in (pooled, *grads))


def test_masked_mean_matches_a_loop() -> None:
    hidden_BLD = rows(2)
    means = [hidden[mask].mean(0) for hidden, mask in zip(hidden_BLD, MASK_BL, strict=True)]
    torch.testing.assert_close(masked_mean(hidden_BLD, MASK_BL), torch.stack(means))
    assert masked_mean(hidden_BLD, torch.zeros_like(MASK_BL)).tolist() == torch.zeros(4, 3).tolist()
