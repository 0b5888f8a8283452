"""What is wrong with a file of Ray's cluster launcher: what Ray's own checks say, and what they let pass."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ONCE = ("GRCF_DATA", "GRCF_RUNS", "RAY_AUTH_MODE", "RAY_JOB_STOP_WAIT_TIME_S")
"""Variables that every process of a cluster sees, set in one place."""
PROVIDER = {
    "local": {"type", "head_ip", "worker_ips"},
    "aws": {"type", "region", "availability_zone", "cache_stopped_nodes", "security_group", "use_internal_ips"},
    "gcp": {"type", "project_id", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips"},
}
GCP_NODE: dict[str, Any] = {
    "machineType": None,
    "disks": {
        "boot": None,
        "autoDelete": None,
        "type": None,
        "initializeParams": {"diskSizeGb": None, "diskType": None, "sourceImage": None},
    },
    "guestAccelerators": {"acceleratorType": None, "acceleratorCount": None},
    "scheduling": {
        "onHostMaintenance": None,
        "automaticRestart": None,
        "provisioningModel": None,
        "instanceTerminationAction": None,
    },
    "serviceAccounts": {"email": None, "scopes": None},
    "networkInterfaces": {"network": None, "subnetwork": None},
    "metadata": {"items": {"key": None, "value": None}},
    "labels": None,
    "tags": {"items": None},
}
"""Keys of an instance of Compute Engine that a file here may have, and those inside of them."""
GCP_GPUS = {"n2-standard-8": 0, "g2-standard-8": 1, "g2-standard-24": 2, "a2-highgpu-1g": 1}


def faults(values: dict[str, Any]) -> list[str]:
    """All that is wrong with a file's content, a line each."""
    found = [*_bounds(values), *_provider(values), *_commands(values), *_files(values)]
    kind = values["provider"]["type"]
    if kind != "local":
        found += _types(values)
        for name, node in values["available_node_types"].items():
            found += [f"{name}: {line}" for line in (_aws if kind == "aws" else _gcp)(node)]
    # Ray's own last: it corrects some of the above in silence, or gives up at the first.
    return found + list(_ray(values))


def commands_of(values: Mapping[str, Any], *keys: str) -> list[str]:
    """The commands under some keys, in order."""
    return [command for key in keys for command in values.get(key, [])]


def run_as_node(home: Path, command: str, head: str = "") -> None:
    """Run a command in the shell that the launcher opens on a node by SSH."""
    from ray.autoscaler._private.command_runner import _with_interactive

    subprocess.run(
        ["bash", "-c", " ".join(_with_interactive(command))],
        env={"HOME": str(home), "PATH": os.environ["PATH"], **({"RAY_HEAD_IP": head} if head else {})},
        # An interactive shell would take the terminal of the tests.
        start_new_session=True,
        check=True,
        capture_output=True,
        timeout=60,
    )


def _ray(values: dict[str, Any]) -> Iterator[str]:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(values)))
    except (ValidationError, ValueError, KeyError) as error:
        yield f"Ray: {error}"


def _bounds(values: dict[str, Any]) -> Iterator[str]:
    if "worker_ips" in values["provider"]:
        low, high, there = values["min_workers"], values["max_workers"], len(values["provider"]["worker_ips"])
        if low > high:
            yield f"min_workers {low} above max_workers {high}"
        if high > there:
            yield f"{high} workers of {there} worker_ips"
        return
    for name, node in values["available_node_types"].items():
        low, high = node.get("min_workers", 0), node.get("max_workers", 0)
        if low > high:
            yield f"{name}: min_workers {low} above max_workers {high}"
        if high > values["max_workers"]:
            yield f"{name}: max_workers {high} above the cluster's {values['max_workers']}"
        if high and name == values["head_node_type"]:
            yield "a worker would be like the head"
    if not any(node.get("max_workers") for node in values["available_node_types"].values()):
        yield "there is no worker"


def _provider(values: dict[str, Any]) -> Iterator[str]:
    provider = values["provider"]
    yield from (f"provider.{key} is no key" for key in provider.keys() - PROVIDER[provider["type"]])


def _commands(values: dict[str, Any]) -> Iterator[str]:
    head = commands_of(values, "setup_commands", "head_setup_commands", "head_start_ray_commands")
    worker = commands_of(values, "setup_commands", "worker_setup_commands", "worker_start_ray_commands")
    for command in {*head, *worker}:
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        if checked.returncode:
            yield f"no shell command: {command}"
    several = bool(values["provider"].get("worker_ips", True))
    once = (*ONCE, "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if several else ONCE
    for name in once:
        if len(re.findall(rf"\b{name}=", "\n".join(head))) != 1:
            yield f"{name} has to be set once"
    if not any("ray start --head " in command and "ray_bootstrap_config" in command for command in head):
        yield "no command starts the head with its autoscaler"
    if several and not any("ray start --address=$RAY_HEAD_IP:6379" in command for command in worker):
        yield "no command starts a worker"


def _files(values: dict[str, Any]) -> Iterator[str]:
    mounts = values.get("file_mounts", {})
    for local in mounts.values():
        if not local.startswith("~") and not (ROOT / local).exists():
            yield f"there is no {local}"
    if not values["provider"].get("worker_ips", True):
        return
    if "~/.ray/auth_token" not in mounts:
        yield "nodes do not get the token"
    packages = [remote for remote, local in mounts.items() if local == "clusters/requirements.txt"]
    setup = " ".join(commands_of(values, "setup_commands"))
    if not any(f"-r {remote}" in setup for remote in packages):
        yield "nodes do not get the packages"


def _types(values: dict[str, Any]) -> Iterator[str]:
    head = values["available_node_types"].get(values["head_node_type"])
    if head is None:
        yield f"head_node_type {values['head_node_type']} is none of the types"
    elif "InstanceMarketOptions" in head["node_config"] or "provisioningModel" in head["node_config"].get(
        "scheduling", {}
    ):
        yield "the head can be taken away, and the search with it"


def _gpus(node: dict[str, Any], kind: str, there: int) -> Iterator[str]:
    """Whether the GPUs that Ray is told of are those that are there."""
    told = node["resources"].get("GPU")
    if told is None and there:
        yield f"{there} GPU(s) of {kind} are not among its resources"
    elif told is not None and told != there:
        yield f"GPU {told} of {kind}, which has {there}"


def _aws(node: dict[str, Any]) -> Iterator[str]:
    from botocore.validate import ParamValidator
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    # These two are Ray's to fill in.
    request = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(request, _run_instances()).generate_report()
    yield from report.splitlines()
    kind = node["node_config"].get("InstanceType")
    if kind not in INSTANCE_TYPES:
        yield f"there is no instance type {kind}"
        return
    gpus = INSTANCE_TYPES[kind].get("GpuInfo", {}).get("Gpus", [])
    yield from _gpus(node, kind, sum(gpu["Count"] for gpu in gpus))


@cache
def _run_instances() -> Any:
    """The shape of the request that launches instances of EC2."""
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _gcp(node: dict[str, Any]) -> Iterator[str]:
    config = node["node_config"]
    yield from _unknown(config, GCP_NODE)
    kind = config.get("machineType")
    if kind not in GCP_GPUS:
        yield f"machine type {kind} is not among those known here"
        return
    gpus = GCP_GPUS[kind]
    yield from _gpus(node, kind, gpus)
    asked = sum(accelerator["acceleratorCount"] for accelerator in config.get("guestAccelerators", []))
    if asked != gpus:
        yield f"{asked} accelerators of {kind}, which has {gpus}"
    for disk in config.get("disks", []):
        if not disk["initializeParams"].get("diskType", "").endswith(("/pd-balanced", "/pd-ssd")):
            yield "machines with GPUs take no disk of the default type: initializeParams.diskType"
    if gpus and config.get("scheduling", {}).get("onHostMaintenance") != "TERMINATE":
        yield "machines with GPUs do not move: they need scheduling.onHostMaintenance TERMINATE"


def _unknown(values: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if key not in known:
            yield f"{key} is no key"
        elif known[key] is not None:
            inner: Sequence[Any] = value if isinstance(value, list) else [value]
            for item in inner:
                yield from _unknown(item, known[key])
