"""The mean score of several models."""

from __future__ import annotations

import math

import numpy as np
import pytest

from grcf_ray.metrics import split_metrics
from grcf_ray.train.scoring import mean_score

SCORES = list(np.random.default_rng(3).normal(0, 2, (3, 40)))
LABELS = np.random.default_rng(4).integers(0, 2, 40).astype(float)


def test_the_mean_score_is_that_of_a_loop() -> None:
    expected = [sum(scores[row] for scores in SCORES) / 3 for row in range(40)]
    np.testing.assert_allclose(mean_score(SCORES, "regression"), expected, rtol=1e-14)


def test_the_mean_of_classifiers_is_that_of_their_probabilities() -> None:
    logit_N = mean_score(SCORES, "classification")
    expected = [sum(1 / (1 + math.exp(-scores[row])) for scores in SCORES) / 3 for row in range(40)]
    np.testing.assert_allclose(1 / (1 + np.exp(-logit_N)), expected, rtol=1e-12)
    bce = -np.mean([math.log(p if label else 1 - p) for p, label in zip(expected, LABELS, strict=True)])
    metrics = split_metrics(logit_N, LABELS, protocol="binary", limit=0.5, center=0.5)
    assert metrics["bce"] == pytest.approx(bce, rel=1e-9)


def test_one_model_that_is_too_sure_does_not_outvote_the_others() -> None:
    logit_N = mean_score([np.array([800.0, -800.0]), np.array([-1.0, 1.0]), np.array([-1.0, 1.0])], "classification")
    p = (1 + 2 / (1 + math.e)) / 3
    np.testing.assert_allclose(logit_N, [math.log(p / (1 - p)), -math.log(p / (1 - p))], rtol=1e-12)
