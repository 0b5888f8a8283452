"""What all benchmarks share: data, configuration, device, Ray, and the output of the tables."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grcf_ray.cluster import connect, leave, watched

import ray
import torch

from grcf_ray import console
from grcf_ray.config import RunConfig, build_config, flatten, parse_assignments
from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.features import Features
from grcf_ray.data.store import DatasetStore, find_data
from grcf_ray.metrics import MetricProtocol
from grcf_ray.search.events import Listener
from grcf_ray.search.nodes import cluster_nodes
from grcf_ray.search.preflight import find_capacity
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.run_lookup import space_on
from grcf_ray.search.space import Space, shipped_spaces
from grcf_ray.search.stages import Search
from grcf_ray.search.winner import available_threads, versions
from grcf_ray.tables import Table, fact_text
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.precision import precision_here
from grcf_ray.train.stage import choose_device, use_deterministic_torch

_PAPER_LENGTH = 50
"""Subwords to which the paper's loop pads every text."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """The inputs of a benchmark."""

    store: DatasetStore
    space: Space
    device: torch.device
    folder: Path
    """A temporary folder; the command deletes it at the end."""
    say: Callable[[str], None]
    """Prints a line of progress."""
    repetitions: int = 5
    """Timed calls of each variant."""
    threads: int = 1
    """Torch threads."""
    trials: int = 8
    """Trials of a measured search."""
    storage: str | None = None
    """Place of the runs of `benchmarks/scale.py`; None for `folder`."""
    tables: dict[str, Table] = dataclasses.field(default_factory=dict)
    """Tables of the finished parts, by part."""
    started: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def config(self) -> RunConfig:
        """Return the starting point of the search space."""
        return self.space.config()

    @property
    def protocol(self) -> MetricProtocol:
        """Return the metric protocol of the data set."""
        return protocol_of(self.store.info.name, self.store.info.task)

    def features(self, config: RunConfig | None = None) -> Features:
        """Return the features of a configuration [default: the starting point's]."""
        return prepare_features(self.store, config or self.config, cache=self.folder)

    def changed(self, changes: Mapping[str, Any]) -> RunConfig:
        """Return the starting point with some settings changed."""
        return build_config({**flatten(self.config), **changes})

    def slots(self, config: RunConfig, *trials: int) -> int:
        """Join Ray; return how many trials of a search run at a time. trials: the budget of each stage."""
        connect()
        return find_capacity(cluster_nodes(), config, trials).concurrent

    def search(
        self,
        record: RunRecord,
        space: Space,
        concurrent: int,
        *listeners: Listener,
        features: Features | None = None,
        kind: type[Search] = Search,
    ) -> TrialRecord:
        """Run a search on an empty record, and return its winner."""
        record.write_run({"state": "running", "settings": flatten(space.config())})
        search = kind(
            record=record,
            space=space,
            features=features or self.features(),
            protocol=self.protocol,
            concurrent=concurrent,
            listeners=listeners,
        )
        with watched(leave):
            return search.run()

    def paper_features(self) -> tuple[Features, RunConfig]:
        """Return features and configuration with no frozen layer and texts of the paper's length."""
        config = self.changed({"model.frozen_layers": 0, "features.max_tokens": _PAPER_LENGTH})
        return self.features(config), config

    def about(self, program: str, data: Path | None) -> dict[str, Any]:
        """Return the conditions of the measurement: command (with DIR for the path to the data), hardware, versions."""
        words = [word.replace(str(data), "DIR") if data else word for word in sys.argv[1:]]
        on_gpu = self.device.type == "cuda"
        device = torch.cuda.get_device_name(self.device) if on_gpu else f"CPU, {available_threads()} cores"
        return {
            "command": shlex.join([*program.split(), *words]),
            "date": time.strftime("%Y-%m-%d"),
            "data": self.store.info.name,
            "backbone": self.config.model.encoder,
            "device": device,
            "precision": self.config.train.precision,
            "threads": self.threads,
            "repetitions": self.repetitions,
            "seconds": round(time.perf_counter() - self.started),
            "versions": versions(),
        }


@contextlib.contextmanager
def open_setup(
    dataset: str,
    data: Path | None,
    label_range: tuple[float, float] | None,
    space_file: Path | None,
    assignments: Sequence[str],
    *,
    repetitions: int = 5,
    threads: int = 1,
    trials: int = 8,
    storage: str | None = None,
) -> Iterator[Setup]:
    """Find the data and the space, set torch up, and end a Ray that the benchmark starts.

    space_file: by default, without a GPU, the shipped space for CPUs, if there is one.
    """
    if space_file is None and not torch.cuda.is_available():
        space_file = shipped_spaces().get(f"{dataset}_cpu")
    store = find_data(dataset, data, label_range)
    settings = parse_assignments(assignments)
    space = space_on(dataset, space_file, data, label_range, settings).with_settings(settings)
    train = space.config().train
    device = choose_device(train, granted=1)
    space = space.with_settings({"train.precision": precision_here(train, device)})
    use_deterministic_torch(threads)
    started = time.perf_counter()

    def say(text: str) -> None:
        console.progress(f"{time.perf_counter() - started:5.0f} s  {text}")

    ray_ran_before = ray.is_initialized()
    with tempfile.TemporaryDirectory(prefix="grcf-bench-") as folder:
        try:
            yield Setup(store, space, device, Path(folder), say, repetitions, threads, trials, storage)
        finally:
            if not ray_ran_before:
                ray.shutdown()


def deliver(name: str, about: Mapping[str, Any], tables: Sequence[Table], out: Path | None, *, as_json: bool) -> None:
    """Print the conditions and the tables; write them to NAME.md and NAME.json in the folder `out`, if given."""
    answer = json.dumps({**about, "tables": [table.as_dict() for table in tables]}, indent=2)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(answer + "\n", encoding="utf-8")
        (out / f"{name}.md").write_text(_markdown(name, about, tables), encoding="utf-8")
    if as_json:
        console.say(answer)
        return
    for key, value in about.items():
        console.say(f"{key + ':':12} {fact_text(value)}")
    for table in tables:
        table.print()


def _markdown(name: str, about: Mapping[str, Any], tables: Sequence[Table]) -> str:
    lines = [f"# Performance: {name}", ""]
    lines += [
        f"- {key}: `{value}`" if key == "command" else f"- {key}: {fact_text(value)}" for key, value in about.items()
    ]
    lines += [part for table in tables for part in ("", table.markdown())]
    return "\n".join(lines) + "\n"
