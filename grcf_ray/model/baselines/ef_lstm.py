"""EF-LSTM: the modalities of each step, concatenated, are the input of one LSTM.

Williams, Kleinegesse, Comanescu and Radu, 2018. Recognizing Emotions in Video Using Multimodal DNN Feature Fusion.
Challenge-HML.

    h_t = LSTM([x_text,t; x_vision,t; x_audio,t], h_t-1)      y = relu(W h_T + b) v + c

Readings: published on word vectors, here the text input is the subword states of the shared encoder. Its steps are the
subwords; audio and vision rows are brought to them by averaging the rows of equal shares of the time, which leaves rows
that are one per subword as they are. Without text, an utterance has as many steps as its longer modality has rows. A
modality that a sample lacks is zero at each step. The toolkit MMSA publishes the defaults for CMU-MOSI. The paper
leaves the layers after the LSTM open.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.model.base import ModelSetup, MultimodalModel
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import LastState, dense, on_shared_steps
from grcf_ray.settings import PositiveCount, Probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of EF-LSTM."""

    width: PositiveCount = 128
    """Width of the LSTM, and of the layer after it."""
    layers: PositiveCount = 4
    """Number of layers of the LSTM."""
    dropout: Probability = 0.5
    """Dropout rate between the layers of the LSTM, and after it."""


class EarlyFusion(MultimodalModel):
    """The network of the module's docstring. z_final is the output of the layer after the LSTM."""

    reads_states = True

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        total = sum(self.sequence_dims.values())
        self.width, between = options.width, options.dropout if options.layers > 1 else 0.0
        self.lstm = LastState(total, options.width, options.layers, between)
        self.fusion = dense(options.width, options.width, 1, options.dropout)
        self.head = nn.Linear(options.width, 1)

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return the last state of the LSTM."""
        rows, mask_BT = on_shared_steps(self.sequences(text, batch))
        state_BH: Tensor = self.lstm(torch.cat(list(rows.values()), dim=-1), mask_BT)
        return state_BH


CARD = ModelCard(
    title="EF-LSTM",
    paper="Recognizing Emotions in Video Using Multimodal DNN Feature Fusion",
    year=2018,
    venue="Challenge-HML",
    networks={"regression": EarlyFusion, "classification": EarlyFusion},
    options=Options,
    search={
        "width": {"low": 32, "high": 256, "log": True},
        "layers": {"low": 1, "high": 4},
        "dropout": {"low": 0.0, "high": 0.6},
    },
)
