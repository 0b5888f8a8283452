"""Features of six utterances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from grcf_ray.config import FeatureConfig
from grcf_ray.data import features as features_module
from grcf_ray.data.features import Features, build_features
from grcf_ray.data.schema import TableInfo, conform
from grcf_ray.data.store import DatasetStore, write_store
from grcf_ray.model.pretrained import load_tokenizer

FRAMES = pa.list_(pa.list_(pa.float32()))


def store_of(folder: Path, *, label_range: tuple[float, float] = (-3, 3), **columns: Any) -> DatasetStore:
    """Six utterances, four of them train; columns may be replaced, and None leaves one out."""
    loose: dict[str, Any] = {
        "id": list("abcdef"),
        "split": ["train", "valid", "train", "test", "train", "train"],
        "text": ["good film", "bad plot", "the film was quickly poor", "fine", "awful", "great music"],
        "label": [0.8, -0.8, -0.6, 0.4, -1.2, 1.2],
        "audio": pa.array([[[1, 7], [3, 7]], [[5, 7]], None, [[9, 9]], [[5, 7]], None], FRAMES),
        **columns,
    }
    table = conform(pa.table({name: column for name, column in loose.items() if column is not None}))
    return write_store(folder, table, TableInfo.describe(table, name="own", label_range=label_range))


def built(store: DatasetStore, backbone: Path, **settings: Any) -> Features:
    return build_features(store, load_tokenizer(str(backbone)), FeatureConfig(**settings))


def every_array(features: Features) -> dict[str, NDArray[Any]]:
    return {
        f"{split}.{name}": array
        for split in ("train", "valid")
        for name, array in features_module._arrays(getattr(features, split)).items()
    }
