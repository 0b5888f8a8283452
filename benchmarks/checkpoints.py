"""Measure what checkpoints cost a training on slow storage: seconds that it waits, and bytes written.

    python benchmarks/checkpoints.py --out docs/performance

The model has DeBERTa-v3-base's 186 million parameters, but is not trained: an epoch is 25 seconds of waiting. The
storage takes 100 ms a request and 50 MB a second. Takes about 20 minutes and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from grcf_ray.files import write_text
from grcf_ray.storage import LocalPath
from grcf_ray.storage.path import StoragePath
from grcf_ray.tables import Column, Table
from grcf_ray.train.checkpoint import checkpoint_tensors, write_checkpoint
from grcf_ray.train.saving import CheckpointSaver, Kind

PARAMETERS, LAYERS = 186_000_000, 12
EPOCH_S, EPOCHS = 25.0, 12
OBJECTIVES = (0.60, 0.64, 0.66, 0.65, 0.69, 0.68, 0.70, 0.69, 0.71, 0.70, 0.70, 0.72)
REQUEST_S, BYTES_PER_S = 0.1, 50e6
MINUTES = 2.0
"""Between two whole checkpoints; shorter than the default, so that the few epochs have some."""


class SlowPath(LocalPath):
    """A path on a disk that is as slow as a distant storage."""

    written: ClassVar[Counter[str]] = Counter()
    """Bytes by kind of file."""

    def __truediv__(self, name: str) -> SlowPath:
        return SlowPath(self.local / name, self._root)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Provide a path to write to, and take the time of an upload."""
        with super().writing() as path:
            yield path
            size = path.stat().st_size
            SlowPath.written[self.name.partition("-")[0]] += size
            time.sleep(REQUEST_S + size / BYTES_PER_S)


def before(place: StoragePath, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Save as the first release did: the whole checkpoint after every epoch, while the training waits."""
    tensors = {name: tensor.detach() for name, tensor in checkpoint_tensors(model, optimizer).items()}
    with (place / "last.safetensors").writing() as path:
        write_checkpoint(path, tensors, state)


def measure(now: bool) -> list[tuple[float, float]]:
    """Return the seconds that each epoch waits, and how many of them are CPU time of the training, which copies."""
    width = round((PARAMETERS / LAYERS) ** 0.5)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    rows: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = SlowPath(Path(folder) / "run")
        saver = CheckpointSaver(place, Path(folder) / "scratch", minutes=MINUTES)
        curve: list[dict[str, Any]] = []
        for epoch, objective in enumerate(OBJECTIVES, 1):
            time.sleep(EPOCH_S)
            curve.append({"epoch": epoch, "valid/pairwise_acc": objective})
            state = {"stage": 1, "epoch": epoch, "seed": 0, "curve": curve}
            start, busy = time.perf_counter(), time.thread_time()
            if now:
                best = max(OBJECTIVES[:epoch]) == objective
                kinds: list[Kind] = ["best", "whole"] if best else ["whole"]
                saver.save(model, optimizer, state, kinds)
            else:
                before(place, model, optimizer, state)
            rows.append((time.perf_counter() - start, time.thread_time() - busy))
        saver.finish()
    return rows


def main() -> None:
    """Measure both, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for checkpoints.md")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rows = []
    for name, now in (("after every epoch, as release 0.1", False), ("in the background", True)):
        SlowPath.written.clear()
        seconds = measure(now)
        # The first copy also allocates its memory.
        waits, copying = zip(*seconds[1:], strict=True)
        rows.append(
            {
                "name": name,
                "wait": sum(waits) / len(waits),
                "share": 100 * sum(waits) / (EPOCH_S * len(waits)),
                "copying": sum(copying) / len(copying),
                "most": max(wait for wait, _ in seconds),
                "best": SlowPath.written["best"] / 1e9,
                "whole": (SlowPath.written["whole"] + SlowPath.written["last.safetensors"]) / 1e9,
            }
        )
    columns = (
        Column("name", f"{EPOCHS} epochs of {EPOCH_S:g} s"),
        Column("wait", "waiting, s an epoch", "{:.2f}"),
        Column("share", "% of the epoch", "{:.1f}"),
        Column("copying", "of it CPU time, s", "{:.2f}"),
        Column("most", "longest, s", "{:.2f}"),
        Column("best", "best weights in the run, GB", "{:.2f}"),
        Column("whole", "whole checkpoints, GB", "{:.2f}"),
    )
    improved = sum(value > max(OBJECTIVES[:epoch], default=0) for epoch, value in enumerate(OBJECTIVES))
    notes = (
        f"{PARAMETERS / 1e6:.0f} million parameters; the storage takes {REQUEST_S * 1000:.0f} ms a request and "
        f"{BYTES_PER_S / 1e6:.0f} MB a second. The best improves in {improved} epochs. Whole checkpoints every "
        f"{MINUTES:g} minutes here, every 10 by default",
        "The first epoch, whose copy also allocates its memory, is in the longest time but not in the mean",
    )
    table = Table("checkpoints", "Checkpoints on slow storage", columns, rows, notes)
    command = f"- command: `python benchmarks/{Path(__file__).name}`"
    page = f"# Performance: checkpoints\n\n{command}\n- date: {date.today()}\n\n{table.markdown()}\n"
    print(page)
    if out is not None:
        write_text(out / "checkpoints.md", page)


if __name__ == "__main__":
    main()
