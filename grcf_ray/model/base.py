"""What every model offers to the stage loop: vectors of utterances, and scores of slots.

B utterances; U distinct utterances of a group of pairs; S scored slots; L rows or subwords; A the width of rows; D the
text encoder's width, or `model.textless_width` without text; W the width of the result of `encode`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from grcf_ray.config import ModelConfig, Task
from grcf_ray.data.batches import Batch
from grcf_ray.model.text_encoder import TextEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSetup:
    """The parts and sizes that a model is built from."""

    text_encoder: TextEncoder | None
    """None for a model without text."""
    config: ModelConfig
    task: Task
    audio_dim: int | None
    """Width of audio rows; None if the model has no audio."""
    vision_dim: int | None
    half_range: float
    """S, half the label range."""
    n_train: int = 0
    """Number of training utterances, for a model that keeps a state for each."""

    @property
    def options(self) -> Any:
        """The model's own options."""
        return self.config.options


class MultimodalModel(nn.Module, ABC):
    """A network that encodes each utterance once, and scores it in each slot that it fills.

    A model defines `_gather`, and the head: a module whose parameters follow all others. `width` is that of z_final.
    It reads one text vector per utterance, or with `reads_states` the state of each subword.

    Autocast covers the text encoder only. The layers after it are small. In bfloat16 they would give hundreds of
    utterances the same score, and margins of a hundredth would be meaningless.

    A gate inside the text encoder (Multimodal Adaptation Gate) is a function for `TextEncoder.gate_at`. It lies above
    the frozen layers, so their output is computed once as for any model.
    """

    reads_states: ClassVar[bool] = False
    """Whether `_gather` gets the states of the subwords [B, L, D] in place of the text vectors [B, D]."""
    fusion: nn.Module
    """The layers from the vectors of `encode` to z_final, unless the model defines `_represent`."""
    head: nn.Module

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__()
        self.text_encoder = setup.text_encoder
        self.task = setup.task
        self.width = setup.config.textless_width if setup.text_encoder is None else setup.text_encoder.width
        """Width of z_final: D, unless the model sets another."""
        named = (("vision", setup.vision_dim), ("audio", setup.audio_dim))
        self.modality_dims = {name: dim for name, dim in named if dim is not None}

    def forward(self, batches: Sequence[Batch], slot_S: Tensor) -> Tensor:
        """Return the scores [S]. Each utterance is encoded once, however many slots it fills.

        slot_S: the utterance of each slot, counted through the batches. Each slot has its own dropout mask.
        """
        return self.score(self.encode_all(batches)[slot_S])

    def encode_all(self, batches: Sequence[Batch]) -> Tensor:
        """Return the vectors [U, W] of all batches, with one lookup of the token embeddings."""
        looked_up = batches if self.text_encoder is None else self.text_encoder.looked_up(batches)
        return torch.cat([self.encode(batch) for batch in looked_up])

    def encode(self, batch: Batch) -> Tensor:
        """Return the vectors [B, W] that are computed once per utterance, in the dtype of the head."""
        text = None
        if self.text_encoder is not None:
            text = self.text_encoder.states(batch) if self.reads_states else self.text_encoder(batch)
            text = text.to(self.dtype)
        with self._full_precision():
            return self._gather(text, batch)

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

    def auxiliary(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Mapping[str, Tensor]:
        """Return the model's own loss terms by name: weighted scalars, added to the loss and logged as `loss/NAME`.

        vector_UW: the results of `encode` for the distinct utterances of a group of pairs, by rising index, with
        gradient. label_U: their labels as offsets from the centre of the range, or classes 0 and 1. utterance_U: their
        places in the training split. Terms must be finite for a single utterance, and may read the model's buffers,
        which checkpoints save, but must not change them.
        """
        return {}

    def after_step(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Tensor | None:
        """Work after each optimizer step, such as new pseudo-labels in a buffer; return a loss to minimise, or None.

        The arguments are those of `auxiliary` for all utterances of the step, on all ranks; the vectors have no
        gradient. A second optimizer step minimises the loss over `separate_parameters`: the other phase of methods
        that alternate. `encode` must not use these parameters.
        """
        return None

    def separate_parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters that only the loss of `after_step` trains."""
        return ()

    @abstractmethod
    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Combine the text, None without text, with the other modalities: [B, W]; runs outside autocast.

        Rows that the mask leaves out, and absent modalities, must count as zeros, and padding must change nothing.
        """

    def _represent(self, vector_SW: Tensor) -> Tensor:
        """Return z_final [S, D]: by default `fusion` of the vectors. Dropout here differs from slot to slot."""
        state_SD: Tensor = self.fusion(vector_SW)
        return state_SD

    def _decide(self, state_SD: Tensor) -> Tensor:
        """Return the scores [S]: by default the head's only output."""
        score_S: Tensor = self.head(state_SD).squeeze(-1)
        return score_S

    def _full_precision(self) -> torch.autocast:
        return torch.autocast(next(self.head.parameters()).device.type, enabled=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights outside the text encoder."""
        parameter: Tensor = next(self.head.parameters())
        return parameter.dtype

    @property
    def sequence_dims(self) -> dict[str, int]:
        """Width of the rows of `sequences`, by modality."""
        return ({} if self.text_encoder is None else {"text": self.text_encoder.width}) | self.modality_dims

    def sequences(self, text: Tensor | None, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the rows [B, L, A] of each modality, with their mask [B, L].

        The rows of the text are its states. A text vector is a sequence of one row.
        """
        others = {name: self.rows(batch, name) for name in self.modality_dims}
        if text is None:
            return others
        if not self.reads_states:
            return {"text": (text.unsqueeze(1), text.new_ones(len(text), 1, dtype=torch.bool)), **others}
        assert batch.mask_BL is not None
        return {"text": (text, batch.mask_BL), **others}

    @staticmethod
    def rows(batch: Batch, name: str) -> tuple[Tensor, Tensor]:
        """Return the rows [B, L, A] of audio or vision, and their mask [B, L]. ValueError if the batch has none."""
        rows, mask = (
            (batch.vision_BLV, batch.vision_mask_BL) if name == "vision" else (batch.audio_BLA, batch.audio_mask_BL)
        )
        if rows is None or mask is None:
            raise ValueError(f"the model has a branch for {name}, but the batch has no {name}")
        return rows, mask
