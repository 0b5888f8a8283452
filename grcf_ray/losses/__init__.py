"""The losses of GRCF as pure, differentiable functions, for use in any PyTorch training loop.

Scores and labels are one-dimensional tensors, the labels as offsets from the centre of their range. A batch is compared
pair by pair: `pairs` holds indices into the batch, [P, 2], in either order. Pairs of equal labels are ignored.

Train a model of your own with the group-aware ranking loss (eqs. 6-9) on labels in [-3, 3]:

>>> import torch
>>> from grcf_ray.losses import OrdinalGroups, group_ranking_loss
>>> _ = torch.manual_seed(0)
>>> features = torch.randn(64, 8)
>>> labels = (2 * features[:, 0]).clamp(-3, 3)
>>> model = torch.nn.Linear(8, 1)
>>> optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
>>> groups = OrdinalGroups.named("overlap,5", limit=3.0)
>>> pairs = torch.combinations(torch.arange(64))
>>> for _ in range(50):
...     scores = model(features).squeeze(-1)
...     loss = group_ranking_loss(
...         scores, labels, pairs, groups, intra_margin=0.1, base_margin=0.5, margin_step=0.1
...     )
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()

The ranking of the batch is then almost perfect (eq. 28):

>>> from grcf_ray.metrics import pairwise_accuracy
>>> pairwise_accuracy(scores.detach(), labels) > 0.95
True

Add `distribution_loss` and `boundary_loss` for Stage 1 (eq. 12), or `mae_loss` and `boundary_loss` for Stage 2
(eq. 13). Classification has `separation_loss`, `compactness_loss`, `centering_loss` and `bce_loss` (eqs. 18-26); its
boundary loss (eq. 24) is `grcf_ray.losses.classification.boundary_loss`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grcf_ray.losses.classification import bce_loss, centering_loss, compactness_loss, separation_loss
    from grcf_ray.losses.groups import OrdinalGroups
    from grcf_ray.losses.regression import boundary_loss, distribution_loss, group_ranking_loss, mae_loss

__all__ = [
    "OrdinalGroups",
    "bce_loss",
    "boundary_loss",
    "centering_loss",
    "compactness_loss",
    "distribution_loss",
    "group_ranking_loss",
    "mae_loss",
    "separation_loss",
]

_MODULES = {
    "OrdinalGroups": "groups",
    **dict.fromkeys(("boundary_loss", "distribution_loss", "group_ranking_loss", "mae_loss"), "regression"),
    **dict.fromkeys(("bce_loss", "centering_loss", "compactness_loss", "separation_loss"), "classification"),
}


def __getattr__(name: str) -> Any:
    """Import a loss at first use, so that importing this package does not import torch."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
