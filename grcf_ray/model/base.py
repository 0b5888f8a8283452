"""What the networks of both tasks share: a text encoder, modalities beside it, and scores of slots.

B utterances; S scored slots; L rows; A their width; D the text encoder's width, or `model.textless_width` where there
is none; W the width of what `encode` gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.model.text_encoder import TextEncoder


class GrcfModel(nn.Module, ABC):
    """A network that encodes each utterance once and scores it in as many slots as it fills.

    Autocast covers the text encoder alone. The layers after it are small, and in bfloat16 they would leave hundreds of
    utterances with the same score, and margins of a hundredth without meaning.
    """

    head: nn.Sequential

    def __init__(
        self, text_encoder: TextEncoder | None, *, width: int, audio_dim: int | None, vision_dim: int | None
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.width = width
        self.modality_dims = {k: v for k, v in (("vision", vision_dim), ("audio", audio_dim)) if v is not None}

    def forward(self, batches: Sequence[Batch], slot_S: Tensor) -> Tensor:
        """[S] scores. Each utterance of the batches is encoded once, however many slots it fills.

        slot_S: the utterance of each slot, counted through the batches. Slots have dropout masks of their own.
        """
        looked_up = batches if self.text_encoder is None else self.text_encoder.looked_up(batches)
        return self.score(torch.cat([self.encode(batch) for batch in looked_up])[slot_S])

    def encode(self, batch: Batch) -> Tensor:
        """[B, W] what is computed once an utterance, in the type of the weights outside the text encoder."""
        text_BD = None if self.text_encoder is None else self.text_encoder(batch).to(self.dtype)
        with self._unrounded():
            return self._gather(text_BD, batch)

    def represent(self, vector_SW: Tensor) -> Tensor:
        """[S, D] z_final, the representation before the head."""
        with self._unrounded():
            return self._represent(vector_SW)

    def decide(self, state_SD: Tensor) -> Tensor:
        """[S] scores of what `represent` gives: about the centre of the label range, or logits."""
        with self._unrounded():
            return self._decide(state_SD)

    def score(self, vector_SW: Tensor) -> Tensor:
        """[S] scores of what `encode` gives."""
        return self.decide(self.represent(vector_SW))

    @abstractmethod
    def _gather(self, text_BD: Tensor | None, batch: Batch) -> Tensor:
        """`encode` from the text vectors, which a model without text has none of."""

    @abstractmethod
    def _represent(self, vector_SW: Tensor) -> Tensor:
        """`represent`, outside autocast."""

    @abstractmethod
    def _decide(self, state_SD: Tensor) -> Tensor:
        """`decide`, outside autocast."""

    def _unrounded(self) -> torch.autocast:
        return torch.autocast(next(self.head.parameters()).device.type, enabled=False)

    @property
    def state_width(self) -> int:
        """D, the width of z_final."""
        return self.width

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights outside the text encoder."""
        parameter: Tensor = next(self.head.parameters())
        return parameter.dtype

    @staticmethod
    def rows(batch: Batch, name: str) -> tuple[Tensor, Tensor]:
        """[B, L, A] rows of audio or vision and their mask [B, L]. ValueError where the batch has none."""
        rows, mask = (
            (batch.vision_BLV, batch.vision_mask_BL) if name == "vision" else (batch.audio_BLA, batch.audio_mask_BL)
        )
        if rows is None or mask is None:
            raise ValueError(f"the model has a branch for {name}, but the batch has no {name}")
        return rows, mask
