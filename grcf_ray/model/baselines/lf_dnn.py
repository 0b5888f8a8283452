"""LF-DNN: one dense network for each modality, whose outputs are concatenated and fused late.

Williams, Comanescu, Radu and Tian, 2018. DNN Multimodal Fusion Techniques for Predicting Video Sentiment.
Challenge-HML.

    h_m = dense_m(x_m)      y = dense([h_text; h_vision; h_audio]) w + b

Readings: x_m is the text vector of the shared encoder, and the mean over the rows of audio or vision. Each network has
three layers of ReLU units with dropout on its input, the fusion one layer. The toolkit MMSA publishes the defaults for
CMU-MOSI. A modality that a sample lacks gives h_m = 0.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from grcf_ray.config import ModelConfig
from grcf_ray.data.batches import Batch
from grcf_ray.model.base import DataShape, MultimodalModel
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import RowNetwork, dense
from grcf_ray.model.text_encoder import TextEncoder
from grcf_ray.settings import PositiveCount, Probability

_LAYERS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of LF-DNN."""

    text_width: PositiveCount = 128
    """Width of the text's network."""
    vision_width: PositiveCount = 128
    """Width of the vision's network."""
    audio_width: PositiveCount = 16
    """Width of the audio's network."""
    fusion_width: PositiveCount = 128
    """Width of the layer after the concatenation."""
    dropout: Probability = 0.2
    """Dropout rate on the input of each network, and of the fusion."""


class LateFusion(MultimodalModel):
    """The network of the module's docstring. z_final is the output of the layer after the concatenation."""

    def __init__(self, text_encoder: TextEncoder | None, config: ModelConfig, data: DataShape) -> None:
        super().__init__(text_encoder, config, data)
        options: Options = config.options
        self.width = options.fusion_width
        widths = {"vision": options.vision_width, "audio": options.audio_width}
        total = sum(widths[name] for name in self.modality_dims)
        if text_encoder is not None:
            self.text = dense(text_encoder.width, options.text_width, _LAYERS, options.dropout)
            total += options.text_width
        for name, dim in self.modality_dims.items():
            self.add_module(name, RowNetwork(dim, widths[name], _LAYERS, options.dropout))
        self.fusion = dense(total, options.fusion_width, 1, options.dropout)
        self.head = nn.Linear(options.fusion_width, 1)

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return the concatenated outputs of the networks."""
        parts = [] if text is None else [self.text(text)]
        parts += [self.get_submodule(name)(*self.rows(batch, name)) for name in self.modality_dims]
        return torch.cat(parts, dim=-1)

    def _represent(self, vector_SW: Tensor) -> Tensor:
        fused_SD: Tensor = self.fusion(vector_SW)
        return fused_SD


CARD = ModelCard(
    title="LF-DNN",
    paper="DNN Multimodal Fusion Techniques for Predicting Video Sentiment",
    year=2018,
    venue="Challenge-HML",
    networks={"regression": LateFusion, "classification": LateFusion},
    options=Options,
    search={
        "text_width": {"low": 32, "high": 256, "log": True, "start": 128},
        "fusion_width": {"low": 32, "high": 256, "log": True, "start": 128},
        "dropout": {"low": 0.0, "high": 0.5, "start": 0.2},
    },
)
