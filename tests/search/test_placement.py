"""Where the processes of trials of several workers are: not all on the head, the mailbox beside its first worker."""

from __future__ import annotations

import pytest
from processes import output_of

PLACES = """
import collections
import time
import grcf_ray.cluster
import ray
from ray.cluster_utils import Cluster
from grcf_ray.search.stages import _resources
from grcf_ray.train.distributed import WorkerGroup
from grcf_ray.train.location import locate

sizes = {"object_store_memory": 80_000_000, "memory": 4_000_000_000}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **sizes})
large = cluster.add_node(num_cpus=2, **sizes).node_id
ray.init(cluster.address, log_to_driver=False)

holders = [_resources(2, {"CPU": 1.0}, {})() for _ in range(10)]
ray.get([holder.ready() for holder in holders])
nodes = [ray.util.placement_group_table(holder)["bundles_to_node_id"][0] for holder in holders]
print(sorted(collections.Counter(nodes).values()))

for workers, avoid in ((2, []), (1, [large])):
    with WorkerGroup(ray.put(None), workers=workers, resources={"CPU": 1.0}, avoid=avoid) as group:
        members = []
        while len(members) < workers:
            members = ray.get(group._mailbox.__ray_call__.remote(lambda mailbox: list(mailbox._members.values())))
            time.sleep(0.2)
        everyone = [group._mailbox, *members]
        print([ray.get(actor.__ray_call__.remote(locate)).node == large for actor in everyone])
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.integration
def test_processes_of_trials_of_several_workers_spread_over_the_nodes() -> None:
    """The command runs on the head, which has no room for two workers. A worker may be kept off the other node."""
    assert output_of(PLACES, timeout=600)[-3:] == ["[5, 5]", "[True, True, True]", "[False, False]"]
