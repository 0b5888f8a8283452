"""Time variants of one piece of work in turn, and measure memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from grcf_ray.tables import Column

if TYPE_CHECKING:
    # A process of benchmarks/end_to_end.py imports this module and must not pay for Ray.
    from grcf_ray.bench.setup import Setup

Result = TypeVar("Result")


@dataclass(frozen=True)
class Variant:
    """A way to do the work."""

    name: str
    run: Callable[[], object]
    scale: float = 1.0
    """Factor on the time of a call: 8 if it does an eighth of the work."""


TIMES = (
    Column("least", "min s", "{:.2f}"),
    Column("median", "median s", "{:.2f}"),
    Column("speed_up", "speed-up", "{:.2f}"),
)
"""The columns of `timed_rows`, without the name."""


def interleave(
    variants: Sequence[Variant],
    repetitions: int,
    device: torch.device,
    say: Callable[[str], None],
    *,
    warm: bool = False,
) -> list[tuple[float, ...]]:
    """Return the seconds of each variant's calls.

    The variants are timed in turn, round after round, so that other work on the machine affects all of them alike.
    On the CPU the time is that of this process, all threads together; on a GPU, the time between two events.
    The first round, which loads and allocates, does not count. warm: skip it, since all variants have run before.
    """
    seconds: list[list[float]] = [[] for _ in variants]
    for round_ in range(warm, repetitions + 1):
        for variant, taken in zip(variants, seconds, strict=True):
            say(f"{variant.name}, {round_}/{repetitions}" if round_ else f"{variant.name}, warm-up")
            taken.append(variant.scale * _seconds(variant.run, device))
    return [tuple(taken[-repetitions:]) for taken in seconds]


def timed_rows(
    setup: Setup, variants: Sequence[Variant], *, warm: bool = False, **columns: Sequence[object]
) -> list[dict[str, Any]]:
    """Time variants; return a row for each: its times, and the first one's median over its own.

    columns: further cells by key, one for each variant.
    """
    timings = interleave(variants, setup.repetitions, setup.device, setup.say, warm=warm)
    medians = [statistics.median(seconds) for seconds in timings]
    return [
        {
            "name": variant.name,
            # The shortest time is that of the least disturbed call.
            "least": min(seconds),
            "median": median,
            "speed_up": medians[0] / median,
            "seconds": seconds,
            **{key: values[place] for key, values in columns.items()},
        }
        for place, (variant, seconds, median) in enumerate(zip(variants, timings, medians, strict=True))
    ]


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
    """Return the peak bytes of activations that autograd keeps for gradients; each storage counts once.

    The parameters' storage does not count, nor does temporary memory of kernels.
    """
    parameter_storage = {p.untyped_storage().data_ptr() for p in parameters}
    alive: dict[int, int] = {}
    count: dict[int, int] = {}
    most = 0

    class Kept:
        """A saved tensor; its deletion shows that autograd has released it."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal most
            self.tensor = tensor
            storage = tensor.untyped_storage()
            self.key = storage.data_ptr()
            if self.key not in parameter_storage:
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
