"""Wait until a Ray cluster has enough nodes or GPUs, then run a command.

    python clusters/with_nodes.py --gpus 4 python -m grcf_ray.search --dataset mosi

An autoscaling cluster has no worker when a search starts, and the search alone makes it add one after the other. The
request for all GPUs lasts as long as the command: idle workers stay, and lost workers are replaced. A cluster has one
such request. If two commands use --gpus, the first one to end also withdraws the other's request.
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
    """Return the exit code of the command, or 5 (like a search) if the cluster does not grow in time."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nodes",
        type=int,
        default=1,
        metavar="N",
        help="Number of nodes to wait for, including the head [default: %(default)s]",
    )
    parser.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="Number of GPUs to request and wait for [default: %(default)s]"
    )
    parser.add_argument(
        "--minutes", type=float, default=30, metavar="M", help="Longest wait in minutes [default: %(default)s]"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="Command to run, with its arguments")
    options = parser.parse_args()
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    # After ray.init, which sets its own handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    try:
        if options.gpus:
            request_resources(bundles=[{"GPU": 1}] * options.gpus)
        if missing := _wait(options.nodes, options.gpus, time.monotonic() + 60 * options.minutes):
            print(
                f"The cluster has {missing} after {options.minutes:g} minutes. Run `ray status` for the reason, "
                "or wait longer with --minutes",
                file=sys.stderr,
            )
            return 5
        return _run(options.command)
    finally:
        # The autoscaler would keep the request after the job.
        if options.gpus:
            request_resources(bundles=[])


def _wait(nodes: int, gpus: int, deadline: float) -> str:
    """Return the missing nodes and GPUs at the deadline, or an empty string as soon as none are missing."""
    printed = ""
    while True:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        counts = [(len(alive), nodes, "nodes"), (int(sum(node.get("GPU", 0) for node in alive)), gpus, "GPUs")]
        missing = ", ".join(f"{have} of {wanted} {unit}" for have, wanted, unit in counts if have < wanted)
        if not missing or time.monotonic() > deadline:
            return missing
        if missing != printed:
            print(f"Waiting: {missing}", file=sys.stderr, flush=True)
        printed = missing
        time.sleep(_POLL_S)


def _run(command: list[str]) -> int:
    # Ray signals all processes of a stopped job, and the command has to end first. If the signal arrived before the
    # command started, pass it on.
    stopped: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    process = subprocess.Popen(command)
    if stopped:
        process.terminate()
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
