"""Measure costs by size, and tell which are linear and what makes the others grow faster."""

from __future__ import annotations

import collections
import cProfile
import dataclasses
import functools
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
"""Calls that take more seconds than this are not repeated."""
BEND = 1.25
"""A cost is nonlinear if a unit at the last size costs more than this factor over the cheapest unit."""

Profile = Callable[[Callable[[], object]], dict[str, float]]
"""Returns the seconds of a call by function or kernel."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """A measured cost: CPU seconds of a call and of each unit of its work."""

    key: str
    title: str
    unit: str

    def columns(self) -> tuple[Column, Column]:
        """Return the columns for the total and for a unit."""
        return Column(self.key, f"{self.title}, s", "{:.3f}"), Column(f"{self.key}_each", f"µs/{self.unit}", "{:,.1f}")


@dataclasses.dataclass(frozen=True)
class Point:
    """A cost at one size."""

    size: int
    count: int
    """Units of work."""
    seconds: float
    prepare: Callable[[], Callable[[], object]]

    @property
    def each(self) -> float:
        """Return the seconds of a unit."""
        return self.seconds / self.count


class Scaling:
    """Costs by size: the rows of a table, and notes on their growth."""

    def __init__(self, costs: Sequence[Cost], repetitions: int, say: Callable[[str], None]) -> None:
        self._costs = {cost.key: cost for cost in costs}
        self._repetitions, self._say = repetitions, say
        self._points: dict[str, list[Point]] = {cost.key: [] for cost in costs}
        self.rows: list[dict[str, Any]] = []

    def begin(self, size: int, **cells: Any) -> None:
        """Add a row for a size."""
        self.rows.append({"name": f"{size:,}", "size": size, **cells})

    def measure(
        self, key: str, count: int, run: Callable[..., object], prepare: Callable[[], Any] | None = None
    ) -> None:
        """Time `run`, which does `count` units of work, at the last row's size.

        prepare: called before each run, untimed; `run` takes its result.
        """
        row = self.rows[-1]
        self._say(f"{self._costs[key].title}, {row['name']}")

        def ready() -> Callable[[], object]:
            return run if prepare is None else functools.partial(run, prepare())

        point = Point(row["size"], count, _seconds(ready, self._repetitions), ready)
        self._points[key].append(point)
        row |= {key: point.seconds, f"{key}_count": count, f"{key}_each": 1e6 * point.each}

    def columns(self) -> list[Column]:
        """Return the columns of all costs."""
        return [column for cost in self._costs.values() for column in cost.columns()]

    def together(self, key: str) -> float:
        """Return the seconds of a series of calls, each a unit larger, from the first size to the last."""
        points = self._points[key]
        return sum((b.size - a.size) * (a.seconds + b.seconds) / 2 for a, b in itertools.pairwise(points))

    def rises(self, profile: Profile) -> Iterator[str]:
        """Yield, for each cost, what makes a call longer at the last size than at the first."""
        for key, points in self._points.items():
            first, last = points[0], points[-1]
            yield (
                f"{self._costs[key].title}: {last.seconds / first.seconds:.1f} times as long at {last.size:,} as at "
                f"{first.size:,}; {_rise(profile(first.prepare()), profile(last.prepare()))}"
            )

    def notes(self, profile: Profile) -> Iterator[str]:
        """Yield the linear costs, and for each nonlinear cost what rose. The latter are run again in a profile."""
        linear: list[str] = []
        shared: list[str] = []
        for key, points in self._points.items():
            first, last, cheapest = points[0], points[-1], min(points, key=lambda point: point.each)
            title, unit = self._costs[key].title, self._costs[key].unit
            ratio = last.each / cheapest.each
            if first.each > BEND * cheapest.each:
                shared.append(f"{title} (at most {first.seconds:.3f} s)")
            if ratio <= BEND:
                linear.append(f"{title} ({ratio:.2f})")
            else:
                self._say(f"{title}, profile")
                parts = [
                    {name: seconds / point.count for name, seconds in profile(point.prepare()).items()}
                    for point in (cheapest, last)
                ]
                yield (
                    f"nonlinear: {title}, {ratio:.2f} times as much {_a(unit)} at {last.size:,} as at "
                    f"{cheapest.size:,}; {_rise(*parts)}"
                )
        if linear:
            yield f"linear; in brackets, unit cost at the largest size over the cheapest: {', '.join(linear)}"
        if shared:
            yield f"higher unit cost at {self.rows[0]['name']}, from fixed costs: {', '.join(shared)}"


def _seconds(ready: Callable[[], Callable[[], object]], repetitions: int) -> float:
    """Return the median CPU seconds after a warm-up, or those of the first call if it is long."""
    seconds: list[float] = []
    while len(seconds) <= repetitions and sum(seconds) < LONG:
        run = ready()
        before = time.process_time()
        run()
        seconds.append(time.process_time() - before)
    return statistics.median(seconds[1:] or seconds)


def function_times(run: Callable[[], object]) -> dict[str, float]:
    """Return the seconds in each Python function, without its callees."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(run)
    times: dict[str, float] = collections.defaultdict(float)
    for (file, _, name), (_, _, seconds, *_) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        times[name if file == "~" else f"{name} ({Path(file).name})"] += seconds
    return times


class _Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = time.process_time()
        out = func(*args, **(kwargs or {}))
        self.seconds[str(func.overloadpacket)] += time.process_time() - before
        return out


def kernel_times(run: Callable[[], object]) -> dict[str, float]:
    """Return the seconds in each of torch's kernels, backward pass included."""
    kernels = _Kernels()
    with kernels:
        run()
    return kernels.seconds


def _rise(cheap: Mapping[str, float], dear: Mapping[str, float]) -> str:
    """Return the entries that rose most from one profile to the other, and their shares of the whole rise."""
    rise = {name: dear.get(name, 0.0) - cheap.get(name, 0.0) for name in {*cheap, *dear}}
    whole = sum(rise.values())
    if whole <= 0:
        return "a profile shows no such rise"
    most = sorted(rise, key=lambda name: (-rise[name], name))[:3]
    return "of the rise in a profile: " + ", ".join(f"{name} {rise[name] / whole:.0%}" for name in most)


def _a(unit: str) -> str:
    return f"{'an' if unit[0] in 'aeiou' else 'a'} {unit}"
