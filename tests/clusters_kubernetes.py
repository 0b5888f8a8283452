"""What is wrong with a manifest of KubeRay: against KubeRay's schemas, and in what no schema says."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_NAME = {"type": "string", "pattern": "^[a-z]([a-z0-9-]*[a-z0-9])?$", "maxLength": 47}
"""KubeRay makes names of services from it, which have at most 63 characters."""
_METADATA = {
    "type": "object",
    "properties": {"name": _NAME, "namespace": _NAME, "labels": {"type": "object"}, "annotations": {"type": "object"}},
    "required": ["name"],
    "additionalProperties": False,
}
_FILES = {"RayCluster": "ray.io_rayclusters", "RayJob": "ray.io_rayjobs"}


def schema_faults(manifest: dict[str, Any], schemas: Path) -> list[str]:
    """What the API server would refuse, or drop in silence, in a resource of KubeRay."""
    version = manifest["apiVersion"].partition("/")[2]
    known = _versions(schemas / f"{_FILES[manifest['kind']]}.yaml.xz")
    if version not in known:
        return [f"{manifest['apiVersion']} is no version of {manifest['kind']}"]
    return _check(manifest, {**known[version], "properties": {**known[version]["properties"], "metadata": _METADATA}})


def pod_faults(spec: dict[str, Any], schemas: Path) -> list[str]:
    """The same for the specification of a pod, which KubeRay's schemas hold."""
    return _check(spec, _pod(schemas))


def claim_faults(spec: dict[str, Any], schemas: Path) -> list[str]:
    """The same for the specification of a volume claim."""
    volume = _pod(schemas)["properties"]["volumes"]["items"]["properties"]["ephemeral"]
    return _check(spec, volume["properties"]["volumeClaimTemplate"]["properties"]["spec"])


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The specification of the Ray cluster in a resource, if it has one."""
    spec: dict[str, Any] | None = {
        "RayCluster": manifest.get("spec"),
        "RayJob": manifest.get("spec", {}).get("rayClusterSpec"),
    }.get(manifest["kind"])
    return spec


def meaning_faults(documents: list[dict[str, Any]], *, ray: str) -> list[str]:
    """What does not fit together in a file. ray: the release."""
    settings = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
    [cluster] = [found for found in map(cluster_of, documents) if found]
    return [*_cluster_faults(cluster, ray), *_pods_faults(cluster, settings, ray)]


def _cluster_faults(cluster: dict[str, Any], ray: str) -> Iterator[str]:
    if cluster["rayVersion"] != ray:
        yield f"rayVersion {cluster['rayVersion']} is not {ray}"
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "no token is asked for"
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
            yield "limits and requests have to be the same: Ray counts the limits, Kubernetes the requests"
    for values in settings.values():
        yield from (f"{name} is no string" for name, value in values.items() if not isinstance(value, str))
        wanted = ("GRCF_DATA", "GRCF_RUNS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RAY_JOB_STOP_WAIT_TIME_S")
        yield from (f"{name} is not set" for name in wanted if name not in values)


def _check(value: Any, schema: dict[str, Any]) -> list[str]:
    from jsonschema import Draft202012Validator

    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(value)]


def _pod(schemas: Path) -> dict[str, Any]:
    spec = _versions(schemas / "ray.io_rayclusters.yaml.xz")["v1"]["properties"]["spec"]
    pod: dict[str, Any] = spec["properties"]["headGroupSpec"]["properties"]["template"]["properties"]["spec"]
    return pod


@cache
def _versions(path: Path) -> dict[str, dict[str, Any]]:
    """The schema of each version of a resource."""
    # Ten thousand lines: with PyYAML's own parser it takes seconds.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(lzma.decompress(path.read_bytes()), Loader=loader)
    return {
        version["name"]: _closed(version["schema"]["openAPIV3Schema"]) for version in definition["spec"]["versions"]
    }


def _closed(schema: Any) -> Any:
    """A schema of Kubernetes in JSON Schema's terms: it refuses keys that it does not name."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    # A property may have any name, so that only schemas are meant: those have a type of their own, a word.
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
