from __future__ import annotations

import numpy as np
import pytest

from grcf_ray.report.images import classes_of, confusion, png_values
from grcf_ray.report.view import Scored


def scored(label: list[float], score: list[float]) -> Scored:
    names = [str(index) for index in range(len(label))]
    states = np.zeros((len(label), 2), np.float32)
    return Scored(id_N=names, text_N=names, label_N=np.array(label), score_N=np.array(score), state_ND=states)


def test_labels_are_rounded_to_whole_ones_within_their_range() -> None:
    class_N, names = classes_of(np.array([-3.9, -0.4, 0.6, 2.4, 7.0]), label_range=(-3, 3))
    assert names == ["-3", "-2", "-1", "0", "+1", "+2", "+3"]
    assert [names[index] for index in class_N] == ["-3", "0", "+1", "+2", "+3"]
    assert classes_of(np.array([1.4]), label_range=(1, 5))[1] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 100)])
def test_other_ranges_are_cut_into_equal_parts(low: float, high: float) -> None:
    width = (high - low) / 5
    class_N, names = classes_of(low + width * np.array([-9, 0.5, 1.5, 2.5, 3.5, 4.5, 9]), label_range=(low, high))
    assert class_N.tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert len(names) == 5


def test_rows_of_the_confusion_are_labels_and_columns_scores() -> None:
    counts_KK, names = confusion(scored([0, 0, 1, 1], [-0.2, 3, 2, 1]), task="classification", label_range=(0, 1))
    assert names == ["negative", "positive"]
    assert counts_KK.tolist() == [[1, 1], [0, 2]]
    counts_KK, names = confusion(scored([-3, 2], [2, 2]), task="regression", label_range=(-3, 3))
    assert counts_KK.sum() == 2
    assert counts_KK[names.index("-3"), names.index("+2")] == counts_KK[names.index("+2"), names.index("+2")] == 1


@pytest.mark.parametrize(("task", "label_range"), [("classification", (0, 1)), ("regression", (-3, 3))])
def test_images_are_as_large_as_they_say(task: str, label_range: tuple[float, float]) -> None:
    import io

    from matplotlib.image import imread

    values = png_values(scored([0, 1, 1], [-2, 1, 5]), "valid", task=task, label_range=label_range)  # type: ignore[arg-type]
    assert [value.tag for value in values] == ["predictions/valid", "confusion/valid"]
    for value in values:
        pixels = imread(io.BytesIO(value.image.encoded_image_string))
        assert pixels.shape[:2] == (value.image.height, value.image.width)
        # It is not blank.
        assert np.ptp(pixels) > 0
