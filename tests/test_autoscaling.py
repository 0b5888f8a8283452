"""Clusters that grow and shrink: the nodes that an autoscaler can add, and the number of trials."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import requests
from clusters_files import CLUSTERS, documents
from processes import output_of

from grcf_ray import cluster


class TestNodesThatCanBeAdded:
    @pytest.fixture(autouse=True)
    def joined(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "10.9.8.7:6379")
        monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.9.8.7:6379"))

    def test_by_ray_up(self) -> None:
        """The file that the autoscaler of this cluster reads, not another's."""
        words = [f"--autoscaling-config={CLUSTERS / 'gcp.yaml'}", "--gcs-address=10.9.8.7:6379"]
        other = [f"--autoscaling-config={CLUSTERS / 'aws.yaml'}", "--gcs-address=10.9.8.8:6379"]
        assert cluster.node_types() == []
        started = [
            subprocess.Popen([sys.executable, "-c", "input()", *arguments], stdin=subprocess.PIPE)
            for arguments in (other, words)
        ]
        try:
            assert cluster.node_types() == [cluster.NodeType({"CPU": 8, "GPU": 1}, 4)]
        finally:
            for process in started:
                process.communicate(b"\n")

    def test_by_kuberay(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

        (tmp_path / "namespace").write_text("default")
        monkeypatch.setattr(cluster, "_NAMESPACE", tmp_path / "namespace")
        monkeypatch.setenv("RAY_CLUSTER_NAME", "grcf")
        resource = documents("kuberay_cluster.yaml")[1]
        resource["metadata"]["namespace"] = "default"
        asked: list[str] = []

        def get(self: KubernetesHttpApiClient, path: str) -> dict[str, Any]:
            asked.append(path)
            return resource

        monkeypatch.setattr(KubernetesHttpApiClient, "get", get)
        assert cluster.node_types() == [cluster.NodeType({"CPU": 8, "GPU": 1, "memory": 32 * 2**30}, 4)]
        assert asked == ["rayclusters/grcf"]
        resource["spec"]["enableInTreeAutoscaling"] = False
        assert cluster.node_types() == []

        def refuse(self: KubernetesHttpApiClient, path: str) -> dict[str, Any]:
            raise requests.HTTPError("403 Client Error: Forbidden")

        monkeypatch.setattr(KubernetesHttpApiClient, "get", refuse)
        assert cluster.node_types() == []

    def test_none_by_a_ray_of_our_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_ADDRESS")
        assert cluster.node_types() == []


FOLLOW = """
import grcf_ray.cluster
import ray
from ray.cluster_utils import Cluster
from grcf_ray.search import preflight
preflight._COUNT_S = 0.0
small = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
ray.init(small.address, log_to_driver=False)
number = preflight.Room({"CPU": 1.0}).follow()
counts = [number()]
node = small.add_node(num_cpus=2)
counts.append(number())
small.remove_node(node)
counts.append(number())
print(*counts)
ray.shutdown()
small.shutdown()
"""


@pytest.mark.integration
def test_the_number_of_trials_follows_nodes_that_come_and_go() -> None:
    assert output_of(FOLLOW, timeout=300)[-1] == "1 3 1"
