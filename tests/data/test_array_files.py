from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grcf_ray.data.array_files import load_array, save_array


@contextmanager
def interrupted(interruption: Callable[[], object]) -> Iterator[None]:
    """Call something in the middle of this thread's work: whenever it collects garbage, which is all the time."""
    thread, threshold = threading.get_ident(), gc.get_threshold()

    def call(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and threading.get_ident() == thread:
            interruption()

    gc.callbacks.append(call)
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(call)


def test_threads_open_arrays_at_once(tmp_path: Path) -> None:
    """A thread whose reading of a header another thread's interrupts goes on after it."""
    path = tmp_path / "values.npy"
    save_array(path, np.arange(5))
    others: list[Future[NDArray[np.int64]]] = []

    def interruption() -> None:
        others.append(pool.submit(load_array, path))
        wait(others[-1:], timeout=0.02)

    with ThreadPoolExecutor(1) as pool:
        with interrupted(interruption):
            arrays = [load_array(path) for _ in range(2)]
        arrays += [other.result() for other in others]
    assert len(others) > 4 and all(array.tolist() == [0, 1, 2, 3, 4] for array in arrays)
