"""TFN: the outer product of all modalities' vectors, each with a 1 appended.

Zadeh, Chen, Poria, Cambria and Morency, 2017. Tensor Fusion Network for Multimodal Sentiment Analysis. EMNLP.

    z = [z_text; 1] x [z_vision; 1] x [z_audio; 1]      (the outer product; the 1 keeps products of fewer modalities)
    y = sigmoid(v relu(W2 relu(W1 z)))

Readings: published on GloVe, here the text input is the subword states of the shared encoder. z_text is the last state
of an LSTM through two ReLU layers, the others the mean of the rows through three. The sigmoid is stretched over the
label range; for classification its argument is the logit. Dropout lies on the input of each network and of the
inference. The paper's widths are the defaults. A modality that a sample lacks gives z_m = 0; one that the data lack is
left out of the product.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.model.base import ModelSetup
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import LastState, RowNetwork, dense
from grcf_ray.model.vectors import VectorModel
from grcf_ray.settings import PositiveCount, Probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of TFN."""

    text_width: PositiveCount = 128
    """Width of the text's vector and LSTM."""
    other_width: PositiveCount = 32
    """Width of the vectors of audio and vision."""
    fusion_width: PositiveCount = 128
    """Width of the two layers after the product."""
    dropout: Probability = 0.15
    """Dropout rate of the networks of the modalities, and of the product."""


class TensorFusion(VectorModel):
    """The network of the module's docstring. z_final is the output of the layers after the product."""

    reads_states = True

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        self.width, self.half_range = options.fusion_width, setup.half_range
        widths = {"text": options.text_width, "vision": options.other_width, "audio": options.other_width}
        self.vector_widths = {name: widths[name] for name in self.sequence_dims}
        self.networks = nn.ModuleDict(
            {name: RowNetwork(dense(dim, widths[name], 3, options.dropout)) for name, dim in self.modality_dims.items()}
        )
        if self.text_encoder is not None:
            layers = dense(options.text_width, options.text_width, 2, options.dropout)
            self.networks["text"] = RowNetwork(layers, LastState(self.text_encoder.width, options.text_width))
        size = math.prod(width + 1 for width in self.vector_widths.values())
        self.inference = dense(size, options.fusion_width, 2, options.dropout)
        self.head = nn.Linear(options.fusion_width, 1)

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return the layers after the product: the product itself would be too large for a vector per slot."""
        vectors, _ = self.vectors(super()._gather(text, batch))
        product_BP = vectors[0].new_ones(len(batch), 1)
        for vector_BD in vectors:
            extended_BD = nn.functional.pad(vector_BD, (0, 1), value=1.0)
            product_BP = torch.einsum("bp,bd->bpd", product_BP, extended_BD).flatten(1)
        fused_BD: Tensor = self.inference(product_BP)
        return fused_BD

    def _represent(self, vector_SW: Tensor) -> Tensor:
        return vector_SW

    def _decide(self, state_SD: Tensor) -> Tensor:
        output_S = super()._decide(state_SD)
        if self.task == "classification":
            return output_S
        return self.half_range * (2 * torch.sigmoid(output_S) - 1)


CARD = ModelCard(
    title="TFN",
    paper="Tensor Fusion Network for Multimodal Sentiment Analysis",
    year=2017,
    venue="EMNLP",
    networks={"regression": TensorFusion, "classification": TensorFusion},
    published="about 12.5 million with vectors of 64, 32 and 32, the networks included (counted by Liu et al., 2018)",
    options=Options,
    search={
        "text_width": {"low": 16, "high": 128, "log": True},
        "other_width": {"low": 8, "high": 32, "log": True},
        "fusion_width": {"low": 16, "high": 128, "log": True},
        "dropout": {"low": 0.0, "high": 0.5},
    },
)
