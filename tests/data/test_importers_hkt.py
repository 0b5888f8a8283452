"""HKT's pickles: the columns in use, padding, and real punchlines; other cases are in test_importers_samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from data.foreign import changed, write_pickle
from data.formats import FORMATS, check, hkt_content, imported

from grcf_ray.data.importers import hkt

HKT = FORMATS["hkt"]
NOTES = (
    "vision is columns 55 to 90 of the punchline's 91, audio columns 0 to 59 of its 81, as in HKT",
    "the context's features and the humor-centric ones (hcf) are not used",
)


def test_rows_and_notes_of_a_file(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "mustard.pkl", hkt_content(HKT.utterances()))
    raw = hkt.read(path)
    assert (raw.files, raw.notes) == (((path, 8),), NOTES)
    assert [raw.place(row) for row in (0, 4, 7)] == ["train row 1", "dev row 1", "test row 2"]
    assert "video_id" not in raw.table.column_names


def test_columns_that_are_not_used_may_be_non_finite(tmp_path: Path) -> None:
    content = hkt_content(HKT.utterances())
    content["dev"][1][0][2][0, 60:] = np.nan
    path = write_pickle(tmp_path / "mustard.pkl", content)
    check(imported(path, HKT, non_finite="fail")[0], HKT, HKT.utterances())


def test_rows_of_zeros_at_the_end_are_taken_off(tmp_path: Path) -> None:
    utterances = HKT.utterances()
    # Rows of zeros at the start and within are no padding.
    utterances[0].vision[:] = utterances[1].vision[1] = 0
    content = hkt_content(utterances)
    content["train"][0] = changed(content["train"][0], (0, 1), lambda rows: np.vstack([rows, np.zeros((3, 91))]))
    content["train"][3] = changed(content["train"][3], (0, 2), lambda rows: rows * 0)
    utterances[3] = replace(utterances[3], audio=None)
    path = write_pickle(tmp_path / "mustard.pkl", content)
    # Columns that are not used are filled.
    check(imported(path, HKT)[0], HKT, utterances)
    assert hkt.read(path).notes == (
        *NOTES,
        "sequences of audio with rows of zeros removed from their end: 1",
        "sequences of vision with rows of zeros removed from their end: 1",
    )
