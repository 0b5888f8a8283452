"""Models that read one vector of each modality, as most published ones do.

B utterances; U distinct utterances of a group of pairs; S scored slots; M modalities; V the width of all vectors.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.model.base import MultimodalModel
from grcf_ray.model.pooling import masked_mean


class VectorModel(MultimodalModel):
    """A model whose W is the vectors of all modalities, and which of them the sample has: V + M.

    A modality that a sample lacks has a vector of zeros.
    """

    networks: nn.ModuleDict
    """Networks from a modality's rows [B, L, A] and their mask [B, L] to its vector.

    A modality without a network keeps the mean of its rows, so a text vector stays as it is.
    """
    vector_widths: dict[str, int]
    """Width of each modality's vector."""

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return the vectors, and which modalities the sample has."""
        networks = dict(self.networks.items())
        vectors, present = [], []
        for name, (row_BLA, mask_BL) in self.sequences(text, batch).items():
            present.append(mask_BL.any(1, keepdim=True).to(row_BLA.dtype))
            vectors.append(networks.get(name, masked_mean)(row_BLA, mask_BL) * present[-1])
        return torch.cat([*vectors, *present], dim=-1)

    def _represent(self, vector_SW: Tensor) -> Tensor:
        """Return z_final [S, D]: by default `fusion` of the concatenated vectors."""
        return super()._represent(vector_SW[:, : -len(self.vector_widths)])

    def vectors(self, vector_SW: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the vector of each modality, and which of them the sample has [S, M], as 1 or 0."""
        widths = self.vector_widths.values()
        *vectors, present_SM = torch.split(vector_SW, [*widths, len(widths)], dim=-1)
        return vectors, present_SM


def width_options(options: object, names: Iterable[str]) -> dict[str, int]:
    """Return the option `NAME_width` of each modality."""
    return {name: getattr(options, f"{name}_width") for name in names}


def mean_of_present(value_U: Tensor, present_U: Tensor) -> Tensor:
    """Return the mean over the utterances that have the modality; 0 without one.

    value_U: [U, ...]. present_U: 1 for an utterance that has the modality, else 0; [U] with dimensions of 1 as needed.
    """
    return (value_U * present_U).sum(0) / present_U.sum(0).clamp_min(1)
