"""What the command measures, part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from grcf_ray.bench.frozen_layers import trunk_table
from grcf_ray.bench.growth import growth_tables
from grcf_ray.bench.memory import memory_table
from grcf_ray.bench.naive import naive_tables
from grcf_ray.bench.packing import packing_table
from grcf_ray.bench.pairing import pairing_tables
from grcf_ray.bench.positions import positions_table
from grcf_ray.bench.pruning import pruning_tables
from grcf_ray.bench.scheduler import scheduler_tables
from grcf_ray.bench.searching import search_table
from grcf_ray.bench.setup import Setup
from grcf_ray.bench.step import encoder_table, shares_table
from grcf_ray.tables import Table


def measures() -> Mapping[str, Callable[[Setup], Table]]:
    """The parts by name."""
    return {
        "step": _step,
        "shares": _shares,
        "positions": _positions,
        "frozen": _frozen,
        "memory": _memory,
        "search": _search,
        "packing": _packing,
    }


def studies() -> Mapping[str, Callable[[Setup], Sequence[Table]]]:
    """What takes longer, and is run by name, one at a time."""
    return {
        "end-to-end": naive_tables,
        "growth": growth_tables,
        "pairing": pairing_tables,
        "pruning": pruning_tables,
        "scheduler": scheduler_tables,
    }


def _step(setup: Setup) -> Table:
    features, config = setup.whole()
    return encoder_table(features, config, setup.device, setup.repetitions, setup.say)


def _shares(setup: Setup) -> Table:
    features, config = setup.whole()
    return shares_table(features, config, setup.device, setup.repetitions, setup.say, setup.tables.get("step"))


def _positions(setup: Setup) -> Table:
    return positions_table(setup.device, setup.repetitions, setup.say)


def _frozen(setup: Setup) -> Table:
    return trunk_table(setup.store, setup.config, setup.device, setup.repetitions, setup.say, setup.folder)


def _memory(setup: Setup) -> Table:
    return memory_table(setup.store, setup.config, setup.say, setup.folder)


def _search(setup: Setup) -> Table:
    return search_table(setup.store, setup.config, setup.space, setup.say, setup.folder, setup.trials)


def _packing(setup: Setup) -> Table:
    return packing_table(setup.store, setup.config, setup.repetitions, setup.say, setup.folder, min(setup.processes, 8))
