"""KubeRay manifests: checks against KubeRay's schemas, and of what no schema says."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from clusters_files import KUBERAY, PINS, changed, documents

_NAME = {"type": "string", "pattern": "^[a-z]([a-z0-9-]*[a-z0-9])?$", "maxLength": 47}
"""KubeRay derives the names of services, of at most 63 characters, from it."""
_METADATA = {
    "type": "object",
    "properties": {"name": _NAME, "namespace": _NAME, "labels": {"type": "object"}, "annotations": {"type": "object"}},
    "required": ["name"],
    "additionalProperties": False,
}
_FILES = {"RayCluster": "ray.io_rayclusters", "RayJob": "ray.io_rayjobs"}


POD = "spec/headGroupSpec/template/spec"
CLAIM = f"{POD}/volumes/*/ephemeral/volumeClaimTemplate/spec"


def schema_faults(manifest: dict[str, Any], schemas: Path) -> list[str]:
    """Return what the API server would refuse, or drop in silence, in a KubeRay resource."""
    version = manifest["apiVersion"].partition("/")[2]
    known = _versions(schemas / f"{_FILES[manifest['kind']]}.yaml.xz")
    if version not in known:
        return [f"{manifest['apiVersion']} is no version of {manifest['kind']}"]
    return _check(manifest, {**known[version], "properties": {**known[version]["properties"], "metadata": _METADATA}})


def part_faults(spec: dict[str, Any], schemas: Path, path: str) -> list[str]:
    """Return the faults of a part of a Ray cluster by KubeRay's schemas. path: keys, and * for a list's items."""
    schema = _versions(schemas / "ray.io_rayclusters.yaml.xz")["v1"]
    for name in path.split("/"):
        schema = schema["items"] if name == "*" else schema["properties"][name]
    return _check(spec, schema)


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """Return the specification of the Ray cluster in a resource, if it has one."""
    spec: dict[str, Any] = manifest.get("spec", {})
    return spec if manifest["kind"] == "RayCluster" else spec.get("rayClusterSpec")


def meaning_faults(documents: list[dict[str, Any]], *, ray: str) -> list[str]:
    """Return the inconsistencies in a file. ray: Ray's release."""
    settings = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
    cluster = cluster_of(documents[1])
    assert cluster is not None
    return [*_cluster_faults(cluster, ray), *_pods_faults(cluster, settings, ray)]


def _cluster_faults(cluster: dict[str, Any], ray: str) -> Iterator[str]:
    if cluster["rayVersion"] != ray:
        yield f"rayVersion {cluster['rayVersion']} is not {ray}"
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "no token authentication"
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "trials would run on the head"
    for group in cluster["workerGroupSpecs"]:
        low, now, high = (group[name] for name in ("minReplicas", "replicas", "maxReplicas"))
        if not low <= now <= high:
            yield f"{group['groupName']}: replicas {now} outside {low} to {high}"
        if low < high and not cluster.get("enableInTreeAutoscaling"):
            yield f"{group['groupName']}: nothing scales it from {low} to {high}"


def _pods_faults(cluster: dict[str, Any], settings: dict[str, dict[str, Any]], ray: str) -> Iterator[str]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    images = {container["image"] for pod in pods for container in pod["containers"]}
    if len(images) > 1:
        yield f"different images: {', '.join(sorted(images))}"
    yield from (f"image {image} is not of Ray {ray}" for image in images if not image.endswith(f":{ray}"))
    for pod in pods:
        [container] = pod["containers"]
        for source in container["envFrom"]:
            name = source["configMapRef"]["name"]
            if name not in settings:
                yield f"there is no ConfigMap {name}"
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in pod["volumes"]}
        yield from (f"there is no volume {name}" for name in mounts.keys() - volumes)
        for values in settings.values():
            for variable in ("GRCF_DATA", "GRCF_RUNS", "HF_HOME"):
                place = str(values.get(variable))
                if "://" not in place and not any(place.startswith(f"{path}/") for path in mounts.values()):
                    yield f"{variable} lies on no volume: {place}"
        if container["resources"]["requests"] != container["resources"]["limits"]:
            yield "limits and requests have to be the same: Ray counts limits, Kubernetes requests"
    for values in settings.values():
        yield from (f"{name} is no string" for name, value in values.items() if not isinstance(value, str))
        wanted = ("GRCF_DATA", "GRCF_RUNS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RAY_JOB_STOP_WAIT_TIME_S")
        yield from (f"{name} is not set" for name in wanted if name not in values)


def _check(value: Any, schema: dict[str, Any]) -> list[str]:
    from jsonschema import Draft202012Validator

    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(value)]


@cache
def _versions(path: Path) -> dict[str, dict[str, Any]]:
    """Return the schema of each version of a resource."""
    # PyYAML's Python parser takes seconds for ten thousand lines.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(lzma.decompress(path.read_bytes()), Loader=loader)
    return {
        version["name"]: _closed(version["schema"]["openAPIV3Schema"]) for version in definition["spec"]["versions"]
    }


def _closed(schema: Any) -> Any:
    """Return a Kubernetes schema as a JSON Schema that refuses unknown keys."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    # Schemas have the type "object"; a mapping of properties may have a property with any name.
    if (
        isinstance(schema.get("properties"), dict)
        and schema.get("type") == "object"
        and "additionalProperties" not in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string") is True and "anyOf" not in schema:
        closed["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return closed


@pytest.fixture(scope="module")
def schemas() -> Path:
    """Return the folder with KubeRay's resource definitions."""
    if "GRCF_TEST_DATA" not in os.environ:
        pytest.skip("KubeRay's schemas are in the folder kuberay beside $GRCF_TEST_DATA, which is not set")
    folder = Path(os.environ["GRCF_TEST_DATA"]).parent / "kuberay"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with KubeRay's schemas")
    return folder


@pytest.mark.parametrize("name", KUBERAY)
def test_manifest_is_of_kuberays_schema(name: str, schemas: Path) -> None:
    assert schema_faults(documents(name)[1], schemas) == []


CLUSTER, JOB = KUBERAY
WORKERS = "spec/workerGroupSpecs/0"


@pytest.mark.parametrize(
    ("name", "path", "value", "fault"),
    [
        (CLUSTER, "apiVersion", "ray.io/v1beta1", "ray.io/v1beta1"),
        (CLUSTER, "metadata/name", "Grcf", "$.metadata.name"),
        (CLUSTER, "spec/rayVersoin", "2.60.0", "'rayVersoin' was unexpected"),
        (CLUSTER, "spec/headGroupSpec", None, "'headGroupSpec' is a required property"),
        (CLUSTER, "spec/headGroupSpec/rayStartParams/num-cpus", 0, "0 is not of type 'string'"),
        (CLUSTER, f"{POD}/securityContext/fsgroup", 100, "'fsgroup' was unexpected"),
        (CLUSTER, f"{WORKERS}/template/spec/containers/0/resources/limits/cpu", 1.5, "1.5 is not valid"),
        (JOB, "spec/backoffLimits", 2, "'backoffLimits' was unexpected"),
        (JOB, "spec/entrypoint", ["python"], "is not of type 'string'"),
    ],
)
def test_schema_fault_is_found(name: str, path: str, value: Any, fault: str, schemas: Path) -> None:
    faults = schema_faults(changed(documents(name)[1], path, value), schemas)
    assert any(fault in line for line in faults), faults


@pytest.mark.parametrize("name", KUBERAY)
def test_manifests_agree(name: str) -> None:
    assert meaning_faults(documents(name), ray=PINS["ray"]) == []


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("1/spec/rayVersion", "2.59.0", "rayVersion 2.59.0 is not"),
        ("1/spec/authOptions", None, "no token"),
        ("1/spec/headGroupSpec/rayStartParams/num-cpus", "4", "run on the head"),
        (f"1/{WORKERS}/replicas", 9, "replicas 9 outside"),
        ("1/spec/enableInTreeAutoscaling", None, "nothing scales"),
        (f"1/{WORKERS}/template/spec/containers/0/image", "other:2.60.0", "different images"),
        (f"1/{POD}/containers/0/image", "grcf_ray:latest", "is not of Ray"),
        (f"1/{POD}/containers/0/envFrom", [{"configMapRef": {"name": "none"}}], "no ConfigMap none"),
        ("0/data/RAY_JOB_STOP_WAIT_TIME_S", 30, "is no string"),
        ("0/data/GLOO_SOCKET_IFNAME", None, "GLOO_SOCKET_IFNAME is not set"),
        ("0/data/GRCF_RUNS", "/runs", "GRCF_RUNS lies on no volume"),
        (f"1/{POD}/volumes/0/name", "other", "no volume grcf"),
        (f"1/{POD}/containers/0/resources/limits/cpu", "8", "requests have to be the same"),
    ],
)
def test_disagreement_is_found(path: str, value: Any, fault: str) -> None:
    faults = meaning_faults(changed(documents(CLUSTER), path, value), ray=PINS["ray"])
    assert any(fault in line for line in faults), faults


def test_storage_is_of_kubernetes_schema(schemas: Path) -> None:
    claim, files = documents("kuberay_storage.yaml")
    assert part_faults(claim["spec"], schemas, CLAIM) == []
    assert part_faults(files["spec"], schemas, POD) == []
    [fault] = part_faults(changed(claim["spec"], "storageClasName", "fast"), schemas, CLAIM)
    assert "'storageClasName' was unexpected" in fault
    [fault] = part_faults(changed(files["spec"], "containers/0/comand", []), schemas, POD)
    assert "'comand' was unexpected" in fault


def test_a_job_has_the_same_cluster() -> None:
    texts = []
    for name in KUBERAY:
        settings, manifest = documents(name)
        cluster = json.dumps(cluster_of(manifest))
        # The name of its ConfigMap.
        texts.append((settings["data"], cluster.replace('"name": "grcf-search"', '"name": "grcf"')))
    assert texts[0] == texts[1]


def test_pods_mount_the_claim_that_storage_makes() -> None:
    claim, files = documents("kuberay_storage.yaml")
    assert (claim["kind"], files["kind"]) == ("PersistentVolumeClaim", "Pod")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    pods = [files["spec"]]
    for name in KUBERAY:
        cluster = cluster_of(documents(name)[1])
        assert cluster is not None
        pods += [g["template"]["spec"] for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        assert pod["volumes"] == [{"name": "grcf", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "grcf", "mountPath": "/grcf"}]


def network_faults(policy: dict[str, Any]) -> list[str]:
    """Return the faults of a policy: open ports of a cluster's pods, and senders that it wrongly blocks."""
    nodes = {"podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}}
    job = documents("kuberay_job.yaml")[1]["metadata"]["name"]
    senders = [
        nodes,
        {
            "namespaceSelector": {},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
        },
        {"podSelector": {"matchLabels": {"batch.kubernetes.io/job-name": job}}},
    ]
    spec, faults = policy["spec"], []
    if (policy["apiVersion"], policy["kind"]) != ("networking.k8s.io/v1", "NetworkPolicy"):
        faults.append("not a NetworkPolicy")
    if spec.keys() != {"podSelector", "policyTypes", "ingress"} or spec["policyTypes"] != ["Ingress"]:
        faults.append("keys that say something else")
    if spec["podSelector"] != nodes["podSelector"]:
        faults.append("not of Ray's pods")
    for rule in spec["ingress"]:
        # A rule without senders lets everybody in.
        faults += [f"{sender} is let in" for sender in rule.get("from") or ["everybody"] if sender not in senders]
        if rule.get("from") != [nodes] and rule.get("ports") != [{"protocol": "TCP", "port": 8265}]:
            faults.append("others reach more than the port for jobs")
    reached = [sender for rule in spec["ingress"] for sender in rule.get("from", [])]
    return faults + [f"{sender} is cut off" for sender in senders if sender not in reached]


def test_the_network_lets_in_whom_a_search_needs() -> None:
    [policy] = documents("kuberay_network.yaml")
    assert network_faults(policy) == []


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("kind", "NetworkPolice", "not a NetworkPolicy"),
        ("spec/policyTypes", ["Egress"], "something else"),
        ("spec/podSelector", {}, "not of Ray's pods"),
        ("spec/ingress/0/from", None, "everybody is let in"),
        ("spec/ingress/0/from/0/podSelector", {}, "is let in"),
        ("spec/ingress/1/from/1", None, "is cut off"),
        ("spec/ingress/1/ports", None, "more than the port for jobs"),
        ("spec/ingress/1/ports/0/port", 6379, "more than the port for jobs"),
    ],
)
def test_a_hole_in_the_network_is_found(path: str, value: Any, fault: str) -> None:
    [policy] = documents("kuberay_network.yaml")
    assert any(fault in line for line in network_faults(changed(policy, path, value)))
