from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from grcf_ray.report.images import png_values
from grcf_ray.report.view import Predictions


def scored(label: list[float], score: list[float]) -> Predictions:
    names = [str(index) for index in range(len(label))]
    states = np.zeros((len(label), 2), np.float32)
    return Predictions(id_N=names, text_N=names, label_N=np.array(label), score_N=np.array(score), state_ND=states)


@pytest.mark.parametrize(
    ("protocol", "label_range"), [("binary", (0, 1)), ("mosi", (-3, 3)), ("sims", (-1, 1)), ("own", (-2, 5))]
)
def test_images_are_as_large_as_they_say(protocol: Any, label_range: tuple[float, float]) -> None:
    import io

    from matplotlib.image import imread

    values = png_values(scored([0, 1, 1], [-2, 1, 5]), "valid", protocol=protocol, label_range=label_range)
    assert [value.tag for value in values] == ["predictions/valid", "confusion/valid"]
    for value in values:
        pixels = imread(io.BytesIO(value.image.encoded_image_string))
        assert pixels.shape[:2] == (value.image.height, value.image.width)
        # It is not blank.
        assert np.ptp(pixels) > 0


def test_labels_without_classes_have_no_confusion() -> None:
    values = png_values(scored([0, 50, 100], [-2, 51, 120]), "test", protocol="own", label_range=(0, 100))
    assert [value.tag for value in values] == ["predictions/test"]
