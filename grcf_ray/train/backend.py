"""Ray Train's backend for torch, whose workers meet on an interface that joins their machines.

Apart from `distributed`: Ray Train's part for torch takes seconds to import.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import uuid
from pathlib import Path
from typing import Any

import grcf_ray.cluster  # noqa: F401  before Ray

import ray
import torch
from ray.train.torch import TorchConfig

from grcf_ray.train.interfaces import choose_interfaces, named_interfaces, private_interfaces


@dataclasses.dataclass
class MeetingConfig(TorchConfig):
    """A process group of torch."""

    interfaces: dict[str, str] = dataclasses.field(default_factory=dict)
    """Those of `network.VARIABLES` that are set where the job was given; on a worker, its own node's come first."""
    folder: str = ""
    """Where workers of a private Ray meet, in a file."""

    @property
    def backend_cls(self) -> type:
        """What starts the group."""
        return _MeetingBackend


class _MeetingBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Torch's, once the workers know where to meet."""

    def on_start(self, worker_group: Any, backend_config: MeetingConfig) -> None:
        """Join the workers in a process group. Those of one machine meet wherever torch has them.

        Those of a Ray that listens on the loopback interface alone do so too, and meet in a file: torch's own meeting
        point listens on all interfaces.
        """
        addresses = set(worker_group.execute(ray.util.get_node_ip_address))
        if len(addresses) > 1:
            worker_group.execute(_choose, backend_config.interfaces)
        elif private := private_interfaces(addresses.pop()):
            size, file = len(worker_group), Path(backend_config.folder) / uuid.uuid4().hex
            ray.get(
                [
                    worker_group.execute_single_async(rank, _meet, backend_config, private, file.as_uri(), rank, size)
                    for rank in range(size)
                ]
            )
            return
        super().on_start(worker_group, backend_config)


def _choose(asked: dict[str, str]) -> None:
    """Of a worker: set the variables that its process group reads."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    os.environ.update(choose_interfaces(address, asked | named_interfaces()))


def _meet(config: MeetingConfig, interfaces: dict[str, str], url: str, rank: int, size: int) -> None:
    """Of a worker: join its process group on this machine."""
    os.environ.update(interfaces | named_interfaces())
    torch.distributed.init_process_group(
        config.backend,
        init_method=url,
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=config.timeout_s),
    )
