"""The best model's representations for TensorBoard's projector: vectors, and the utterance of each.

Tab-separated text has no quoting: a space replaces characters that would end a cell or a line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

import numpy as np

from grcf_ray.report.view import Predictions
from grcf_ray.storage import StoragePath

_LONGEST = 300
"""Most characters of a text."""


def write_projector(place: StoragePath, embeddings: Mapping[str, tuple[str, Predictions]]) -> None:
    """Write the projector's files into `place`: z_final, label, score, text and id of each utterance.

    embeddings: title and predictions by name of the files. The projector reads only folders with an event file, so all
    embeddings are in one folder.
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
    """Return a header line, then a line for each utterance."""
    rows = [("text", "label", "score", "id")]
    for text, label, score, name in zip(scored.text_N, scored.label_N, scored.score_N, scored.id_N, strict=True):
        rows.append((cell(text), f"{label:.4g}", f"{score:.4g}", cell(name)))
    return "".join("\t".join(row) + "\n" for row in rows)


def cell(text: str) -> str:
    """Return the text for one cell: blanks and control characters as single spaces, cut if too long."""
    plain = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    words = " ".join(plain.split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"
