"""Score rows again with a trained model: with other audio and vision, or with some modalities masked."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa

from grcf_ray.errors import ConfigError
from grcf_ray.statistics import Floats
from grcf_ray.train.assemble import text_vectors
from grcf_ray.train.export import SavedModel


class Rescorer:
    """A trained model and the N rows of a table, whose texts are encoded once.

    ConfigError for a model that reads no text vector, but the states of the subwords.
    """

    def __init__(self, saved: SavedModel, table: pa.Table) -> None:
        if saved.model.reads_states:
            raise ConfigError(f"{saved.config.model.name} reads subword states; this experiment needs a text vector")
        self.saved, self.table = saved, table
        features = saved.features_of(table)
        # In the batches of plain scoring, so that the scores are equal to the bit.
        encoder, budget = saved.model.text_encoder, saved.config.pairs.micro_batch_tokens
        self._vector_ND = None
        if encoder is not None:
            self._vector_ND = text_vectors(features, features.valid, encoder, token_budget=budget)

    def score(self, columns: Mapping[str, pa.Array], *, text: bool = True) -> Floats:
        """Return scores [N] with these columns in place of the table's.

        text: False puts zeros in place of the text's vector at the fusion.
        """
        table = self.table
        for name, column in columns.items():
            table = table.set_column(table.column_names.index(name), name, column)
        features, vector_ND = self.saved.features_of(table), self._vector_ND
        if vector_ND is not None and not text:
            vector_ND = np.zeros_like(vector_ND)
        split = dataclasses.replace(features.valid, vector_ND=vector_ND)
        return self.saved.score_features(dataclasses.replace(features, valid=split))

    def score_by(self, modalities: Collection[str]) -> Floats:
        """Return scores [N] by these modalities; other audio and vision count as missing, another text as zeros."""
        hidden = [name for name in self.saved.model.modality_dims if name not in modalities]
        nulls = {name: pa.nulls(len(self.table), self.table.schema.field(name).type) for name in hidden}
        return self.score(nulls, text="text" in modalities)
