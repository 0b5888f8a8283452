"""The cluster files are what Ray's launcher takes, and what its own checks let pass by mistake is refused too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTERS = sorted((Path(__file__).parents[1] / "clusters").glob("*.yaml"))


@pytest.fixture(params=CLUSTERS, ids=lambda path: path.name)
def cluster(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def content(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def test_there_is_a_file_for_one_machine() -> None:
    assert [path.name for path in CLUSTERS] == ["local.yaml"]


def test_rays_launcher_accepts_it(cluster: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(content(cluster)))


def test_rays_own_check_refuses_a_misspelled_key(cluster: Path) -> None:
    """So that the test above can fail."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(Exception, match="Additional properties"):
        validate_config(prepare_config(content(cluster) | {"max_wrokers": 1}))


def test_workers_are_bounded_the_right_way(cluster: Path) -> None:
    values = content(cluster)
    assert values["min_workers"] <= values["max_workers"]


def test_header_tells_how_to_use_it(cluster: Path) -> None:
    header = [line for line in cluster.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for word in ("launch", "submit", "watch", "results", "stop"):
        assert any(line.lstrip("# ").startswith(word) for line in header), word


def test_data_runs_and_authentication_are_set_in_one_place(cluster: Path) -> None:
    commands = "\n".join(content(cluster)["head_start_ray_commands"])
    for name in ("GRCF_DATA=", "GRCF_RUNS=", "RAY_AUTH_MODE=token"):
        assert commands.count(name) == 1
