"""Files for Ray's cluster launcher: Ray's own checks, and checks of what Ray accepts in silence."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from clusters_files import CLUSTERS, LAUNCHER, ROOT, changed, content

ONCE = ("GRCF_DATA", "GRCF_RUNS", "RAY_AUTH_MODE", "RAY_JOB_STOP_WAIT_TIME_S")
"""Environment variables of all processes of a cluster, which must be set in one place."""
PROVIDER = {
    "local": {"type", "head_ip", "worker_ips"},
    "aws": {"type", "region", "availability_zone", "cache_stopped_nodes", "security_group", "use_internal_ips"},
    "gcp": {"type", "project_id", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips"},
}
GCP_NODE = {
    *("machineType", "labels", "tags/items", "metadata/items/key", "metadata/items/value"),
    *(f"disks/{key}" for key in ("boot", "autoDelete", "type")),
    *(f"disks/initializeParams/{key}" for key in ("diskSizeGb", "diskType", "sourceImage")),
    *(f"guestAccelerators/{key}" for key in ("acceleratorType", "acceleratorCount")),
    *(f"scheduling/{key}" for key in ("onHostMaintenance", "automaticRestart")),
    *(f"scheduling/{key}" for key in ("provisioningModel", "instanceTerminationAction")),
    *(f"serviceAccounts/{key}" for key in ("email", "scopes")),
    *(f"networkInterfaces/{key}" for key in ("network", "subnetwork")),
}
"""The allowed keys of a Compute Engine instance, as paths."""
GCP_GPUS = {"n2-standard-8": 0, "g2-standard-8": 1, "g2-standard-24": 2, "a2-highgpu-1g": 1}


def faults(values: dict[str, Any]) -> list[str]:
    """Return the faults of a file's content, a line each."""
    checks = [check for part in (_bounds, _provider, _commands, _files, _types) for check in part(values)]
    lines = [fault for wrong, fault in checks if wrong]
    check_node = {"aws": _aws, "gcp": _gcp}.get(values["provider"]["type"])
    if check_node:
        for name, node in values["available_node_types"].items():
            lines += [f"{name}: {line}" for line in check_node(node)]
    # Ray's checks come last, since they stop at the first fault.
    return lines + list(_ray(values))


def commands_of(values: Mapping[str, Any], *keys: str) -> list[str]:
    """Return the commands under the keys, in order."""
    return [command for key in keys for command in values.get(key, [])]


def run_as_node(home: Path, command: str, head: str = "") -> None:
    """Run a command in a shell like the launcher's on a node."""
    from ray.autoscaler._private.command_runner import _with_interactive

    subprocess.run(
        ["bash", "-c", " ".join(_with_interactive(command))],
        env={"HOME": str(home), "PATH": os.environ["PATH"], **({"RAY_HEAD_IP": head} if head else {})},
        # An interactive shell would take over the terminal.
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


def _bounds(values: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    if "worker_ips" in values["provider"]:
        low, high, machines = values["min_workers"], values["max_workers"], len(values["provider"]["worker_ips"])
        yield low > high, f"min_workers {low} above max_workers {high}"
        yield high > machines, f"{high} workers of {machines} worker_ips"
        return
    types, most = values["available_node_types"], values["max_workers"]
    for name, node in types.items():
        low, high = node.get("min_workers", 0), node.get("max_workers", 0)
        yield low > high, f"{name}: min_workers {low} above max_workers {high}"
        yield high > most, f"{name}: max_workers {high} above the cluster's {most}"
        yield bool(high) and name == values["head_node_type"], "the head's type has workers"
    yield not any(node.get("max_workers") for node in types.values()), "no type has workers"


def _provider(values: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    provider = values["provider"]
    yield from ((key not in PROVIDER[provider["type"]], f"provider.{key} is unknown") for key in provider)


def _commands(values: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    head = commands_of(values, "setup_commands", "head_setup_commands", "head_start_ray_commands")
    worker = commands_of(values, "setup_commands", "worker_setup_commands", "worker_start_ray_commands")
    for command in {*head, *worker}:
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        yield checked.returncode != 0, f"not a shell command: {command}"
    several = bool(values["provider"].get("worker_ips", True))
    for name in (*ONCE, *(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if several else ())):
        yield len(re.findall(rf"\b{name}=", "\n".join(head))) != 1, f"{name} must be set once"
    starts = any("ray start --head " in command and "ray_bootstrap_config" in command for command in head)
    yield not starts, "no command starts the head with its autoscaler"
    joins = any("ray start --address=$RAY_HEAD_IP:6379" in command for command in worker)
    yield several and not joins, "no command starts a worker"


def _files(values: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    mounts = values.get("file_mounts", {})
    for local in mounts.values():
        yield not local.startswith("~") and not (ROOT / local).exists(), f"there is no {local}"
    if values["provider"].get("worker_ips", True):
        yield "~/.ray/auth_token" not in mounts, "nodes do not get the token"
        packages = [remote for remote, local in mounts.items() if local == "clusters/requirements.txt"]
        setup = " ".join(commands_of(values, "setup_commands"))
        yield not any(f"-r {remote}" in setup for remote in packages), "nodes do not get the packages"


def _types(values: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    if "available_node_types" in values:
        name = values["head_node_type"]
        yield name not in values["available_node_types"], f"head_node_type {name} is none of the types"
        config = values["available_node_types"].get(name, {"node_config": {}})["node_config"]
        spot = "InstanceMarketOptions" in config or "provisioningModel" in config.get("scheduling", {})
        yield spot, "the head is a spot instance, so the search may end"


def _gpus(node: dict[str, Any], kind: str, actual: int) -> Iterator[str]:
    """Compare the GPUs in the file with those of the instance type."""
    declared = node["resources"].get("GPU")
    if declared is None and actual:
        yield f"{actual} GPU(s) of {kind} are not among its resources"
    elif declared not in (None, actual):
        yield f"GPU {declared} of {kind}, which has {actual}"


def _aws(node: dict[str, Any]) -> Iterator[str]:
    from botocore.validate import ParamValidator
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    # Ray sets these two.
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
    """Return botocore's description of the request that launches EC2 instances."""
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _gcp(node: dict[str, Any]) -> Iterator[str]:
    config = node["node_config"]
    yield from _unknown(config)
    kind = config.get("machineType")
    if kind not in GCP_GPUS:
        yield f"machine type {kind} is not in GCP_GPUS"
        return
    gpus = GCP_GPUS[kind]
    yield from _gpus(node, kind, gpus)
    asked = sum(accelerator["acceleratorCount"] for accelerator in config.get("guestAccelerators", []))
    if asked != gpus:
        yield f"{asked} accelerators of {kind}, which has {gpus}"
    for disk in config.get("disks", []):
        if not disk["initializeParams"].get("diskType", "").endswith(("/pd-balanced", "/pd-ssd")):
            yield "machines with GPUs do not support the default disk type: set initializeParams.diskType"
    if gpus and config.get("scheduling", {}).get("onHostMaintenance") != "TERMINATE":
        yield "machines with GPUs do not migrate: set scheduling.onHostMaintenance to TERMINATE"


def _unknown(value: Any, path: str = "") -> Iterator[str]:
    if path in GCP_NODE:
        return
    for inner in value if isinstance(value, list) else [value]:
        if not isinstance(inner, dict) or not any(known.startswith(path) for known in GCP_NODE):
            yield f"{path.rpartition('/')[2]} is unknown"
            continue
        for key, part in inner.items():
            yield from _unknown(part, f"{path}/{key}".strip("/"))


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_file_has_no_faults(name: str) -> None:
    assert faults(content(name)) == []


WORKER = "available_node_types/worker"
HEAD = "available_node_types/head/node_config"


@pytest.mark.parametrize(
    ("name", "path", "value", "fault"),
    [
        ("local.yaml", "max_wrokers", 1, "'max_wrokers' was unexpected"),
        ("local.yaml", "min_workers", 1, "min_workers 1 above max_workers 0"),
        ("local.yaml", "head_start_ray_commands/1", "ray start --head", "GRCF_RUNS must be set once"),
        ("on_premises.yaml", "min_workers", 3, "min_workers 3 above max_workers 2"),
        ("on_premises.yaml", "max_workers", 3, "3 workers of 2 worker_ips"),
        ("on_premises.yaml", "provider/head_ipp", "h", "provider.head_ipp"),
        ("aws.yaml", "head_node_type", "heads", "head_node_type"),
        ("aws.yaml", f"{WORKER}/min_workers", 5, "worker: min_workers 5 above max_workers 4"),
        ("aws.yaml", f"{WORKER}/max_workers", 5, "worker: max_workers 5 above the cluster's 4"),
        ("aws.yaml", f"{WORKER}/max_workers", 0, "no type has workers"),
        ("aws.yaml", "available_node_types/head/max_workers", 1, "the head's type has workers"),
        ("aws.yaml", f"{WORKER}/node_config/InstanceTyp", "g5.2xlarge", '"InstanceTyp"'),
        ("aws.yaml", f"{WORKER}/node_config/InstanceType", "g5.3xlarge", "instance type g5.3xlarge"),
        ("aws.yaml", f"{WORKER}/resources/GPU", 2, "GPU 2 of g5.2xlarge, which has 1"),
        ("aws.yaml", f"{WORKER}/resources/GPU", None, "1 GPU(s) of g5.2xlarge are not among its resources"),
        ("aws.yaml", f"{HEAD}/InstanceMarketOptions", {"MarketType": "spot"}, "spot instance"),
        ("aws.yaml", "setup_commands", [], "nodes do not get the packages"),
        ("aws.yaml", "setup_commands/1", "chmod 600 'x", "not a shell command"),
        ("aws.yaml", "setup_commands/1", "export GRCF_RUNS=/tmp", "GRCF_RUNS must be set once"),
        ("aws.yaml", "worker_start_ray_commands", ["ray start"], "no command starts a worker"),
        ("aws.yaml", "head_start_ray_commands/1", "ray start --head", "no command starts the head"),
        ("aws.yaml", "file_mounts", {"~/a": "clusters/none.txt"}, "there is no clusters/none.txt"),
        ("aws.yaml", "file_mounts", {}, "nodes do not get the token"),
        ("gcp.yaml", f"{WORKER}/node_config/machineTyp", "x", "machineTyp is unknown"),
        ("gcp.yaml", f"{WORKER}/node_config/disks/0/initializeParams/diskType", None, "default disk type"),
        ("gcp.yaml", f"{WORKER}/node_config/scheduling/onHostMaintenance", "MIGRATE", "onHostMaintenance to TERMINATE"),
        ("gcp.yaml", f"{WORKER}/node_config/guestAccelerators/0/acceleratorCount", 2, "2 accelerators of g2-"),
        ("gcp.yaml", f"{HEAD}/scheduling", {"provisioningModel": "SPOT"}, "spot instance"),
    ],
)
def test_launcher_fault_is_found(name: str, path: str, value: Any, fault: str) -> None:
    assert any(fault in line for line in faults(changed(content(name), path, value)))


def test_rays_provider_launches_the_nodes_of_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take Ray's steps from the file to the instances, on a simulated EC2."""
    import boto3
    from moto import mock_aws

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_DEFAULT_REGION", content("aws.yaml")["provider"]["region"])
    with mock_aws():
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler._private.util import prepare_config

        for name in ("grcf-head", "grcf-worker"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=name)
        prepared = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(content("aws.yaml")))
        config = bootstrap_aws(prepared)
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, node in config["available_node_types"].items():
            assert provider.create_node(node["node_config"], {"ray-user-node-type": name}, 1)
        instances = [i for r in boto3.client("ec2").describe_instances()["Reservations"] for i in r["Instances"]]
    # The resources come from the simulation's instance types.
    resources = {name: node["resources"] for name, node in config["available_node_types"].items()}
    assert (resources["head"]["CPU"], resources["worker"]["CPU"], resources["worker"]["GPU"]) == (0, 8, 1)
    assert {i["InstanceType"]: i.get("InstanceLifecycle") for i in instances} == {
        "m6i.2xlarge": None,
        "g5.2xlarge": "spot",
    }
    profiles = {i["InstanceType"]: i["IamInstanceProfile"]["Arn"].rpartition("/")[2] for i in instances}
    assert profiles == {"m6i.2xlarge": "grcf-head", "g5.2xlarge": "grcf-worker"}


def allowed(node: str) -> dict[str, set[str]]:
    """Return the actions that the policy of an AWS node allows, by resource."""
    policy = json.loads((CLUSTERS / f"aws_{node}_policy.json").read_text())
    actions: dict[str, set[str]] = {}
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        names = statement["Action"]
        actions.setdefault(statement["Resource"], set()).update([names] if isinstance(names, str) else names)
    return actions


def test_workers_of_aws_use_the_bucket_of_the_runs_and_nothing_else() -> None:
    [bucket] = set(re.findall(r"GRCF_RUNS=s3://([\w-]+)/", "".join(content("aws.yaml")["setup_commands"])))
    worker, head = allowed("worker"), allowed("head")
    assert set(worker) == {f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"}
    assert {"s3:GetObject", "s3:PutObject", "s3:DeleteObject"} < worker[f"arn:aws:s3:::{bucket}/*"]
    assert not any("*" in action for actions in worker.values() for action in actions)
    assert {resource: head.get(resource) for resource in worker} == worker
    assert {resource for resource, actions in head.items() if "iam:PassRole" in actions} == {
        "arn:aws:iam::*:role/grcf-worker"
    }


def test_gcp_account_is_of_the_project() -> None:
    metadata = content("gcp.yaml")["metadata"]
    assert metadata["account"].partition("@")[2] == f"{metadata['project']}.iam.gserviceaccount.com"


@pytest.mark.parametrize("name", LAUNCHER)
def test_commands_set_the_environment_of_ray(name: str, tmp_path: Path) -> None:
    """Run all commands of a head and a worker in a shell; installers and Ray are stubs."""
    values, stubs = content(name), tmp_path / "stubs"
    stubs.mkdir()
    (tmp_path / ".bashrc").write_text(f"export PATH={stubs}:$PATH\n")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    (tmp_path / "grcf_requirements.txt").touch()
    report = 'echo "ray $* mode=$RAY_AUTH_MODE data=$GRCF_DATA runs=$GRCF_RUNS gloo=$GLOO_SOCKET_IFNAME" >> ~/calls'
    install = (
        'mkdir -p "$UV_INSTALL_DIR" && printf "#!/bin/bash\\n:" > "$UV_INSTALL_DIR/uv" && chmod +x "$UV_INSTALL_DIR/uv"'
    )
    for stub, text in (("ray", report), ("nvidia-smi", ":"), ("curl", f"echo '{install}'")):
        (stubs / stub).write_text(f"#!/bin/bash\n{text}\n")
        (stubs / stub).chmod(0o755)
    for setup, start in (
        (("setup_commands", "head_setup_commands"), "head_start_ray_commands"),
        (("setup_commands", "worker_setup_commands"), "worker_start_ray_commands"),
    ):
        for command in commands_of(values, *setup):
            run_as_node(tmp_path, command)
        for command in commands_of(values, start):
            run_as_node(tmp_path, command, head="10.0.0.1")
    calls = (tmp_path / "calls").read_text().splitlines()
    starts = [call for call in calls if call.startswith("ray start")]
    assert len(starts) == (1 if name == "local.yaml" else 2)
    for call in starts:
        assert "mode=token data=/" in call
        assert "data= " not in call and "runs= " not in call
        assert name == "local.yaml" or not call.endswith("gloo=")
    assert name == "local.yaml" or "--address=10.0.0.1:6379" in starts[1]
