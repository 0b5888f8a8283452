"""The best model's representations as TensorBoard's projector reads them: their values, and what each belongs to.

Tab-separated text has no quoting: what would end a cell or a line is a space in it.
"""

from __future__ import annotations

import unicodedata

import numpy as np

from grcf_ray.report.view import Scored
from grcf_ray.storage import Place

__all__ = ["cell", "metadata_tsv", "write_projector"]

_LONGEST = 300
"""Characters of a text that are shown."""


def write_projector(place: Place, scored: Scored, split: str) -> None:
    """Write the z_final of a split's utterances, with their labels, scores, texts and ids, for the run in `place`."""
    names = {"tensor": f"{split}-state.tsv", "metadata": f"{split}-utterances.tsv"}
    with (place / names["tensor"]).writing() as path:
        np.savetxt(path, scored.state_ND, fmt="%.5g", delimiter="\t")
    (place / names["metadata"]).write_text(metadata_tsv(scored))
    (place / "projector_config.pbtxt").write_text(
        "embeddings {\n"
        f'  tensor_name: "z_final of {split}"\n'
        f'  tensor_path: "{names["tensor"]}"\n'
        f'  metadata_path: "{names["metadata"]}"\n'
        "}\n"
    )


def metadata_tsv(scored: Scored) -> str:
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
