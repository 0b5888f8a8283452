"""Ray Train's torch backend, with workers that meet on a network interface that joins their nodes.

In a module of its own, since Ray Train's torch part takes seconds to import.
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
    """Configuration of a torch process group."""

    interfaces: dict[str, str] = dataclasses.field(default_factory=dict)
    """Values of `interfaces.VARIABLES` from the process that gave the job. The values of a worker's own node come
    first."""
    folder: str = ""
    """Folder with the file in which workers of a private Ray meet."""

    @property
    def backend_cls(self) -> type:
        """The class that starts the group."""
        return _MeetingBackend


class _MeetingBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Torch's backend, after the workers have learned where to meet."""

    def on_start(self, worker_group: Any, backend_config: MeetingConfig) -> None:
        """Join the workers in a process group. On several nodes, choose the network interface first.

        Workers of a Ray that listens on the loopback interface use that interface, and meet in a file: torch's own
        meeting point would listen on all interfaces.
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


def _choose(requested: dict[str, str]) -> None:
    """Set the variables that the process group of this worker reads."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    os.environ.update(choose_interfaces(address, requested | named_interfaces()))


def _meet(config: MeetingConfig, interfaces: dict[str, str], url: str, rank: int, size: int) -> None:
    """Join this worker to its process group on this machine."""
    os.environ.update(interfaces | named_interfaces())
    torch.distributed.init_process_group(
        config.backend,
        init_method=url,
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=config.timeout_s),
    )
