"""Costs by size: which are straight lines, and what bends those that are not."""

from __future__ import annotations

import collections
import cProfile
import dataclasses
import itertools
import pstats
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from grcf_ray.tables import Column

LONG = 3.0
"""Seconds above which a call is not repeated."""
BEND = 1.25
"""A line whose last unit costs more than so many times its cheapest is said to bend."""

Work = Callable[[], Callable[[], object]]
"""Makes ready, which is not timed, and returns what is."""
Profile = Callable[[Callable[[], object]], dict[str, float]]
"""Seconds of a call by its parts."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What is measured at each size: CPU seconds of a call, and of each unit of it."""

    key: str
    title: str
    unit: str

    def columns(self) -> tuple[Column, Column]:
        """The total, and what a unit takes of it."""
        return Column(self.key, f"{self.title}, s", "{:.3f}"), Column(f"{self.key}_each", f"µs/{self.unit}", "{:,.1f}")


@dataclasses.dataclass(frozen=True)
class Point:
    """A cost at one size."""

    size: int
    count: int
    """Units of it."""
    seconds: float
    work: Work

    @property
    def each(self) -> float:
        """Seconds a unit."""
        return self.seconds / self.count


class Lines:
    """Costs by size, as rows of a table and as what there is to say of them."""

    def __init__(self, costs: Sequence[Cost], repetitions: int, say: Callable[[str], None]) -> None:
        self._costs = {cost.key: cost for cost in costs}
        self._repetitions, self._say = repetitions, say
        self._points: dict[str, list[Point]] = {cost.key: [] for cost in costs}
        self.rows: list[dict[str, Any]] = []

    def begin(self, size: int, **more: Any) -> None:
        """A row of its own for a size."""
        self.rows.append({"name": f"{size:,}", "size": size, **more})

    def measure(self, key: str, count: int, work: Work) -> None:
        """Time a call in the last row's size; `count` units are what it does."""
        row = self.rows[-1]
        self._say(f"{self._costs[key].title}, {row['name']}")
        point = Point(row["size"], count, _seconds(work, self._repetitions), work)
        self._points[key].append(point)
        row |= {key: point.seconds, f"{key}_count": count, f"{key}_each": 1e6 * point.each}

    def columns(self) -> list[Column]:
        """Those of all costs."""
        return [column for cost in self._costs.values() for column in cost.columns()]

    def together(self, key: str) -> float:
        """Seconds of one call after the other, each a unit larger, from the first size to the last."""
        points = self._points[key]
        return sum((b.size - a.size) * (a.seconds + b.seconds) / 2 for a, b in itertools.pairwise(points))

    def rises(self, profile: Profile) -> Iterator[str]:
        """What makes each call longer at the last size than at the first."""
        for key, points in self._points.items():
            first, last = points[0], points[-1]
            yield (
                f"{self._costs[key].title}: {last.seconds / first.seconds:.1f} times as long at {last.size:,} as at "
                f"{first.size:,}; {_rise(profile(first.work()), profile(last.work()))}"
            )

    def notes(self, profile: Profile) -> Iterator[str]:
        """Which lines are straight, and for those that bend what rose: the work is done once more for it."""
        straight: list[str] = []
        shared: list[str] = []
        for key, points in self._points.items():
            first, last, cheapest = points[0], points[-1], min(points, key=lambda point: point.each)
            title, unit = self._costs[key].title, self._costs[key].unit
            ratio = last.each / cheapest.each
            if first.each > BEND * cheapest.each:
                shared.append(f"{title} (at most {first.seconds:.3f} s)")
            if ratio <= BEND:
                straight.append(f"{title} ({ratio:.2f})")
            else:
                self._say(f"{title}, profile")
                parts = [
                    {name: seconds / point.count for name, seconds in profile(point.work()).items()}
                    for point in (cheapest, last)
                ]
                yield (
                    f"bends: {title}, {ratio:.2f} times as much {_a(unit)} at {last.size:,} as at {cheapest.size:,}; "
                    f"{_rise(*parts)}"
                )
        if straight:
            yield f"straight, the last size's cost a unit over the cheapest one's in brackets: {', '.join(straight)}"
        if shared:
            yield (
                f"dearer a unit at {self.rows[0]['name']} than later, for what does not grow with the size: "
                + ", ".join(shared)
            )


def ready(run: Callable[[], object]) -> Work:
    """Work for which there is nothing to make ready."""
    return lambda: run


def _seconds(work: Work, repetitions: int) -> float:
    """CPU seconds of a call: the median after a warm-up, or the first one's where that is long."""
    seconds: list[float] = []
    while len(seconds) <= repetitions and sum(seconds) < LONG:
        run = work()
        before = time.process_time()
        run()
        seconds.append(time.process_time() - before)
    return statistics.median(seconds[1:] or seconds)


def own_times(run: Callable[[], object]) -> dict[str, float]:
    """Seconds in each function itself."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(run)
    times: dict[str, float] = collections.defaultdict(float)
    for (file, _, name), (_, _, own, *_) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        times[name if file == "~" else f"{name} ({Path(file).name})"] += own
    return times


class _Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Seconds in each of torch's kernels, those of the backward pass with them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = time.process_time()
        out = func(*args, **(kwargs or {}))
        self.seconds[str(func.overloadpacket)] += time.process_time() - before
        return out


def kernel_times(run: Callable[[], object]) -> dict[str, float]:
    """Return the CPU seconds of each torch kernel that a function calls, by the kernel's name."""
    kernels = _Kernels()
    with kernels:
        run()
    return kernels.seconds


def _rise(cheap: Mapping[str, float], dear: Mapping[str, float]) -> str:
    """The parts that rose most from one profile to another, and their shares of the whole rise."""
    rise = {name: dear.get(name, 0.0) - cheap.get(name, 0.0) for name in {*cheap, *dear}}
    whole = sum(rise.values())
    if whole <= 0:
        return "once more, under a profiler, it shows no such rise"
    most = sorted(rise, key=lambda name: (-rise[name], name))[:3]
    return "of the rise in a profile: " + ", ".join(f"{name} {rise[name] / whole:.0%}" for name in most)


def _a(unit: str) -> str:
    return f"{'an' if unit[0] in 'aeiou' else 'a'} {unit}"
