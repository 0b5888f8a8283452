"""The base of both tasks' networks: text encoder, other modalities, and scores of slots.

B utterances; S scored slots; L rows; A their width; D the text encoder's width, or `model.textless_width` without text;
W the width of the result of `encode`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grcf_ray.config import ModelConfig
from grcf_ray.data.batches import Batch
from grcf_ray.model.text_encoder import TextEncoder


class GrcfModel(nn.Module, ABC):
    """A network that encodes each utterance once, and scores it in each slot that it fills.

    Autocast covers the text encoder only. The layers after it are small. In bfloat16 they would give hundreds of
    utterances the same score, and margins of a hundredth would be meaningless.
    """

    head: nn.Sequential

    def __init__(
        self,
        text_encoder: TextEncoder | None,
        config: ModelConfig,
        *,
        width: int,
        audio_dim: int | None,
        vision_dim: int | None,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.width = width
        """D, also the width of z_final."""
        self.modality_dims = {k: v for k, v in (("vision", vision_dim), ("audio", audio_dim)) if v is not None}
        self.fusion_dropout = nn.Dropout(config.fusion_dropout)
        self.unified_dropout = nn.Dropout(config.unified_dropout)
        self.modality_dropout = config.modality_dropout

    def forward(self, batches: Sequence[Batch], slot_S: Tensor) -> Tensor:
        """Return the scores [S]. Each utterance is encoded once, however many slots it fills.

        slot_S: the utterance of each slot, counted through the batches. Each slot has its own dropout mask.
        """
        looked_up = batches if self.text_encoder is None else self.text_encoder.looked_up(batches)
        return self.score(torch.cat([self.encode(batch) for batch in looked_up])[slot_S])

    def encode(self, batch: Batch) -> Tensor:
        """Return the vectors [B, W] that are computed once per utterance, in the dtype of the head."""
        text_BD = None if self.text_encoder is None else self.text_encoder(batch).to(self.dtype)
        with self._full_precision():
            return self._gather(text_BD, batch)

    def represent(self, vector_SW: Tensor) -> Tensor:
        """Return z_final [S, D], the representation before the head."""
        with self._full_precision():
            return self._represent(vector_SW)

    def decide(self, state_SD: Tensor) -> Tensor:
        """Return the scores [S] of z_final: about the centre of the label range, or logits."""
        with self._full_precision():
            return self._decide(state_SD)

    def score(self, vector_SW: Tensor) -> Tensor:
        """Return the scores [S] of the vectors of `encode`."""
        return self.decide(self.represent(vector_SW))

    @abstractmethod
    def _gather(self, text_BD: Tensor | None, batch: Batch) -> Tensor:
        """Combine the text vectors, None without text, with the other modalities: [B, W]."""

    @abstractmethod
    def _represent(self, vector_SW: Tensor) -> Tensor:
        """Return z_final [S, D]; runs outside autocast."""

    @abstractmethod
    def _decide(self, state_SD: Tensor) -> Tensor:
        """Return the scores [S]; runs outside autocast."""

    def _full_precision(self) -> torch.autocast:
        return torch.autocast(next(self.head.parameters()).device.type, enabled=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights outside the text encoder."""
        parameter: Tensor = next(self.head.parameters())
        return parameter.dtype

    @staticmethod
    def rows(batch: Batch, name: str) -> tuple[Tensor, Tensor]:
        """Return the rows [B, L, A] of audio or vision, and their mask [B, L]. ValueError if the batch has none."""
        rows, mask = (
            (batch.vision_BLV, batch.vision_mask_BL) if name == "vision" else (batch.audio_BLA, batch.audio_mask_BL)
        )
        if rows is None or mask is None:
            raise ValueError(f"the model has a branch for {name}, but the batch has no {name}")
        return rows, mask
