"""Ridge regression on the frozen text vectors: what the pretrained encoder gives without any training of ours."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grcf_ray.config import RunConfig
from grcf_ray.data.features import Features, SplitFeatures
from grcf_ray.metrics import Protocol, regression_metrics
from grcf_ray.model.text_encoder import TextEncoder
from grcf_ray.train.assemble import template, text_vectors

__all__ = ["ridge_metrics"]

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-3, 3, 13))


def ridge_metrics(features: Features, test: SplitFeatures, config: RunConfig, *, protocol: Protocol) -> dict[str, Any]:
    """Validation and test metrics of ridge regression, its alpha chosen by validation MAE.

    features, test: without frozen hidden states, so that the vectors are the whole pretrained encoder's.
    """
    from sklearn.linear_model import Ridge

    encoder = TextEncoder(copy.deepcopy(template(config.model.backbone)), config.model.text_vector, "all").eval()

    def vectors(split: SplitFeatures) -> NDArray[np.float64]:
        # Sentence vectors are nearly collinear: in float32 the solver is at its limit for the small alphas.
        return text_vectors(features, split, encoder).astype(np.float64)

    train_ND, valid_ND, test_ND = vectors(features.train), vectors(features.valid), vectors(test)
    fits = [Ridge(alpha=alpha).fit(train_ND, features.train.label_N) for alpha in ALPHAS]
    errors = [float(np.abs(fit.predict(valid_ND) - features.valid.label_N).mean()) for fit in fits]
    best = fits[int(np.argmin(errors))]

    def metrics(vector_ND: NDArray[np.float64], split: SplitFeatures) -> dict[str, float]:
        return regression_metrics(best.predict(vector_ND), split.label_N, protocol=protocol, limit=features.half_range)

    return {
        "name": "ridge regression on the frozen text vectors",
        "alpha": best.alpha,
        "valid": metrics(valid_ND, features.valid),
        "test": metrics(test_ND, test),
    }
