"""The parts of the bench command."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from grcf_ray.bench.frozen_layers import frozen_layers_table
from grcf_ray.bench.memory import memory_table
from grcf_ray.bench.packing import packing_table
from grcf_ray.bench.positions import positions_table
from grcf_ray.bench.scheduler import scheduler_table
from grcf_ray.bench.searching import search_table
from grcf_ray.bench.setup import Setup
from grcf_ray.bench.step import shares_table, step_table
from grcf_ray.tables import Table

MEASURES: Mapping[str, Callable[[Setup], Table]] = {
    "step": step_table,
    "shares": shares_table,
    "positions": positions_table,
    "frozen": frozen_layers_table,
    "memory": memory_table,
    "search": search_table,
    "scheduler": scheduler_table,
    "packing": packing_table,
}
"""The measurement of each part, in the order in which they run."""
