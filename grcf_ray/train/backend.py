"""Ray Train's torch trainer, whose workers meet on a network interface that joins their nodes.

In a module of its own, since Ray Train's torch part takes seconds to import.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import grcf_ray.cluster  # noqa: F401  before Ray

import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from grcf_ray.train.interfaces import choose_interfaces, named_interfaces, private_interfaces
from grcf_ray.train.location import selector


def torch_trainer(
    train_loop_per_worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    run_config: RunConfig,
    *,
    workers: int,
    resources: Mapping[str, float],
    interfaces: Mapping[str, str],
    meeting: Path,
    avoid: Collection[str] = (),
) -> TorchTrainer:
    """Return the trainer of a number of workers, on one node if they fit.

    resources: of each worker, under Ray's names. interfaces: values of `interfaces.VARIABLES` in the caller's
    environment. meeting: folder in which workers of a private Ray meet. avoid: Ray's ids of nodes that get no
    worker.
    """
    gpus = resources.get("GPU", 0.0)
    # NCCL allows one process per GPU.
    cuda = "nccl" if gpus >= 1 else "gloo"
    backend = f"cpu:gloo,cuda:{cuda}" if gpus else "gloo"
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config=config,
        torch_config=MeetingConfig(backend=backend, interfaces=dict(interfaces), folder=str(meeting)),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus > 0,
            resources_per_worker=dict(resources),
            placement_strategy="PACK",
            label_selector=selector(avoid) or None,  # type: ignore[call-arg]
        ),
        run_config=run_config,
    )


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
