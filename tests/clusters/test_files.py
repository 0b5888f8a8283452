"""All files in clusters/: headers, pinned releases, the image, and the package that a job uploads."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest
from clusters_files import CLUSTERS, KUBERAY, LAUNCHER, PINS, ROOT, content, documents

from grcf_ray.cli.search import app

HEADED = (*LAUNCHER, *KUBERAY, "kuberay_storage.yaml", "slurm.sbatch")
REST = ("README.md", "Dockerfile", "requirements.txt", "with_nodes.py", "kuberay_network.yaml")
POLICIES = ("aws_head_policy.json", "aws_worker_policy.json")


def test_every_file_is_tested() -> None:
    assert {path.name for path in CLUSTERS.iterdir() if path.is_file()} == {*HEADED, *REST, *POLICIES}


@pytest.mark.parametrize("name", HEADED)
def test_header_has_the_commands(name: str) -> None:
    header = [line.lstrip("# ") for line in (CLUSTERS / name).read_text().splitlines() if line.startswith("#")]
    for word in ("launch", "submit", "watch", "results", "stop", *(() if name == "local.yaml" else ("data",))):
        assert any(line.startswith(f"{word} ") for line in header), word


@pytest.mark.parametrize("name", [*HEADED, "README.md", "kuberay_network.yaml"])
def test_files_and_options_in_headers_exist(name: str) -> None:
    text = (CLUSTERS / name).read_text()
    assert all((ROOT / path).exists() for path in re.findall(r"clusters/[\w.]+\w", text))
    settings = [setting for command in app.registered_commands for setting in command.callback.__annotations__]
    options = {f"--{setting.strip('_').replace('_', '-')}" for setting in settings}
    for command in re.findall(r"grcf_ray\.search ([^\n`)]*)", text):
        assert set(re.findall(r"--[a-z0-9-]+", command)) <= options, command


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    from packaging.requirements import Requirement

    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["demo"])]
    assert {requirement.name for requirement in needed} | {"boto3", "google-api-python-client"} == set(PINS)
    for requirement in needed:
        assert requirement.specifier.contains(PINS[requirement.name]), requirement
    extras = {requirement.name: requirement.extras for requirement in needed if requirement.extras}
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
    assert (ROOT / Path(entrypoint.split()[1]).relative_to(folder)).is_file()


def test_a_job_uploads_the_package_and_nothing_big(tmp_path: Path) -> None:
    """Pack a small checkout like `ray job submit --working-dir .`."""
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
