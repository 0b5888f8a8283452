"""Imports point down, without a cycle, and heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "grcf_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))

RANKS = {
    "_version": 0,
    "errors": 0,
    "cluster": 1,
    "files": 1,
    "cache": 1,
    "plain_yaml": 1,
    "memory": 1,
    "retry": 1,
    "storage": 1,
    "plugins": 1,
    "settings": 1,
    "config": 1,
    "console": 1,
    "tables": 1,
    "data": 2,
    "model": 3,
    "losses": 3,
    "metrics": 3,
    "statistics": 3,
    "train": 4,
    "search": 5,
    "report": 6,
    "bench": 6,
    "api": 7,
    "experiments": 7,
    "cli": 8,
}
"""Rooms from the bottom up. A room imports from its own and from lower ones."""
DOORS = [
    *(PACKAGE / room / "__main__.py" for room in ("search", "train", "data", "report", "bench")),
    *(PACKAGE / f"{command}.py" for command in ("evaluate", "predict", "runs", "reproduce", "models")),
]
"""What `python -m` opens; they import the command line alone, and nothing imports them."""
DOOR = PACKAGE / "cluster.py"
WITH_RAY = (DOOR, *(PACKAGE / "train" / f"{name}.py" for name in ("distributed", "backend", "location", "ray_job")))
"""Where Ray is imported outside the search and the benchmarks."""


def room(path: Path) -> str:
    """The part of the package that a module belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@cache
def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, wherever in it."""
    result = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            result |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return result


def libraries(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def test_imports_point_down() -> None:
    assert {room(path) for path in MODULES if path not in DOORS} - {"__init__"} == set(RANKS)
    assert [
        f"{path} imports {name}, which lies above it"
        for path in MODULES
        if path not in DOORS and path != PACKAGE / "__init__.py"
        for name in imported(path)
        if name.startswith("grcf_ray.") and RANKS.get(name.split(".")[1], 0) > RANKS[room(path)]
    ] == []


def test_ray_and_optuna_stay_in_their_rooms() -> None:
    with_ray = {path for path in MODULES if "ray" in libraries(path) and room(path) not in ("search", "bench")}
    assert with_ray <= set(WITH_RAY)
    assert {room(path) for path in MODULES if "optuna" in libraries(path)} <= {"search", "report", "bench"}


def test_package_init_files_import_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "ray", "optuna", "sklearn", "scipy", "tensorboard"}
    assert [path for path in MODULES if path.name == "__init__.py" and heavy & libraries(path)] == []


def test_ray_is_imported_behind_its_door() -> None:
    """What Ray reads when it is imported is set by then."""
    for path in set(MODULES) - {DOOR}:
        lines = path.read_text(encoding="utf-8").splitlines()
        door = [number for number, line in enumerate(lines) if re.match(r" *(import|from) grcf_ray\.cluster\b", line)]
        ray = [number for number, line in enumerate(lines) if re.match(r" *(import|from) ray\b", line)]
        top = [number for number in ray if not lines[number].startswith(" ")]
        assert not ray or door, path
        assert not top or door[0] < top[0], path


@pytest.mark.parametrize("path", DOORS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_doors_open_a_command_and_define_nothing(path: Path) -> None:
    """Ray would pickle by value what the module `__main__` defines."""
    assert imported(path) == {"grcf_ray.cli", "grcf_ray.cli.main"}
    docstring, importing, call = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(importing, ast.ImportFrom)
    assert isinstance(call, (ast.Expr, ast.If))


def test_there_is_no_cycle() -> None:
    """Imports that are followed when a module is imported; those inside functions come later."""
    names = {".".join(("grcf_ray", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in MODULES}
    graph = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        wanted = set()
        for node in tree.body:
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                wanted |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        graph[name] = {module for module in wanted if module in names} - {name}
    # Raises CycleError.
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_importing_losses_and_metrics_is_cheap() -> None:
    code = "import sys, grcf_ray.losses, grcf_ray.metrics; print(*{'torch', 'sklearn', 'scipy'} & sys.modules.keys())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []
