"""Fit linear models on the frozen text vectors: the baseline of the pretrained encoder without training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grcf_ray.config import RunConfig
from grcf_ray.data.features import Features, SplitFeatures
from grcf_ray.metrics import MetricProtocol, split_metrics
from grcf_ray.model.text_encoder import TextEncoder
from grcf_ray.train.assemble import pretrained_backbone, text_vectors
from grcf_ray.train.curve import objective_name

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-3, 3, 13))


def ridge_metrics(
    features: Features, test: SplitFeatures, config: RunConfig, *, protocol: MetricProtocol
) -> dict[str, Any]:
    """Return validation and test metrics of ridge regression, with alpha chosen by validation MAE.

    For classification: logistic regression with the same penalty, alpha chosen by validation BCE.
    test: without frozen hidden states. The whole pretrained encoder computes the vectors.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    encoder = TextEncoder(
        copy.deepcopy(pretrained_backbone(config.model.backbone)), config.model.text_vector, "all"
    ).eval()

    def vectors(split: SplitFeatures) -> NDArray[np.float64]:
        # Sentence vectors are nearly collinear, so float32 is too coarse for the small alphas.
        return text_vectors(features, split, encoder).astype(np.float64)

    train_ND, valid_ND, test_ND = vectors(features.train), vectors(features.valid), vectors(test)
    label_N, classes = features.train.label_N, features.task == "classification"
    if classes:
        fits = [LogisticRegression(C=1 / alpha, max_iter=1000).fit(train_ND, label_N > 0) for alpha in ALPHAS]
        scores = [fit.decision_function for fit in fits]
    else:
        fits = [Ridge(alpha=alpha).fit(train_ND, label_N) for alpha in ALPHAS]
        scores = [fit.predict for fit in fits]

    def metrics(score: Any, vector_ND: NDArray[np.float64], split: SplitFeatures) -> dict[str, float]:
        return split_metrics(
            score(vector_ND),
            split.label_N,
            protocol=protocol,
            limit=features.half_range,
            origin=features.center,
            ties=config.metrics.ties,
        )

    valid = [metrics(score, valid_ND, features.valid) for score in scores]
    best = int(np.argmin([scored[objective_name(2, features.task)] for scored in valid]))
    return {
        "name": f"{'logistic' if classes else 'ridge'} regression on the frozen text vectors",
        "alpha": ALPHAS[best],
        "valid": valid[best],
        "test": metrics(scores[best], test_ND, test),
    }
