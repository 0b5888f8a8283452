from __future__ import annotations

import numpy as np
import pytest

from grcf_ray.report.images import png_values
from grcf_ray.report.view import Scored


def scored(label: list[float], score: list[float]) -> Scored:
    names = [str(index) for index in range(len(label))]
    states = np.zeros((len(label), 2), np.float32)
    return Scored(id_N=names, text_N=names, label_N=np.array(label), score_N=np.array(score), state_ND=states)


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
