from __future__ import annotations

import concurrent.futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from grcf_ray.bench import growth
from grcf_ray.bench import scaling as lines_module
from grcf_ray.bench.growth import growth_tables
from grcf_ray.bench.resident import Watch
from grcf_ray.bench.scaling import Cost, Lines
from grcf_ray.bench.setup import Setup
from grcf_ray.config import build_config
from grcf_ray.data.store import DatasetStore
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.search.space import load_space

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from grcf_ray.tables import Table

needs_linux = pytest.mark.skipif(not growth.STATUS.exists(), reason="no other system tells of a process's memory")


def work() -> Callable[[], object]:
    return lambda: None


def lines_of(monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float]) -> Lines:
    """Costs of 1, 10 and 100 units that took so many seconds."""
    given = iter(seconds)
    monkeypatch.setattr(lines_module, "_seconds", lambda work, repetitions: next(given))
    lines = Lines([Cost("sort", "sorting", "item")], 1, lambda text: None)
    for size in (1, 10, 100):
        lines.begin(size)
        lines.measure("sort", size, work)
    return lines


def test_a_straight_line_with_something_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(monkeypatch, (2.0, 11.0, 101.0))
    assert [row["sort_each"] for row in lines.rows] == pytest.approx([2e6, 1.1e6, 1.01e6])
    assert list(lines.notes(lambda run: {})) == [
        "straight, the last size's cost a unit over the cheapest one's in brackets: sorting (1.00)",
        "dearer a unit at 1 than later, for what does not grow with the size: sorting (at most 2.000 s)",
    ]
    # Trapezoids: 9 x 6.5 + 90 x 56.
    assert lines.together("sort") == pytest.approx(9 * 6.5 + 90 * 56)


def test_a_line_that_bends_says_what_rose(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(monkeypatch, (1.0, 10.0, 400.0))
    profiles = iter([{"compare": 1.0, "copy": 1.0}, {"compare": 310.0, "copy": 100.0}])
    (note,) = lines.notes(lambda run: next(profiles))
    # A unit: from 1 to 3.1 and from 1 to 1 second.
    assert note.startswith("bends: sorting, 4.00 times as much an item at 100 as at 1; of the rise in a profile: ")
    assert note.endswith("compare 100%, copy 0%")


def test_what_makes_a_call_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(monkeypatch, (1.0, 2.0, 4.0))
    profiles = iter([{"compare": 1.0}, {"compare": 3.0, "copy": 2.0}])
    assert list(lines.rises(lambda run: next(profiles))) == [
        "sorting: 4.0 times as long at 100 as at 1; of the rise in a profile: compare 50%, copy 50%"
    ]
    assert lines_module._rise({"a": 1.0}, {"a": 0.5}) == "once more, under a profiler, it shows no such rise"


def test_long_calls_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def run() -> None:
        calls.append(sum(range(300_000)))

    lines_module._seconds(lambda: run, 3)
    assert len(calls) == 4, "a warm-up, then three"
    monkeypatch.setattr(lines_module, "LONG", 1e-6)
    assert lines_module._seconds(lambda: run, 3) > 0
    assert len(calls) == 5


def test_profiles_name_functions_and_kernels() -> None:
    def spin() -> int:
        return sum(range(100_000))

    assert {"spin (test_growth.py)", "<built-in method builtins.sum>"} <= lines_module.own_times(spin).keys()
    weight = torch.zeros(3, 3, requires_grad=True)
    kernels = lines_module.kernel_times(lambda: (torch.ones(2, 3) @ weight).sum().backward())
    assert {"aten.mm", "aten.sum", "aten.expand"} <= kernels.keys(), "forward and backward"


def test_written_utterances(tiny_backbone: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_backbone))
    store = growth._import(growth._write_utterances(tmp_path / "t.parquet", 40, tokenizer))
    assert store.info.splits == {"train": 35, "valid": 4, "test": 1}
    assert (store.info.audio_dim, store.info.vision_dim) == (5, 20)
    train = store.read("train")
    words = [len(text.split()) for text in train["text"].to_pylist()]
    assert [len(rows) for rows in train["audio"].to_pylist()] == [2 * count for count in words]
    known = set(growth._known_words(tokenizer))
    assert known >= {word for text in train["text"].to_pylist() for word in text.split()}


@needs_linux
def test_watch_sees_private_memory_and_forgets_it() -> None:
    with Watch() as watch:
        before = watch.most()
        held = torch.ones(20_000_000)
        most = watch.most()
        assert most - before > 60_000_000
        del held
        watch.most()
        assert watch.most() < most - 60_000_000


@needs_linux
@pytest.mark.slow
def test_memory_of_new_processes(tiny_store: DatasetStore, tiny_backbone: Path, tmp_path: Path) -> None:
    config = build_config({"model.backbone": str(tiny_backbone), **growth.SMALL_STEP})
    row = growth._memory_row(80, tiny_store, config, tmp_path / "features")
    assert row["disk_count"] == 80
    assert row["disk"] == sum(p.stat().st_size for p in tmp_path.rglob("*.npy")) / 1e6
    assert row["program"] > 20, "torch is imported"
    assert 0 < row["opened"] <= row["stepped"]
    assert {"prepared", "validated", "mapped"} <= row.keys()


def test_tables(tiny_store: DatasetStore, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {
        "UTTERANCES": (40, 80),
        "PAIRS": (32, 80),
        "LENGTHS": (4, 8, 127),
        "TRIALS": (3, 6),
        "STEPS": 2,
        "TOKENS": 64,
        "EPOCHS": 2,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(growth, name, value)
    # In this process; `test_memory_of_new_processes` has others.
    threads = concurrent.futures.ThreadPoolExecutor
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", lambda workers, context: threads(workers))
    read: set[str] = set()
    whole = DatasetStore.read

    def watched(self: DatasetStore, split: str) -> Any:
        read.add(split)
        return whole(self, split)

    monkeypatch.setattr(DatasetStore, "read", watched)
    space = load_space(tiny_space)
    said: list[str] = []
    setup = Setup(tiny_store, space.config(), space, torch.device("cpu"), 1, 6, 2, tmp_path, said.append)
    tables = growth_tables(setup)
    assert read == {"train", "valid"}
    assert not list(tmp_path.iterdir())
    assert said
    by_name = {table.name: table for table in tables}
    assert list(by_name) == [f"growth {name}" for name in ("utterances", "memory", "pairs", "length", "trials")]
    for table in tables:
        assert len(table.rows) >= 2
        assert table.notes
        if growth.STATUS.exists() or table.name != "growth memory":
            assert all(cell != "-" for row in table.cells() for cell in row), table.name
        check_units(table)

    utterances = by_name["growth utterances"].rows
    assert [row["import_count"] for row in utterances] == [40, 80]
    assert [row["pairs_count"] for row in utterances] == [35, 71]
    assert [row["predict_count"] for row in utterances] == [4, 8]
    assert all(2 * 2 <= row["collate_count"] <= 2 * 64 for row in utterances)
    assert all(0 < row["largest"] <= 1024 for row in by_name["growth memory"].rows)
    disk = [row["disk"] for row in by_name["growth memory"].rows]
    assert 0 < disk[0] < disk[1]
    pairs = by_name["growth pairs"].rows
    assert [row["train_count"] for row in pairs] == [32, 80]
    assert all(2 < row["encoded"] <= 2 * row["size"] for row in pairs)
    # The tiny backbone has 128 positions.
    assert [(row["size"], row["texts"]) for row in by_name["growth length"].rows] == [(4, 16), (8, 8)]
    assert [row["size"] for row in by_name["growth trials"].rows] == [3, 6]


def check_units(table: Table) -> None:
    """Beside each total stands what a unit takes of it: microseconds, kilobytes, or utterances."""
    keys = [column.key for column in table.columns]
    each = [key for key in keys if key.endswith("_each")]
    assert each
    for key in each:
        total = key.removesuffix("_each")
        assert keys[keys.index(key) - 1] == total
        scale = 1 if total == "encoded" else 1e3 if table.name == "growth memory" else 1e6
        for row in table.rows:
            assert row[key] == pytest.approx(scale * row[total] / row[f"{total}_count"])
