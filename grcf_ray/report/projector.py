"""The best model's representations as TensorBoard's projector reads them: their values, and what each belongs to.

Tab-separated text has no quoting: what would end a cell or a line is a space in it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

import numpy as np

from grcf_ray.report.view import Predictions
from grcf_ray.storage import StoragePath

_LONGEST = 300
"""Characters of a text that are shown."""


def write_projector(place: StoragePath, embeddings: Mapping[str, tuple[str, Predictions]]) -> None:
    """Write what the projector offers for the run in `place`: utterances with their labels, scores, texts and ids.

    embeddings: by the name of its files, a title and the utterances with their z_final. The projector finds them in a
    folder that has an event file alone, so all of them lie together.
    """
    config = []
    for name, (title, scored) in embeddings.items():
        tensor, metadata = f"{name}-state.tsv", f"{name}-utterances.tsv"
        with (place / tensor).writing() as path:
            np.savetxt(path, scored.state_ND, fmt="%.5g", delimiter="\t")
        (place / metadata).write_text(metadata_tsv(scored))
        config.append(
            f'embeddings {{\n  tensor_name: "{title}"\n  tensor_path: "{tensor}"\n  metadata_path: "{metadata}"\n}}\n'
        )
    (place / "projector_config.pbtxt").write_text("".join(config))


def metadata_tsv(scored: Predictions) -> str:
    """A line of names, then one for each utterance."""
    rows = [("text", "label", "score", "id")]
    for text, label, score, name in zip(scored.text_N, scored.label_N, scored.score_N, scored.id_N, strict=True):
        rows.append((cell(text), f"{label:.4g}", f"{score:.4g}", cell(name)))
    return "".join("\t".join(row) + "\n" for row in rows)


def cell(text: str) -> str:
    """The text in one cell: runs of blanks, breaks and control characters as a space, cut where it is long."""
    plain = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    words = " ".join(plain.split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"
