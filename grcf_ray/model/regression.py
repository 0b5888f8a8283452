"""GRCF for regression (section 3.1): pool, project, concatenate, fuse, unify, scaled tanh.

B utterances; S scored slots; D as in `base`; W = D for each modality of the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.model.base import ModelSetup, MultimodalModel
from grcf_ray.model.pooling import AttentionPooling


class GrcfRegressor(MultimodalModel):
    """The network of section 3.1, with the parameter counts of Table 12.

    A modality whose dim is None has no branch, and the fusion is narrower by D; so is that of a model without text.
    Half the label range, S, scales the reach of the tanh (3.5 for S = 3).
    """

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        config, width = setup.config, self.width
        self.fusion_dropout = nn.Dropout(config.fusion_dropout)
        self.unified_dropout = nn.Dropout(config.unified_dropout)
        self.modality_dropout = config.modality_dropout
        for name, dim in self.modality_dims.items():
            self.add_module(f"{name}_pooler", AttentionPooling(dim))
            self.add_module(f"{name}_norm", nn.LayerNorm(width))
            self.add_module(f"{name}_projection", nn.Linear(dim, width))
        self.fusion = nn.Linear(width * len(self.sequence_dims), width)
        self.unified = nn.Linear(width, width)
        self.head = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 1))
        self.output_scale = config.output_scale * setup.half_range / 3

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return the concatenated modality vectors [B, W], eq. 3; zeros for a missing modality."""
        parts = [] if text is None else [text]
        for name in self.modality_dims:
            rows, mask = self.rows(batch, name)
            pooled = self.get_submodule(f"{name}_projection")(self.get_submodule(f"{name}_pooler")(rows, mask))
            parts.append(self.get_submodule(f"{name}_norm")(pooled) * mask.any(1, keepdim=True))
        return torch.cat(parts, dim=-1)

    def _represent(self, vector_SW: Tensor) -> Tensor:
        """Return z_final [S, D], the fused and unified representation before the head."""
        if self.training and self.modality_dropout:
            vector_SW = self._drop_modalities(vector_SW)
        fused_SD = self.fusion_dropout(torch.relu(self.fusion(vector_SW)))
        unified_SD: Tensor = self.unified_dropout(torch.relu(self.unified(fused_SD)))
        return unified_SD

    def _decide(self, state_SD: Tensor) -> Tensor:
        """Return the scores [S] about the centre of the label range, eq. 5."""
        return self.output_scale * torch.tanh(self.head(state_SD).squeeze(-1))

    def _drop_modalities(self, vector_SW: Tensor) -> Tensor:
        n_slots = len(vector_SW)
        keep_SM = torch.rand(n_slots, len(self.modality_dims), device=vector_SW.device) >= self.modality_dropout
        if self.text_encoder is not None:
            keep_SM = torch.cat([keep_SM.new_ones(n_slots, 1), keep_SM], dim=1)
        return vector_SW * keep_SM.repeat_interleave(self.width, dim=1)
