"""GRCF as one model among others: a network for each task."""

from __future__ import annotations

from grcf_ray.model.card import ModelCard
from grcf_ray.model.classification import GrcfClassifier
from grcf_ray.model.regression import GrcfRegressor

CARD = ModelCard(
    title="GRCF",
    paper="GRCF: Two-Stage Groupwise Ranking and Calibration Framework for Multimodal Sentiment Analysis",
    year=2026,
    venue="preprint",
    networks={"regression": GrcfRegressor, "classification": GrcfClassifier},
    two_stage=True,
    published="186,585,724 on CMU-MOSI with DeBERTa-v3-base, audio 74 and vision 47 wide (Table 12)",
)
