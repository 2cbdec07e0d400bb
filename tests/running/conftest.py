"""What the tests of this folder share: a Ray cluster."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ROOT

LOST_NODES_ARE_FOUND_SOON = {
    "health_check_period_ms": 1_000,
    "health_check_timeout_ms": 5_000,
    "health_check_failure_threshold": 2,
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A Ray cluster of three nodes with a core each, to which this process is connected."""
    ray = pytest.importorskip("ray", reason="needs mtpack[ray]")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        head = {"num_cpus": 1, "_system_config": LOST_NODES_ARE_FOUND_SOON}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def disconnected(cluster, monkeypatch) -> Iterator[Any]:
    """The cluster, which RAY_ADDRESS names; a run has to connect to it."""
    import ray

    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
