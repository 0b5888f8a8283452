"""What the tests share: a tiny text encoder, a small data set that it can learn, and places of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grcf_ray.cluster  # noqa: F401  before any test imports Ray

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from grcf_ray.data.store import DatasetStore

pytest_plugins = ["browser", "s3_server"]

# A background job of a shell ignores SIGINT, as would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Read when torch and the hub's client are imported, here and in every subprocess of a test.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

VALUES = {"great": 1.2, "good": 0.8, "fine": 0.4, "poor": -0.6, "bad": -0.8, "awful": -1.2}
"""What a word adds to the label of the tiny data set."""
FILLERS = ("the", "film", "plot", "actor", "was", "scene", "music", "and", "quick", "##ly")
SPLIT_OF_FIVE = ("train", "train", "valid", "train", "test")
LABEL_RANGE = (-3.0, 3.0)
AUDIO_DIM, VISION_DIM = 5, 3
TINY_SPACE = """
dataset: tiny
fixed:
  model.backbone: {backbone}
  model.text_vector: mean
  pairs.pairs_per_epoch: 96
  pairs.pairs_per_group: 16
  pairs.groups_per_step: 2
  # The figures of a test do not depend on what the CPU can do.
  train.precision: float32
  checkpoint.minutes: 0
  stage1.epochs: 3
  stage2.epochs: 3
  search.stage1_trials: 6
  search.stage2_trials: 5
  search.finalists: 2
  search.ridge_baseline: true
stage1:
  stage1.encoder_lr: {{low: 1e-4, high: 1e-2, log: true, start: 2e-4}}
  stage1.head_lr: {{low: 1e-4, high: 1e-2, log: true, start: 2e-4}}
  model.fusion_dropout: {{low: 0.0, high: 0.5, start: 0.1}}
  model.modalities: {{choices: [all, text, text+audio], start: all}}
  ranking.intra_margin: {{low: 0.05, high: 0.5, log: true, start: 0.1}}
  ranking.base_margin: {{low: 0.1, high: 1.0, log: true, start: 0.5}}
stage2:
  stage2.encoder_top_lr: {{low: 1e-4, high: 1e-2, log: true, start: 1e-3}}
  stage2.head_lr: {{low: 1e-4, high: 1e-2, log: true, start: 1e-3}}
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no process ends with them while the others are idle."""
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in ("cluster", "chaos", "slow")))


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches, data and runs of the user are neither read nor written."""
    monkeypatch.setenv("GRCF_CACHE", str(tmp_path / "cache"))
    for name in ("GRCF_DATA", "GRCF_RUNS", "GRCF_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _own_torch() -> Iterator[None]:
    """Threads and determinism, which a command sets for its process, are as before after each test."""
    yield
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local Hugging Face folder: BERT of two layers and width 32 with random weights, and a tokenizer with case."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("backbone") / "tiny-bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VALUES, *FILLERS]
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}, do_lower_case=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        # BERT's own 0.02 would leave all texts alike at this width.
        initializer_range=0.15,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_table() -> pa.Table:
    """80 utterances, 48 train, 16 valid, 16 test, whose labels are the sums of their words' values, in [-3, 3].

    Audio (5 wide) and vision (3 wide) follow the label loosely; some utterances lack one or both.
    """
    rng = np.random.default_rng(7)
    rows: dict[str, list[Any]] = {name: [] for name in ("id", "split", "text", "label", "audio", "vision")}
    for index in range(80):
        rated = [str(word) for word in rng.choice(list(VALUES), rng.integers(1, 4))]
        others = [str(word) for word in rng.choice(FILLERS[:-1], rng.integers(1, 8))]
        words = [str(word) for word in rng.permutation(rated + others)]
        # Divided into two subwords.
        words = ["quickly" if word == "quick" else word for word in words]
        label = float(np.clip(round(sum(VALUES[word] for word in rated), 1), *LABEL_RANGE))
        rows["id"].append(f"video{index // 4}[{index % 4}]")
        rows["split"].append(SPLIT_OF_FIVE[index % 5])
        rows["text"].append(" ".join(words))
        rows["label"].append(label)
        rows["audio"].append(None if index % 9 == 3 else _frames(rng, label, AUDIO_DIM, scale=10, offset=50))
        rows["vision"].append(None if index % 7 == 3 else _frames(rng, label, VISION_DIM, scale=1, offset=0))
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("id", "split", "text")),
            ("label", pa.float32()),
            *((name, pa.list_(pa.list_(pa.float32()))) for name in ("audio", "vision")),
        ]
    )
    return pa.table(rows, schema=schema)


@pytest.fixture(scope="session")
def tiny_parquet(tiny_table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set as a Parquet file."""
    path = tmp_path_factory.mktemp("parquet") / "tiny.parquet"
    pq.write_table(tiny_table, path)
    return path


@pytest.fixture(scope="session")
def tiny_csv(tiny_table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set as a CSV file, audio and vision as JSON lists."""
    path = tmp_path_factory.mktemp("csv") / "tiny.csv"
    columns = {name: tiny_table[name] for name in tiny_table.column_names}
    for name in ("audio", "vision"):
        cells = columns[name].to_pylist()
        columns[name] = pa.array([None if cell is None else json.dumps(cell) for cell in cells], pa.string())
    pyarrow.csv.write_csv(pa.table(columns), path)
    return path


@pytest.fixture(scope="session")
def tiny_store(tiny_parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    """The tiny data set, imported under the name `tiny`. Read it only; copy its folder to change it."""
    from grcf_ray.data.importers import ImportOptions, import_source
    from grcf_ray.data.store import write_store

    options = ImportOptions(dataset="tiny", label_range=LABEL_RANGE)
    return write_store(tmp_path_factory.mktemp("store") / "tiny", *import_source(tiny_parquet, options))


@pytest.fixture(scope="session")
def tiny_features(tiny_store: DatasetStore, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Features:
    """Features of the tiny data set for the tiny backbone, with default settings."""
    from grcf_ray.config import FeatureConfig
    from grcf_ray.data.features import build_features
    from grcf_ray.model.pretrained import load_tokenizer

    cache = tmp_path_factory.mktemp("features")
    return build_features(tiny_store, load_tokenizer(str(tiny_backbone)), FeatureConfig(), cache=cache)


@pytest.fixture(scope="session")
def ray_session() -> None:
    """Ray on this machine, started once; it ends with the process."""
    from grcf_ray.cluster import connect

    connect()


@pytest.fixture(scope="session")
def tiny_space(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search space for the tiny data set: 6 and 5 trials of up to 3 epochs, 2 finalists."""
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(TINY_SPACE.format(backbone=tiny_backbone), encoding="utf-8")
    return path


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A finished search, to be read only: copy its folder to change it."""

    folder: Path
    """The run directory."""
    data: Path
    """The store that it read."""
    argv: tuple[str, ...]
    """The command's arguments."""
    out: str
    """Standard output: the result as JSON."""
    err: str
    """Standard error: progress."""
    opened: tuple[str, ...]
    """Files that the driver's Python opened, and the event WinnerFixed among them, in order."""
    events: tuple[str, ...]
    """The types of the events that listeners were told, in order."""
    peak_bytes: int
    """What its weights took on the disk at most, at those events."""


@pytest.fixture(scope="session")
def recorded(
    ray_session: None, tiny_store: DatasetStore, tiny_space: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    """A search by its command, one trial at a time, that finds no test split until the winner is fixed."""
    from grcf_ray import console
    from grcf_ray.api import searching
    from grcf_ray.cli.search import app
    from grcf_ray.report import progress_lines
    from grcf_ray.search.events import Event, WinnerFixed

    folder = tmp_path_factory.mktemp("recorded")
    data, hidden = folder / "data", folder / "test.parquet"
    shutil.copytree(tiny_store.folder, data)
    shutil.move(data / "test.parquet", hidden)
    opened: list[str] = []
    events: list[str] = []
    weights: list[int] = []
    watching = True

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        if watching and name == "open" and isinstance(arguments[0], (str, bytes)):
            opened.append(os.fsdecode(arguments[0]))

    class Witness(progress_lines.ProgressLines):
        """Puts the test split where it belongs once the winner is fixed."""

        def __call__(self, event: Event) -> None:
            super().__call__(event)
            events.append(type(event).__name__)
            # Second names of a file take no room.
            files = {(stat := file.stat()).st_ino: stat.st_size for file in folder.rglob("*.safetensors")}
            weights.append(sum(files.values()))
            if isinstance(event, WinnerFixed):
                opened.append("WinnerFixed")
                shutil.copyfile(hidden, data / "test.parquet")

    argv = ["--dataset", "tiny", "--data", str(data), "--space", str(tiny_space), "--storage", str(folder / "runs")]
    argv += ["--name", "recorded", "--concurrent", "1", "--json"]
    out, err = io.StringIO(), io.StringIO()
    sys.addaudithook(watch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRCF_CACHE", str(folder / "cache"))
        patch.setattr(searching, "ProgressLines", Witness)
        patch.setattr(sys, "argv", ["search", *argv])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            console.run(app, argv)
    watching = False
    assert ended.value.code == 0, err.getvalue()
    return Recorded(
        folder=folder / "runs" / "recorded",
        data=data,
        argv=tuple(argv),
        out=out.getvalue(),
        err=err.getvalue(),
        opened=tuple(opened),
        events=tuple(events),
        peak_bytes=max(weights),
    )


def _frames(rng: np.random.Generator, label: float, width: int, *, scale: float, offset: float) -> list[list[float]]:
    frames = rng.normal(size=(rng.integers(1, 7), width)) + label * np.linspace(1, -1, width)
    return [[round(float(value), 3) for value in row] for row in offset + scale * frames]
