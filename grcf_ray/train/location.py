"""Where a process of a trial runs, and how Ray is asked for other nodes."""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Collection
from typing import Any

import grcf_ray.cluster  # noqa: F401  before Ray

import ray

_GPU = re.compile(r"\bGPU: ([\w,-]+)")


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a process of a trial runs."""

    node: str
    """Ray's id of the node."""
    host: str
    """Host name and address of the node."""
    gpu: str | None
    """Ray's ids of the GPUs, separated by commas; None without a GPU."""

    def __str__(self) -> str:
        """Return a text in which `gpu_of_error`, and Ray's own form of a node id, are found again."""
        return f"on {self.host}, node ID: {self.node}" + (f", GPU: {self.gpu}" if self.gpu else "")


def locate(_process: Any = None) -> Location:
    """Return where this process of Ray runs."""
    gpus = ray.get_gpu_ids()
    host = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"  # type: ignore[no-untyped-call]
    return Location(ray.get_runtime_context().get_node_id(), host, ",".join(map(str, gpus)) or None)


def gpu_of_error(text: str) -> str | None:
    """Return the GPUs of the location that an error names; None if it names none."""
    named = _GPU.search(text)
    return named[1] if named else None


def selector(avoid: Collection[str]) -> dict[str, str]:
    """Return the label selector of the nodes that may be used: all but those with these ids."""
    return {"ray.io/node-id": f"!in({','.join(avoid)})"} if avoid else {}
