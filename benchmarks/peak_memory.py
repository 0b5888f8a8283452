"""Measure the memory of preparing features and of training, each in a new process, on Linux."""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from grcf_ray.bench.step import new_loop
from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.data.features import build_features
from grcf_ray.data.store import DatasetStore
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.stage import predict, use_deterministic_torch


def in_new_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call a function in a new process, which has no memory of earlier work."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def private_bytes() -> int:
    """Return the resident memory of this process without files and shared memory; on systems other than Linux, all."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


class PeakMemory:
    """The peak private memory of this process above its start, sampled every few milliseconds."""

    def __init__(self) -> None:
        self.program = private_bytes()
        """Private bytes at the start."""
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def since_last_call(self) -> int:
        """Return the peak in bytes since the start or the last call."""
        peak, self._peak = max(self._peak, private_bytes()), 0
        return peak - self.program

    def _sample(self) -> None:
        while not self._ended.wait(0.003):
            self._peak = max(self._peak, private_bytes())


def memory_row(n: int, store: DatasetStore, config: RunConfig, cache: Path, steps: int) -> dict[str, Any]:
    """Measure n utterances; the features stay in the cache."""
    parts: dict[str, int] = {}
    for work in (_prepare, _train):
        # Freed memory of earlier work stays in a process's pages.
        arguments = (str(store.folder), flatten(config), str(cache), torch.get_num_threads(), steps)
        parts |= in_new_process(work, *arguments)
    parts["disk"] = sum(path.stat().st_size for path in cache.rglob("*.npy"))
    row: dict[str, Any] = {"name": f"{n:,}", "size": n, "program": parts.pop("program") / 1e6}
    for key, size in parts.items():
        row |= {key: size / 1e6, f"{key}_count": n, f"{key}_each": size / n / 1e3}
    return row


def _prepare(store: str, settings: dict[str, Any], cache: str, threads: int, steps: int) -> dict[str, int]:
    use_deterministic_torch(threads)
    config = build_config(settings)
    tokenizer = load_tokenizer(config.model.backbone)
    with PeakMemory() as peak:
        build_features(DatasetStore.open(Path(store)), tokenizer, config.features, cache=Path(cache))
        return {"prepared": peak.since_last_call()}


def _train(store: str, settings: dict[str, Any], cache: str, threads: int, steps: int) -> dict[str, int]:
    use_deterministic_torch(threads)
    config, device = build_config(settings), torch.device("cpu")
    mapped = psutil.Process().memory_info().shared
    with PeakMemory() as peak:
        features = prepare_features(DatasetStore.open(Path(store)), config, cache=Path(cache))
        opened = peak.since_last_call()
        loop = new_loop(features, config, device, {})
        # Before the steps, whose freed memory would hide that of validation.
        predict(loop.model, features, features.valid, device=device, token_budget=config.pairs.micro_batch_tokens)
        validated = peak.since_last_call()
        for step in itertools.islice(loop.steps(), steps):
            loop.take_step(step)
        stepped = peak.since_last_call()
    return {
        "program": peak.program,
        "opened": opened,
        "validated": validated,
        "stepped": stepped,
        "mapped": psutil.Process().memory_info().shared - mapped,
    }


def memory_table(rows: Sequence[Mapping[str, Any]], steps: int, budget: int) -> Table:
    """Return the table of memory by utterances. budget: subwords of a batch."""
    parts = {
        "disk": "features",
        "prepared": "to prepare",
        "opened": "opened",
        "validated": "validation",
        "stepped": f"{steps} steps",
        "mapped": "mapped",
    }
    first, last = rows[0], rows[-1]
    more = last["size"] - first["size"]
    growth = [f"{title} {1e3 * (last[key] - first[key]) / more:.2f}" for key, title in parts.items()]
    return Table(
        "growth memory",
        "Memory against utterances, MB",
        (
            Column("name", "utterances"),
            Column("program", "program, MB", "{:,.1f}"),
            *(
                column
                for key, title in parts.items()
                for column in (Column(key, f"{title}, MB", "{:,.1f}"), Column(f"{key}_each", "KB/utterance", "{:,.2f}"))
            ),
        ),
        rows,
        (
            "features: bytes on disk; the other columns: memory of a new process above the program with its imports, "
            "one process for preparing and one for training",
            "to prepare, opened, validation, steps: peak private memory (RssAnon); mapped: pages of files at the end, "
            "which the system can reclaim",
            f"validation's largest batch has {first['largest']:,} subwords at {first['name']} utterances and "
            f"{last['largest']:,} at {last['name']}, of {budget:,} at most: a small data set has few texts of similar "
            "length",
            f"KB for one more utterance, first size to last: {', '.join(growth)}",
        ),
    )
