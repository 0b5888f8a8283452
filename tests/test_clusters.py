"""The files in clusters/: each is checked by what reads it, and each check is shown to fail on a file that is wrong."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clusters_kubernetes as kubernetes
import clusters_launcher as launcher
import pytest
import yaml
from clusters_slurm import Scheduler

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "clusters"
LAUNCHER = ("local.yaml", "on_premises.yaml", "aws.yaml", "gcp.yaml")
KUBERAY = ("kuberay_cluster.yaml", "kuberay_job.yaml")
HEADED = (*LAUNCHER, *KUBERAY, "kuberay_storage.yaml", "slurm.sbatch")
PINS = dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)$", (CLUSTERS / "requirements.txt").read_text(), re.MULTILINE))


def content(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CLUSTERS / name).read_text(encoding="utf-8"))
    return values


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTERS / name).read_text(encoding="utf-8")))


def changed(values: Any, path: str, value: Any) -> Any:
    """A copy with one value set, or taken out if it is None; the path's parts are keys and indices."""
    # By way of text, since what an anchor names is one object in several places.
    values = yaml.load(yaml.dump(values, Dumper=_Plain), Loader=yaml.SafeLoader)
    inner = values
    *parts, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parts:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return values


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@pytest.fixture(scope="module")
def schemas() -> Path:
    """KubeRay's definitions of its resources."""
    if "GRCF_TEST_DATA" not in os.environ:
        pytest.skip("KubeRay's schemas lie in the folder kuberay beside the one that GRCF_TEST_DATA names")
    folder = Path(os.environ["GRCF_TEST_DATA"]).parent / "kuberay"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with KubeRay's schemas")
    return folder


def test_every_file_is_tested() -> None:
    rest = {"README.md", "Dockerfile", "requirements.txt", "with_nodes.py"}
    assert {path.name for path in CLUSTERS.iterdir() if path.is_file()} == {*HEADED, *rest}


@pytest.mark.parametrize("name", HEADED)
def test_header_tells_how_to_use_it(name: str) -> None:
    header = [line.lstrip("# ") for line in (CLUSTERS / name).read_text().splitlines() if line.startswith("#")]
    for word in ("launch", "submit", "watch", "results", "stop", *(() if name == "local.yaml" else ("data",))):
        assert any(line.startswith(f"{word} ") for line in header), word


@pytest.mark.parametrize("name", [*HEADED, "README.md"])
def test_headers_name_files_and_options_that_exist(name: str) -> None:
    text = (CLUSTERS / name).read_text()
    assert all((ROOT / path).exists() for path in re.findall(r"clusters/[\w.]+\w", text))
    from grcf_ray.cli.search import app

    known = {option for command in app.registered_commands for option in _options(command.callback)}
    for command in re.findall(r"grcf_ray\.search ([^\n`)]*)", text):
        assert set(re.findall(r"--[a-z0-9-]+", command)) <= known, command


def _options(function: Any) -> list[str]:
    return [f"--{name.strip('_').replace('_', '-')}" for name in function.__annotations__]


# The releases.


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    from packaging.requirements import Requirement

    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["demo"])]
    assert {requirement.name for requirement in asked} | {"boto3", "google-api-python-client"} == set(PINS)
    for requirement in asked:
        assert requirement.specifier.contains(PINS[requirement.name]), requirement
    extras = {requirement.name: requirement.extras for requirement in asked if requirement.extras}
    assert extras == {"ray": {"default", "train", "tune"}}
    assert "ray[default,train,tune]==" in (CLUSTERS / "requirements.txt").read_text()


def test_files_name_the_same_releases() -> None:
    assert f"torch=={PINS['torch']}" in (ROOT / "README.md").read_text()
    assert f"FROM rayproject/ray:{PINS['ray']}-py311-" in (CLUSTERS / "Dockerfile").read_text()
    assert "Python 3.11" in (CLUSTERS / "requirements.txt").read_text()
    token, install = content("aws.yaml")["setup_commands"][1:]
    assert " --python 3.11 " in install
    for name in ("gcp.yaml", "on_premises.yaml"):
        assert content(name)["setup_commands"][1:] == [token, install]


def test_the_image_has_what_a_job_runs() -> None:
    lines = (CLUSTERS / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY ")]
    assert all((ROOT / path).exists() for path in copied)
    assert {"clusters", "grcf_ray", "search_spaces"} <= set(copied)
    folder = next(line.split()[1] for line in lines if line.startswith("WORKDIR "))
    assert f"ENV PYTHONPATH={folder}" in lines
    [entrypoint] = [d["spec"]["entrypoint"] for d in documents("kuberay_job.yaml") if d["kind"] == "RayJob"]
    script = entrypoint.split()[1]
    assert (ROOT / Path(script).relative_to(folder)).is_file()


# Ray's cluster launcher.


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_file_has_no_faults(name: str) -> None:
    assert launcher.faults(content(name)) == []


WORKER = "available_node_types/worker"


@pytest.mark.parametrize(
    ("name", "path", "value", "fault"),
    [
        ("local.yaml", "max_wrokers", 1, "'max_wrokers' was unexpected"),
        ("local.yaml", "min_workers", 1, "min_workers 1 above max_workers 0"),
        ("local.yaml", "head_start_ray_commands/1", "ray start --head", "GRCF_RUNS has to be set once"),
        ("on_premises.yaml", "min_workers", 3, "min_workers 3 above max_workers 2"),
        ("on_premises.yaml", "max_workers", 3, "3 workers of 2 worker_ips"),
        ("on_premises.yaml", "provider/head_ipp", "h", "provider.head_ipp"),
        ("aws.yaml", "provider/cache_stoped_nodes", False, "provider.cache_stoped_nodes"),
        ("aws.yaml", "head_node_type", "heads", "head_node_type"),
        ("aws.yaml", f"{WORKER}/min_workers", 5, "worker: min_workers 5 above max_workers 4"),
        ("aws.yaml", f"{WORKER}/max_workers", 5, "worker: max_workers 5 above the cluster's 4"),
        ("aws.yaml", f"{WORKER}/max_workers", 0, "there is no worker"),
        ("aws.yaml", "available_node_types/head/max_workers", 1, "a worker would be like the head"),
        ("aws.yaml", f"{WORKER}/node_config/InstanceTyp", "g5.2xlarge", '"InstanceTyp"'),
        ("aws.yaml", f"{WORKER}/node_config/InstanceMarketOptions/MarketTyp", "spot", '"MarketTyp"'),
        ("aws.yaml", f"{WORKER}/node_config/BlockDeviceMappings/0/Ebs/VolumeSize", "150", "VolumeSize"),
        ("aws.yaml", f"{WORKER}/node_config/InstanceType", "g5.3xlarge", "instance type g5.3xlarge"),
        ("aws.yaml", f"{WORKER}/resources/GPU", 2, "GPU 2 of g5.2xlarge, which has 1"),
        ("aws.yaml", f"{WORKER}/resources/GPU", None, "1 GPU(s) of g5.2xlarge are not among its resources"),
        (
            "aws.yaml",
            "available_node_types/head/node_config/InstanceMarketOptions",
            {"MarketType": "spot"},
            "taken away",
        ),
        ("aws.yaml", "setup_commands", [], "nodes do not get the packages"),
        ("aws.yaml", "setup_commands/2", "pip install ray", "nodes do not get the packages"),
        ("aws.yaml", "setup_commands/1", "chmod 600 'x", "no shell command"),
        ("aws.yaml", "setup_commands/1", "export GRCF_RUNS=/tmp", "GRCF_RUNS has to be set once"),
        ("aws.yaml", "worker_start_ray_commands", ["ray start"], "no command starts a worker"),
        ("aws.yaml", "head_start_ray_commands/1", "ray start --head", "no command starts the head"),
        ("aws.yaml", "file_mounts", {"~/a": "clusters/none.txt"}, "there is no clusters/none.txt"),
        ("aws.yaml", "file_mounts", {}, "nodes do not get the token"),
        ("gcp.yaml", f"{WORKER}/node_config/machineTyp", "x", "machineTyp is no key"),
        ("gcp.yaml", f"{WORKER}/node_config/scheduling/onHostMaintenence", "TERMINATE", "onHostMaintenence is no key"),
        ("gcp.yaml", f"{WORKER}/node_config/disks/0/initializeParams/sourceimage", "x", "sourceimage is no key"),
        ("gcp.yaml", f"{WORKER}/node_config/disks/0/initializeParams/diskType", None, "no disk of the default type"),
        ("gcp.yaml", f"{WORKER}/node_config/scheduling/onHostMaintenance", "MIGRATE", "need scheduling.onHost"),
        (
            "gcp.yaml",
            f"{WORKER}/node_config/guestAccelerators/0/acceleratorCount",
            2,
            "2 accelerators of g2-standard-8",
        ),
        ("gcp.yaml", "available_node_types/head/node_config/scheduling", {"provisioningModel": "SPOT"}, "taken away"),
    ],
)
def test_launcher_fault_is_found(name: str, path: str, value: Any, fault: str) -> None:
    assert any(fault in found for found in launcher.faults(changed(content(name), path, value)))


def test_rays_provider_launches_the_nodes_of_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of Ray's own steps from the file to the instances, on a simulated EC2."""
    import boto3
    from moto import mock_aws

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_DEFAULT_REGION", content("aws.yaml")["provider"]["region"])
    with mock_aws():
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler._private.util import prepare_config

        boto3.client("iam").create_instance_profile(InstanceProfileName="grcf-nodes")
        prepared = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(content("aws.yaml")))
        config = bootstrap_aws(prepared)
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, node in config["available_node_types"].items():
            assert provider.create_node(node["node_config"], {"ray-user-node-type": name}, 1)
        found = [i for r in boto3.client("ec2").describe_instances()["Reservations"] for i in r["Instances"]]
    # What the simulation knows of the instance types, and how they are paid for.
    resources = {name: node["resources"] for name, node in config["available_node_types"].items()}
    assert (resources["head"]["CPU"], resources["worker"]["CPU"], resources["worker"]["GPU"]) == (0, 8, 1)
    assert {i["InstanceType"]: i.get("InstanceLifecycle") for i in found} == {"m6i.2xlarge": None, "g5.2xlarge": "spot"}
    assert all(i["IamInstanceProfile"]["Arn"].endswith("/grcf-nodes") for i in found)


def test_gcp_account_is_of_the_project() -> None:
    metadata = content("gcp.yaml")["metadata"]
    assert metadata["account"].partition("@")[2] == f"{metadata['project']}.iam.gserviceaccount.com"


@pytest.mark.parametrize("name", LAUNCHER)
def test_commands_set_what_ray_is_started_with(name: str, tmp_path: Path) -> None:
    """All commands of a head and of a worker, run by a shell as the launcher has it; installers and Ray are stubs."""
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
        for command in launcher.commands_of(values, *setup):
            launcher.run_as_node(tmp_path, command)
        for command in launcher.commands_of(values, start):
            launcher.run_as_node(tmp_path, command, head="10.0.0.1")
    calls = (tmp_path / "calls").read_text().splitlines()
    starts = [call for call in calls if call.startswith("ray start")]
    assert len(starts) == (1 if name == "local.yaml" else 2)
    for call in starts:
        assert "mode=token data=/" in call
        assert "data= " not in call and "runs= " not in call
        assert name == "local.yaml" or not call.endswith("gloo=")
    assert name == "local.yaml" or "--address=10.0.0.1:6379" in starts[1]


# Kubernetes.


@pytest.mark.parametrize("name", KUBERAY)
def test_manifest_is_of_kuberays_schema(name: str, schemas: Path) -> None:
    [manifest] = [document for document in documents(name) if document["apiVersion"] != "v1"]
    assert kubernetes.schema_faults(manifest, schemas) == []


HEAD_POD = "spec/headGroupSpec/template/spec"
WORKERS = "spec/workerGroupSpecs/0"


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("apiVersion", "ray.io/v1beta1", "ray.io/v1beta1"),
        ("metadata/name", "Grcf", "$.metadata.name"),
        ("spec/rayVersoin", "2.60.0", "'rayVersoin' was unexpected"),
        ("spec/authOptions/mode", "tokens", "'tokens' is not one of"),
        ("spec/autoscalerOptions/idleTimeoutSecond", 60, "'idleTimeoutSecond' was unexpected"),
        ("spec/headGroupSpec", None, "'headGroupSpec' is a required property"),
        ("spec/headGroupSpec/rayStartParams/num-cpus", 0, "0 is not of type 'string'"),
        (f"{HEAD_POD}/containers/0/imagePulPolicy", "Always", "'imagePulPolicy' was unexpected"),
        (f"{HEAD_POD}/containers/0/ports/0/containerPort", "6379", "'6379' is not of type 'integer'"),
        (f"{HEAD_POD}/containers/0/envFrom/0/configMap", {}, "'configMap' was unexpected"),
        (f"{HEAD_POD}/volumes/0/persistentVolumeClaim/claimName", None, "'claimName' is a required"),
        (f"{HEAD_POD}/securityContext/fsgroup", 100, "'fsgroup' was unexpected"),
        (f"{WORKERS}/minReplicas", None, "'minReplicas' is a required property"),
        (f"{WORKERS}/replicas", "2", "'2' is not of type 'integer'"),
        (f"{WORKERS}/template/spec/containers/0/resources/limits/cpu", 1.5, "1.5 is not valid"),
    ],
)
def test_schema_fault_is_found(path: str, value: Any, fault: str, schemas: Path) -> None:
    manifest = changed(documents("kuberay_cluster.yaml")[1], path, value)
    found = kubernetes.schema_faults(manifest, schemas)
    assert any(fault in line for line in found), found


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("spec/backoffLimits", 2, "'backoffLimits' was unexpected"),
        ("spec/backoffLimit", "2", "'2' is not of type 'integer'"),
        ("spec/entrypoint", ["python"], "is not of type 'string'"),
        ("spec/rayClusterSpec/rayVersoin", "2.60.0", "'rayVersoin' was unexpected"),
    ],
)
def test_schema_fault_of_a_job_is_found(path: str, value: Any, fault: str, schemas: Path) -> None:
    found = kubernetes.schema_faults(changed(documents("kuberay_job.yaml")[1], path, value), schemas)
    assert any(fault in line for line in found), found


@pytest.mark.parametrize("name", KUBERAY)
def test_manifests_agree(name: str) -> None:
    assert kubernetes.meaning_faults(documents(name), ray=PINS["ray"]) == []


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("1/spec/rayVersion", "2.59.0", "rayVersion 2.59.0 is not"),
        ("1/spec/authOptions", None, "no token"),
        ("1/spec/headGroupSpec/rayStartParams/num-cpus", "4", "run on the head"),
        (f"1/{WORKERS}/replicas", 9, "replicas 9 outside"),
        ("1/spec/enableInTreeAutoscaling", None, "nothing scales"),
        (f"1/{WORKERS}/template/spec/containers/0/image", "other:2.60.0", "different images"),
        (f"1/{HEAD_POD}/containers/0/image", "grcf_ray:latest", "is not of Ray"),
        (f"1/{HEAD_POD}/containers/0/envFrom", [{"configMapRef": {"name": "none"}}], "no ConfigMap none"),
        ("0/data/RAY_JOB_STOP_WAIT_TIME_S", 30, "is no string"),
        ("0/data/GLOO_SOCKET_IFNAME", None, "GLOO_SOCKET_IFNAME is not set"),
        ("0/data/GRCF_RUNS", "/runs", "GRCF_RUNS lies on no volume"),
        (f"1/{HEAD_POD}/volumes/0/name", "other", "no volume grcf"),
        (f"1/{HEAD_POD}/containers/0/resources/limits/cpu", "8", "requests have to be the same"),
    ],
)
def test_disagreement_is_found(path: str, value: Any, fault: str) -> None:
    found = kubernetes.meaning_faults(changed(documents("kuberay_cluster.yaml"), path, value), ray=PINS["ray"])
    assert any(fault in line for line in found), found


def test_storage_is_of_kubernetes_schema(schemas: Path) -> None:
    claim, files = documents("kuberay_storage.yaml")
    assert kubernetes.claim_faults(claim["spec"], schemas) == []
    assert kubernetes.pod_faults(files["spec"], schemas) == []
    [fault] = kubernetes.claim_faults(changed(claim["spec"], "storageClasName", "fast"), schemas)
    assert "'storageClasName' was unexpected" in fault
    [fault] = kubernetes.pod_faults(changed(files["spec"], "containers/0/comand", []), schemas)
    assert "'comand' was unexpected" in fault


def test_a_job_has_the_same_cluster() -> None:
    texts = []
    for name in KUBERAY:
        settings, manifest = documents(name)
        cluster = yaml.dump(kubernetes.cluster_of(manifest), Dumper=_Plain)
        # The name of its ConfigMap.
        texts.append((settings["data"], cluster.replace("name: grcf-search\n", "name: grcf\n")))
    assert texts[0] == texts[1]


def test_pods_mount_the_claim_that_storage_makes() -> None:
    claim, files = documents("kuberay_storage.yaml")
    assert (claim["kind"], files["kind"]) == ("PersistentVolumeClaim", "Pod")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    pods = [files["spec"]]
    for name in KUBERAY:
        [cluster] = [found for found in map(kubernetes.cluster_of, documents(name)) if found]
        pods += [g["template"]["spec"] for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        assert pod["volumes"] == [{"name": "grcf", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "grcf", "mountPath": "/grcf"}]


# Slurm.


@pytest.fixture
def scheduler(tmp_path: Path) -> Scheduler:
    return Scheduler(tmp_path)


def test_slurm_starts_head_then_workers_then_the_search(scheduler: Scheduler) -> None:
    status, output = scheduler.run("--dataset", "mosi", "--gpus-per-worker", "1")
    assert status == 0, output
    head, *rest, search = scheduler.calls
    assert head.startswith("ray start --head --node-ip-address=10.0.0.1 --port=6379 ")
    workers, wait = sorted(rest, reverse=True)
    assert workers.startswith("srun --no-kill --nodes=2 --ntasks=2 --exclude=n1 --cpus-per-task=8 ray start ")
    assert "--address=10.0.0.1:6379 --block" in workers
    assert all("--num-cpus=8 --num-gpus=2" in start for start in (head, workers))
    assert wait.startswith("python clusters/with_nodes.py --nodes 3 --minutes 10 true ")
    assert search.startswith("python -m grcf_ray.search --dataset mosi --gpus-per-worker 1 ")
    assert all("[token secret]" in call for call in scheduler.calls)


def test_slurm_is_not_led_to_another_cluster(scheduler: Scheduler) -> None:
    """The variable of whoever submits is inherited, and Ray's commands go by it."""
    scheduler.run("--dataset", "mosi")
    head, *rest = scheduler.calls
    assert head.endswith("] ") and all(call.endswith("] 10.0.0.1:6379") for call in rest)


def test_slurm_on_one_node_starts_no_workers(tmp_path: Path) -> None:
    scheduler = Scheduler(tmp_path, nodes=1)
    assert scheduler.run("--dataset", "demo")[0] == 0
    assert not any(call.startswith("srun ") for call in scheduler.calls)


@pytest.mark.parametrize("code", [1, 4])
def test_slurm_hands_the_searchs_exit_code_on(scheduler: Scheduler, code: int) -> None:
    assert scheduler.run("--dataset", "mosi", STATUS=str(code))[0] == code


def test_slurm_stops_the_search_when_its_time_is_over(scheduler: Scheduler) -> None:
    job = scheduler.start("--dataset", "mosi", LASTS="1")
    scheduler.wait_for("search runs")
    # As --signal=B: does, to the batch shell alone.
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130, output
    assert scheduler.calls[-1] == "search terminated"
    assert "the same sbatch again" in output


def test_slurm_does_not_search_without_its_nodes(scheduler: Scheduler) -> None:
    assert scheduler.run("--dataset", "mosi", WAIT_STATUS="5")[0] == 5
    assert not any("grcf_ray.search" in call for call in scheduler.calls)


def test_slurm_says_so_when_the_head_does_not_start(scheduler: Scheduler) -> None:
    status, output = scheduler.run("--dataset", "mosi", HEAD_FAILS="1")
    assert status == 5 and "the head did not start on n1" in output
    assert len(scheduler.calls) == 1


def test_slurm_names_a_wrong_network_interface(scheduler: Scheduler) -> None:
    status, output = scheduler.run("--dataset", "mosi", GLOO_SOCKET_IFNAME="eth8")
    assert status == 5 and "n1 has no network interface eth8" in output
    assert scheduler.calls == []


def test_slurm_options_are_there() -> None:
    lines = (CLUSTERS / "slurm.sbatch").read_text().splitlines()
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH ")]
    assert {"--signal=B:TERM@300", "--no-kill", "--requeue", "--exclusive", "--ntasks-per-node=1"} <= set(options)
    # Slurm stops to read them at the first command.
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


# Waiting for nodes.

RAY_IN_SMALL = """
import json, os
def init(**words): note(["init", words.get("address")])
def note(what):
    with open(os.environ["CALLS"], "a") as file: file.write(json.dumps(what) + "\\n")
polls = 0
def nodes():
    global polls
    polls += 1
    gpus = min(polls - 1, int(os.environ["GPUS"]))
    lost = {"Alive": False, "Resources": {"GPU": 8.0}}
    return [{"Alive": True, "Resources": {"CPU": 0.0}}, lost] + [{"Alive": True, "Resources": {"GPU": 1.0}}] * gpus
"""
SDK_IN_SMALL = """
import ray
def request_resources(bundles): ray.note(["request", bundles])
"""


@pytest.fixture
def with_nodes(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`with_nodes.py` on a cluster that gets one more GPU with every look at it, up to the variable GPUS."""
    for path, text in (("ray/__init__.py", RAY_IN_SMALL), ("ray/autoscaler/sdk.py", SDK_IN_SMALL)):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "ray" / "autoscaler" / "__init__.py").touch()
    script = (CLUSTERS / "with_nodes.py").read_text().replace("_POLL_S = 2.0", "_POLL_S = 0.01")
    (tmp_path / "with_nodes.py").write_text(script)

    def start(*words: str, gpus: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "with_nodes.py"), *words],
            env={"GPUS": str(gpus), "CALLS": str(tmp_path / "calls"), "PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def requests(tmp_path: Path) -> list[str]:
    return [line for line in (tmp_path / "calls").read_text().splitlines() if "request" in line]


def test_command_runs_once_its_gpus_are_there(with_nodes: Callable[..., Any], tmp_path: Path) -> None:
    show = f"cat {tmp_path / 'calls'}; exit 4"
    process = with_nodes("--gpus", "2", "bash", "-c", show, gpus=2)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    assert errors.splitlines() == ["Waiting: 0 of 2 GPUs", "Waiting: 1 of 2 GPUs"]
    # The request stands while the command runs, and not longer.
    assert output.splitlines()[-1] == '["request", [{"GPU": 1}, {"GPU": 1}]]'
    assert requests(tmp_path)[-1] == '["request", []]'


def test_command_does_not_run_without_its_nodes(with_nodes: Callable[..., Any], tmp_path: Path) -> None:
    process = with_nodes("--nodes", "4", "--gpus", "2", "--minutes", "0.005", "echo", "ran", gpus=1)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 5 and output == ""
    assert re.search(r"[12] of 4 nodes, [01] of 2 GPUs after 0.005 minutes", errors)
    assert requests(tmp_path)[-1] == '["request", []]'


def test_fixed_clusters_are_asked_for_nothing(with_nodes: Callable[..., Any], tmp_path: Path) -> None:
    process = with_nodes("--nodes", "2", "echo", "--gpus", "9", gpus=1)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "--gpus 9\n")
    assert requests(tmp_path) == []


@pytest.mark.parametrize("waiting", [True, False])
def test_a_stopped_job_takes_its_request_back(with_nodes: Callable[..., Any], tmp_path: Path, waiting: bool) -> None:
    """Ray sends SIGTERM to every process of a job, to the first one first."""
    command = ("bash", "-c", "sleep 60 & trap 'kill $!; exit 130' TERM; echo $$; wait")
    process = with_nodes("--gpus", "1", *command, gpus=0 if waiting else 1)
    told = (process.stderr if waiting else process.stdout).readline()
    process.send_signal(signal.SIGTERM)
    if not waiting:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(told), signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert requests(tmp_path)[-1] == '["request", []]'


# Jobs.


def test_a_job_uploads_the_package_and_nothing_big(tmp_path: Path) -> None:
    """What `--working-dir .` packs, on a checkout in small."""
    from ray._private.runtime_env.packaging import create_package

    kept = ["grcf_ray/data/store.py", "grcf_ray/data/demo/utterances.csv", "search_spaces/demo.yaml", "pyproject.toml"]
    kept += ["clusters/with_nodes.py"]
    left = ["runs/demo/run.json", "data/mosi.csv", ".venv/bin/python", "venv/bin/python", ".git/HEAD", "dist/a.whl"]
    left += [f"{cache}/a" for cache in (".mypy_cache", ".pytest_cache", ".ruff_cache", "grcf_ray/__pycache__")]
    for name in (*kept, *left):
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).touch()
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, tmp_path / "checkout")
    for include_gitignore in (True, False):
        package = tmp_path / f"{include_gitignore}.zip"
        create_package(str(tmp_path / "checkout"), package, include_gitignore=include_gitignore)
        packed = set(zipfile.ZipFile(package).namelist())
        assert set(kept) <= packed
        assert not packed & set(left)
