"""MAG: a gate inside the text encoder that shifts each subword's state by the audio and the vision beside it.

Rahman, Hasan, Lee, Zadeh, Mao, Morency and Hoque, 2020. Integrating Multimodal Information in Large Pretrained
Transformers. ACL.

    g_m = relu(W_gm [z; x_m] + b_gm)                            (z a subword's state, m vision and audio)
    h = sum_m g_m * (W_m x_m) + b
    z' = z + a h      a = min(|z| / |h| beta, 1)                (a shift of at most beta times the state's length)
    output of the gate: dropout(LN(z'))
    y = w dropout(t) + c                                        (t the text vector of the states above)

Readings: published on BERT and XLNet, here the gate lies in the shared encoder, above its first layer, the best place
in the paper. If more layers are frozen, the gate lies above them; if all are, above the last layer. Audio and vision
rows are brought to the subwords by averaging the rows of equal shares of the time, special tokens included. t is the
encoder's own text vector, without the pooling layer of BERT. beta and the dropout rate are the defaults of the authors'
code; its last dropout has the encoder's rate instead. A modality that a sample lacks has x_m = 0, so its term of h is
zero. Without audio and vision in the data there is no gate.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.errors import ConfigError
from grcf_ray.model.base import ModelSetup, MultimodalModel
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import equal_shares
from grcf_ray.settings import Count, Positive, Probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of MAG."""

    layer: Count = 1
    """Number of layers of the text encoder below the gate; 0 puts it after the embeddings."""
    shift: Positive = 1.0
    """Largest length of the shift, beta, in lengths of the state."""
    dropout: Probability = 0.5
    """Dropout rate after the gate, and before the last layer."""


class AdaptationGate(nn.Module):
    """The gate of the module's docstring. dims: the width of the rows, by modality."""

    def __init__(self, width: int, dims: dict[str, int], options: Options) -> None:
        super().__init__()
        self.beta = options.shift
        self.gates = nn.ModuleDict({name: nn.Linear(width + dim, width) for name, dim in dims.items()})
        self.rows = nn.ModuleDict({name: nn.Linear(dim, width, bias=False) for name, dim in dims.items()})
        self.bias = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, state_BLD: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Return the shifted states [B, L, D]. rows: [B, L, A], one for each subword, by modality."""
        shift_BLD = self.bias.expand_as(state_BLD)
        for name, row_BLA in rows.items():
            gate_BLD = torch.relu(self.gates[name](torch.cat([state_BLD, row_BLA], dim=-1)))
            shift_BLD = shift_BLD + gate_BLD * self.rows[name](row_BLA)
        length_BL1 = shift_BLD.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        scale_BL1 = (self.beta * state_BLD.norm(dim=-1, keepdim=True) / length_BL1).clamp_max(1)
        shifted_BLD: Tensor = self.dropout(self.norm(state_BLD + scale_BL1 * shift_BLD))
        return shifted_BLD


class GatedEncoder(MultimodalModel):
    """The network of the module's docstring. z_final is the text vector."""

    reads_states = True

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        text_encoder = setup.text_encoder
        assert text_encoder is not None  # The card needs the text.
        if options.layer > text_encoder.n_layers:
            raise ConfigError(
                f"mag.layer = {options.layer}: the backbone has {text_encoder.n_layers} layers; "
                f"use 0 to {text_encoder.n_layers}"
            )
        if self.modality_dims:
            self.gate = AdaptationGate(text_encoder.width, self.modality_dims, options)
            text_encoder.gate_at(options.layer, self._shifted)
        self.fusion = nn.Dropout(options.dropout)
        self.head = nn.Linear(self.width, 1)

    def _shifted(self, state_BLD: Tensor, batch: Batch) -> Tensor:
        """Return the output of the gate [B, L, D], in the dtype of the states."""
        assert batch.mask_BL is not None
        with self._full_precision():
            rows = {name: equal_shares(*self.rows(batch, name), batch.mask_BL) for name in self.modality_dims}
            shifted_BLD: Tensor = self.gate(state_BLD.to(self.dtype), rows)
        return shifted_BLD.to(state_BLD.dtype)

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return the text vector."""
        assert text is not None and batch.mask_BL is not None and self.text_encoder is not None
        return self.text_encoder.pool(text, batch.mask_BL)


CARD = ModelCard(
    title="MAG",
    paper_row="MAG-BERT",
    paper="Integrating Multimodal Information in Large Pretrained Transformers",
    year=2020,
    venue="ACL",
    networks={"regression": GatedEncoder, "classification": GatedEncoder},
    needs_text=True,
    published="110,853,121 on CMU-MOSI with BERT-base, audio 74 and vision 47 wide (counted by Mai et al., 2022)",
    options=Options,
    search={
        "shift": {"low": 0.05, "high": 2.0, "log": True},
        "dropout": {"low": 0.0, "high": 0.6},
    },
)
