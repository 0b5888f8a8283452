from __future__ import annotations

import itertools

import numpy as np
import pytest
from plotly.colors import sample_colorscale

from grcf_ray.report.figures.palette import BLUE, GREEN, GREY, MARKS, OCHRE, ORANGE, PURPLE, SERIES
from grcf_ray.report.figures.predictions import draw_confusion

COLOURS = {"blue": BLUE, "orange": ORANGE, "green": GREEN, "purple": PURPLE, "ochre": OCHRE, "grey": GREY}


def linear(colour: str) -> np.ndarray:
    """[3] RGB without the sRGB curve."""
    value_3 = np.array([int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)])
    return np.where(value_3 <= 0.04045, value_3 / 12.92, ((value_3 + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """The ratio of WCAG 2."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (first, second))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
def test_colours_are_seen_on_light_and_dark_paper(colour: str) -> None:
    assert contrast(colour, "#ffffff") >= 3 and contrast(colour, "#111111") >= 3


def test_text_in_the_confusion_matrix_has_the_contrast_of_aa() -> None:
    cells = draw_confusion({"classes": ["a", "b"], "counts": [[1, 0], [1, 1]], "shares": [[1, 0], [0.5, 0.5]]}).data[0]
    (_, low), (_, high) = cells.colorscale
    for share in np.linspace(0, 1, 11):
        (colour,) = sample_colorscale([low, high], [share], colortype="tuple")
        assert contrast("#" + "".join(f"{round(255 * part):02x}" for part in colour), cells.textfont.color) >= 4.5


def test_what_stands_side_by_side_differs_in_more_than_colour() -> None:
    assert len({mark.symbol for mark in MARKS.values()}) == len({mark.colour for mark in MARKS.values()}) == len(MARKS)


@pytest.mark.parametrize(
    "seen_33",
    [
        # Machado, Oliveira and Fernandes 2009, severity 1.
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ],
    ids=["protan", "deutan"],
)
def test_bars_side_by_side_differ_for_the_colour_blind(seen_33: list[list[float]]) -> None:
    """The three that stand together, in linear RGB as they are seen."""
    for first, second in itertools.combinations(SERIES[:3], 2):
        assert np.linalg.norm(np.array(seen_33) @ (linear(first) - linear(second))) > 0.1
