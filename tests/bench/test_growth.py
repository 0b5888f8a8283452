from __future__ import annotations

import concurrent.futures
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import growth
import peak_memory
import psutil
import pytest

from grcf_ray.bench.step import SMALL_STEP
from grcf_ray.config import build_config
from grcf_ray.data.store import DatasetStore
from grcf_ray.model.pretrained import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from grcf_ray.bench.setup import Setup

pytestmark = pytest.mark.skipif(not psutil.LINUX, reason="only Linux tells private memory from shared")


def test_written_utterances(tiny_backbone: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_backbone))
    store = growth.import_utterances(growth.write_utterances(tmp_path / "t.parquet", 40, tokenizer))
    assert store.info.splits == {"train": 35, "valid": 4, "test": 1}
    assert (store.info.audio_dim, store.info.vision_dim) == (5, 20)
    train = store.read("train")
    texts = train["text"].to_pylist()
    assert [len(rows) for rows in train["audio"].to_pylist()] == [2 * len(text.split()) for text in texts]
    assert set(growth.known_words(tokenizer)) >= {word for text in texts for word in text.split()}


FREED = """
import torch
from peak_memory import PeakMemory
with PeakMemory() as peak:
    before = peak.since_last_call()
    held = torch.ones(20_000_000)
    most = peak.since_last_call()
    del held
    peak.since_last_call()
    print(before, most, peak.since_last_call())
"""


def test_peak_memory_includes_freed_memory_once() -> None:
    # In a process of its own: the heap of this one may have a gap of that size.
    command, folder = [sys.executable, "-c", FREED], Path(growth.__file__).parent
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(folder)}, stdout=subprocess.PIPE, check=True)
    before, most, after = map(int, done.stdout.split())
    assert most - before > 60_000_000
    assert after < most - 60_000_000


@pytest.mark.integration
def test_memory_of_new_processes(tiny_store: DatasetStore, tiny_backbone: Path, tmp_path: Path) -> None:
    config = build_config({"model.backbone": str(tiny_backbone), **SMALL_STEP})
    row = peak_memory.memory_row(80, tiny_store, config, tmp_path / "features", 2)
    assert row["disk_count"] == 80
    assert row["disk"] == sum(p.stat().st_size for p in tmp_path.rglob("*.npy")) / 1e6
    assert row["program"] > 20, "torch is imported"
    assert 0 < row["opened"] <= row["stepped"]
    assert {"prepared", "validated", "mapped"} <= row.keys()


def test_small_growth_study(setup_of: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"UTTERANCES": (40, 80), "PAIRS": (32, 80), "LENGTHS": (4, 8, 127), "TRIALS": (3, 6)}
    for name, value in {**sizes, "STEPS": 2, "TOKENS": 64, "EPOCHS": 2}.items():
        monkeypatch.setattr(growth, name, value)
    # In this process; `test_memory_of_new_processes` starts others.
    threads = concurrent.futures.ThreadPoolExecutor
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", lambda workers, context: threads(workers))
    splits: set[str] = set()
    read = DatasetStore.read

    def watched(self: DatasetStore, split: str) -> Any:
        splits.add(split)
        return read(self, split)

    monkeypatch.setattr(DatasetStore, "read", watched)
    setup = setup_of()
    tables = {table.name: table for table in growth.growth_tables(setup)}
    assert splits == {"train", "valid"}
    assert not list(setup.folder.iterdir())
    assert list(tables) == [f"growth {name}" for name in ("utterances", "memory", "pairs", "length", "trials")]
    for table in tables.values():
        assert len(table.rows) >= 2 and table.notes
        assert all(cell != "-" for row in table.cells() for cell in row), table.name
        keys = [column.key for column in table.columns]
        assert any(key.endswith("_each") for key in keys)
        for before, key in itertools.pairwise(keys):
            if key.endswith("_each"):
                assert key == f"{before}_each"
                # Microseconds, kilobytes or utterances.
                scale = 1 if before == "encoded" else 1e3 if table.name == "growth memory" else 1e6
                assert all(
                    row[key] == pytest.approx(scale * row[before] / row[f"{before}_count"]) for row in table.rows
                )

    utterances, memory = tables["growth utterances"].rows, tables["growth memory"].rows
    assert [row["import_count"] for row in utterances] == [40, 80]
    assert [row["pairs_count"] for row in utterances] == [35, 71]
    assert [row["predict_count"] for row in utterances] == [4, 8]
    assert all(2 * 2 <= row["collate_count"] <= 2 * 64 for row in utterances)
    assert all(0 < row["largest"] <= 1024 for row in memory)
    assert 0 < memory[0]["disk"] < memory[1]["disk"]
    pairs = tables["growth pairs"].rows
    assert [row["train_count"] for row in pairs] == [32, 80]
    assert all(2 < row["encoded"] <= 2 * row["size"] for row in pairs)
    # The tiny backbone has 128 positions.
    assert [(row["size"], row["texts"]) for row in tables["growth length"].rows] == [(4, 16), (8, 8)]
    assert [row["size"] for row in tables["growth trials"].rows] == [3, 6]
