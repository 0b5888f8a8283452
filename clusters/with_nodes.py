"""Wait until a Ray cluster has so many nodes or GPUs, then run a command.

    python clusters/with_nodes.py --gpus 4 python -m grcf_ray.search --dataset mosi --gpus-per-worker 1

A search counts the trials that fit when it starts, and a cluster that grows has no worker then. GPUs are asked of the
autoscaler, for as long as the command runs: workers that are between two trials stay, and lost ones are replaced. A
cluster has one such request: of two commands with --gpus, the one that ends first takes back the other's too.
"""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
import time

import ray
from ray.autoscaler.sdk import request_resources

_POLL_S = 2.0


def main() -> int:
    """The exit code of the command; 5, as a search has it, where the cluster does not grow in time."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes to wait for, the head among them")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs to ask for and to wait for")
    parser.add_argument("--minutes", type=float, default=30, metavar="M", help="to wait at most (default 30)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    # After Ray, which has a handler of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    try:
        if asked.gpus:
            request_resources(bundles=[{"GPU": 1}] * asked.gpus)
        if lack := _wait(asked.nodes, asked.gpus, time.monotonic() + 60 * asked.minutes):
            print(f"The cluster has {lack} after {asked.minutes:g} minutes", file=sys.stderr)
            return 5
        return _run(asked.command)
    finally:
        # A request outlives the job that made it.
        if asked.gpus:
            request_resources(bundles=[])


def _wait(nodes: int, gpus: int, deadline: float) -> str:
    """What the cluster lacks at the deadline; empty as soon as it lacks nothing."""
    told = ""
    while True:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        counts = [(len(alive), nodes, "nodes"), (int(sum(node.get("GPU", 0) for node in alive)), gpus, "GPUs")]
        lack = ", ".join(f"{have} of {wanted} {what}" for have, wanted, what in counts if have < wanted)
        if not lack or time.monotonic() > deadline:
            return lack
        if lack != told:
            print(f"Waiting: {lack}", file=sys.stderr, flush=True)
        told = lack
        time.sleep(_POLL_S)


def _run(command: list[str]) -> int:
    # A job that is stopped has all its processes told so: the command has to end first. One that starts just then is
    # told here.
    stopped: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    process = subprocess.Popen(command)
    if stopped:
        process.terminate()
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
