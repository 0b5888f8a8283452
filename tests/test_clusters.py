"""The cluster files are what Ray's launcher takes, and what its own checks let pass by mistake is refused too."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTERS = sorted((ROOT / "clusters").glob("*.yaml"))


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


def test_a_job_uploads_the_package_and_nothing_big(tmp_path: Path) -> None:
    """What `--working-dir .` packs, on a checkout in small."""
    from ray._private.runtime_env.packaging import create_package

    kept = ["grcf_ray/data/store.py", "grcf_ray/data/demo/utterances.csv", "search_spaces/demo.yaml", "pyproject.toml"]
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
