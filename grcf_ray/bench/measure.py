"""Times of variants of one piece of work, taken in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from grcf_ray.tables import Column


@dataclass(frozen=True)
class Variant:
    """One way to do the work."""

    name: str
    run: Callable[[], object]
    scale: float = 1.0
    """What the time of one call counts for: 8 where it does an eighth of the work."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a variant's calls, times its scale."""

    seconds: tuple[float, ...]

    @property
    def least(self) -> float:
        """The least disturbed one."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The usual one."""
        return statistics.median(self.seconds)


TIMES = (
    Column("least", "min s", "{:.2f}"),
    Column("median", "median s", "{:.2f}"),
    Column("speed_up", "speed-up", "{:.2f}"),
)
"""The columns of `timed_row`, but the name."""
PAIRED = (
    Column("difference", "difference", "{:+.4f}"),
    Column("low", "from", "{:+.4f}"),
    Column("high", "to", "{:+.4f}"),
)
"""The columns of `paired`."""


def interleave(
    variants: Sequence[Variant],
    repetitions: int,
    device: torch.device,
    say: Callable[[str], None],
    *,
    warm: bool = False,
) -> list[Timing]:
    """Time the variants in turn, round after round, so that whatever else the machine does falls on all alike.

    On the CPU the process's own time, of all its threads; on a GPU the time between two events. The first round,
    which loads and allocates, is not counted, nor run where all have been already (warm).
    """
    seconds: list[list[float]] = [[] for _ in variants]
    for round_ in range(warm, repetitions + 1):
        for variant, taken in zip(variants, seconds, strict=True):
            say(f"{variant.name}, {round_}/{repetitions}" if round_ else f"{variant.name}, warm-up")
            taken.append(variant.scale * _seconds(variant.run, device))
    return [Timing(tuple(taken[-repetitions:])) for taken in seconds]


def timed_row(name: str, timing: Timing, first: Timing, **more: Any) -> dict[str, Any]:
    """A variant's line: its times, and how much less its median is than that of the first one."""
    return {
        "name": name,
        "least": timing.least,
        "median": timing.median,
        "speed_up": first.median / timing.median,
        "seconds": timing.seconds,
        **more,
    }


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Difference of the means, and the 95 % interval of a t test paired over the seeds."""
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    return {"difference": difference, "low": float(interval.low), "high": float(interval.high)}


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000
    before = time.process_time()
    run()
    return time.process_time() - before


def kept_bytes(run: Callable[[], object], parameters: Sequence[Tensor]) -> int:
    """The most bytes of activations that autograd keeps at a time for gradients, each storage counted once.

    What belongs to the parameters is not counted, nor what a kernel needs while it runs.
    """
    known = {p.untyped_storage().data_ptr() for p in parameters}
    alive: dict[int, int] = {}
    count: dict[int, int] = {}
    most = 0

    class Kept:
        """Holds a saved tensor, and tells when autograd lets go of it."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal most
            self.tensor = tensor
            storage = tensor.untyped_storage()
            self.key = storage.data_ptr()
            if self.key not in known:
                alive[self.key] = storage.nbytes()
                count[self.key] = count.get(self.key, 0) + 1
                most = max(most, sum(alive.values()))

        def __del__(self) -> None:
            if self.key in count:
                count[self.key] -= 1
                if not count[self.key]:
                    del count[self.key], alive[self.key]

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        run()
    return most
