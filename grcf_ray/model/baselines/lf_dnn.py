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

from torch import nn

from grcf_ray.model.base import ModelSetup
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import RowNetwork, dense
from grcf_ray.model.vectors import VectorModel, width_options
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


class LateFusion(VectorModel):
    """The network of the module's docstring. z_final is the output of the layer after the concatenation."""

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        self.width, self.vector_widths = options.fusion_width, width_options(options, self.sequence_dims)
        self.networks = nn.ModuleDict(
            {
                name: RowNetwork(dense(dim, self.vector_widths[name], _LAYERS, options.dropout))
                for name, dim in self.sequence_dims.items()
            }
        )
        self.fusion = dense(sum(self.vector_widths.values()), self.width, 1, options.dropout)
        self.head = nn.Linear(self.width, 1)


CARD = ModelCard(
    title="LF-DNN",
    paper="DNN Multimodal Fusion Techniques for Predicting Video Sentiment",
    year=2018,
    venue="Challenge-HML",
    networks={"regression": LateFusion, "classification": LateFusion},
    options=Options,
    search={
        "text_width": {"low": 32, "high": 256, "log": True},
        "fusion_width": {"low": 32, "high": 256, "log": True},
        "dropout": {"low": 0.0, "high": 0.5},
    },
)
