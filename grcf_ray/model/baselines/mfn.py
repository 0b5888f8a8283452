"""MFN: an LSTM for each modality, attention on the changes of their memories, and a gated memory of its results.

Zadeh, Liang, Mazumder, Poria, Cambria and Morency, 2018. Memory Fusion Network for Multi-view Sequential Learning.
AAAI.

    h_m,t, c_m,t = LSTM_m(x_m,t, h_m,t-1, c_m,t-1)              (the system of LSTMs)
    c = [c_m,t-1; c_m,t] over the modalities m
    a = softmax(D_a(c))      s_t = a * c                        (the delta-memory attention)
    u_t = sigmoid(D_1(s_t)) * u_t-1 + sigmoid(D_2(s_t)) * tanh(D_u(s_t))      (the multi-view gated memory)
    y = v relu(W [h_m,T over m; u_T] + b) + d

Readings: published on word vectors, here the text input is the subword states of the shared encoder. Audio and vision
rows are brought to the subwords by averaging the rows of equal shares of the time. The gates read s_t alone, as in the
paper; the authors' code gives them u_t-1 too. Each D has one hidden layer of ReLU units with dropout, as in that code.
The toolkit MMSA publishes the widths for CMU-MOSI; it has a hidden width and a dropout rate for each D, here all share
one.
A modality that a sample lacks has h = c = 0.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.model.base import ModelSetup, MultimodalModel
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import MemoryNetwork, dense
from grcf_ray.model.vectors import width_options
from grcf_ray.settings import PositiveCount, Probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of MFN."""

    text_width: PositiveCount = 256
    """Width of the text's LSTM."""
    vision_width: PositiveCount = 256
    """Width of the vision's LSTM."""
    audio_width: PositiveCount = 32
    """Width of the audio's LSTM."""
    memory_width: PositiveCount = 400
    """Width of the multi-view gated memory."""
    hidden_width: PositiveCount = 64
    """Width of the hidden layer of the attention and of each gate."""
    fusion_width: PositiveCount = 128
    """Width of the layer after the LSTMs and the memory."""
    dropout: Probability = 0.2
    """Dropout rate of the attention and the gates, and before the last layers."""


class MemoryFusion(MultimodalModel):
    """The network of the module's docstring. z_final is the output of the layer after the LSTMs and the memory."""

    reads_states = True

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        dims, widths = self.sequence_dims, width_options(options, self.sequence_dims)
        self.width = options.fusion_width
        self.network = MemoryNetwork(dims, widths, options.memory_width, options.hidden_width, options.dropout)
        self.fusion = dense(self.network.width, self.width, 1, options.dropout)
        self.head = nn.Linear(self.width, 1)

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return the last outputs of the LSTMs, and the memory after the last step."""
        vector_BW: Tensor = self.network(self.sequences(text, batch))
        return vector_BW


CARD = ModelCard(
    title="MFN",
    paper="Memory Fusion Network for Multi-view Sequential Learning",
    year=2018,
    venue="AAAI",
    networks={"regression": MemoryFusion, "classification": MemoryFusion},
    options=Options,
    search={
        "text_width": {"low": 32, "high": 256, "log": True},
        "vision_width": {"low": 16, "high": 256, "log": True},
        "audio_width": {"low": 8, "high": 64, "log": True},
        "memory_width": {"low": 64, "high": 400, "log": True},
        "hidden_width": {"low": 32, "high": 256, "log": True},
        "dropout": {"low": 0.0, "high": 0.7},
    },
)
