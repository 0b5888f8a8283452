"""GRCF for classification (appendix A.1): the mean text vector attends to the rows of other modalities, with a gate.

B utterances; S scored slots; L keys of all other modalities; D the text encoder's width. W = 2 D + 1: text vector,
fused vector, and whether the sample has anything but text. W = D if the model uses text only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grcf_ray.config import NEEDS_TEXT
from grcf_ray.data.batches import Batch
from grcf_ray.errors import ConfigError
from grcf_ray.model.base import ModelSetup, MultimodalModel
from grcf_ray.model.pooling import AttentionPooling


class GrcfClassifier(MultimodalModel):
    """The network of appendix A.1.

    Keys and values are the projected rows of audio, then vision, each with an embedding of its type. A sample without
    rows is scored by its text, as if its gate were 1.

    `model.non_text` pooled gives each modality one key, its attention-pooled rows (eqs. 1-2), instead of one per row.
    ConfigError if the heads do not divide the width, or without text.
    """

    def __init__(self, setup: ModelSetup) -> None:
        config, text_encoder = setup.config, setup.text_encoder
        if text_encoder is None:
            raise ConfigError(NEEDS_TEXT.format(config.modalities))
        width = text_encoder.width
        if width % config.attention_heads:
            raise ConfigError(
                f"model.attention_heads = {config.attention_heads} does not divide the backbone's width {width}"
            )
        super().__init__(setup)
        self.fusion_dropout = nn.Dropout(config.fusion_dropout)
        self.unified_dropout = nn.Dropout(config.unified_dropout)
        self.modality_dropout = config.modality_dropout
        # In the order of keys and values.
        self.modality_dims = {name: self.modality_dims[name] for name in sorted(self.modality_dims)}
        self.non_text = config.non_text
        for name, dim in self.modality_dims.items():
            if self.non_text == "pooled":
                self.add_module(f"{name}_pooler", AttentionPooling(dim))
            self.add_module(f"{name}_projection", nn.Linear(dim, width))
            self.add_module(f"{name}_norm", nn.LayerNorm(width))
        if self.modality_dims:
            self.type_embedding = nn.Embedding(len(self.modality_dims), width)
            self.attention = nn.MultiheadAttention(width, config.attention_heads, batch_first=True)
            gates = width if config.gate == "vector" else 1
            self.gate = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, gates))
        self.head = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 1))

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return [B, W]: z_text, z_fused of eq. 14 (0 without a row), and 1 if another modality has a row."""
        assert text is not None
        text_BD = text
        if not self.modality_dims:
            return text_BD
        keys, masks = [], []
        for index, name in enumerate(self.modality_dims):
            rows, mask = self.rows(batch, name)
            if self.non_text == "pooled":
                rows = self.get_submodule(f"{name}_pooler")(rows, mask).unsqueeze(1)
                mask = mask.any(1, keepdim=True)
            projected = self.get_submodule(f"{name}_norm")(self.get_submodule(f"{name}_projection")(rows))
            keys.append(projected + self.type_embedding.weight[index])
            masks.append(mask)
        key_BLD, mask_BL = torch.cat(keys, dim=1), torch.cat(masks, dim=1)
        any_B1 = mask_BL.any(1, keepdim=True)
        # A sample without a key would be a softmax over nothing: it sees its padding, and the result is left out.
        hidden_BL = ~(mask_BL | ~any_B1)
        fused_B1D, _ = self.attention(
            text_BD.unsqueeze(1), key_BLD, key_BLD, key_padding_mask=hidden_BL, need_weights=False
        )
        present_B1 = any_B1.to(text_BD.dtype)
        return torch.cat([text_BD, fused_B1D.squeeze(1) * present_B1, present_B1], dim=-1)

    def _represent(self, vector_SW: Tensor) -> Tensor:
        """Return z_final [S, D] of eq. 16, after dropout."""
        if not self.modality_dims:
            text: Tensor = self.unified_dropout(vector_SW)
            return text
        text_SD, fused_SD, present_S1 = torch.split(vector_SW, [self.width, self.width, 1], dim=-1)
        fused_SD = self.fusion_dropout(fused_SD)
        if self.training and self.modality_dropout:
            keep_S1 = torch.rand(len(vector_SW), 1, device=vector_SW.device) >= self.modality_dropout
            present_S1 = present_S1 * keep_S1
        gate = torch.sigmoid(self.gate(torch.cat([text_SD, fused_SD], dim=-1)))
        gate = torch.where(present_S1 > 0, gate, torch.ones_like(gate))
        final_SD: Tensor = self.unified_dropout(gate * text_SD + (1 - gate) * fused_SD)
        return final_SD
