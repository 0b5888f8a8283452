"""Ray Train's backend for torch, whose workers meet on an interface that joins their machines.

Apart from `distributed`: Ray Train's part for torch takes seconds to import.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import ray
from ray.train.torch import TorchConfig

from grcf_ray.train.network import choose_interfaces, named_interfaces

__all__ = ["MeetingConfig"]


@dataclasses.dataclass
class MeetingConfig(TorchConfig):
    """A process group of torch."""

    interfaces: dict[str, str] = dataclasses.field(default_factory=dict)
    """Those of `network.VARIABLES` that are set where the job was given; on a worker, its own node's come first."""

    @property
    def backend_cls(self) -> type:
        """What starts the group."""
        return _MeetingBackend


class _MeetingBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Torch's, once the workers know where to meet."""

    def on_start(self, worker_group: Any, backend_config: MeetingConfig) -> None:
        """Join the workers in a process group. Those of one machine meet wherever torch has them."""
        if len(set(worker_group.execute(ray.util.get_node_ip_address))) > 1:
            worker_group.execute(_choose, backend_config.interfaces)
        super().on_start(worker_group, backend_config)


def _choose(asked: dict[str, str]) -> None:
    """Of a worker: set the variables that its process group reads."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    os.environ.update(choose_interfaces(address, asked | named_interfaces()))
