"""Read the files in clusters/, and make faulty copies of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "clusters"
LAUNCHER = ("local.yaml", "on_premises.yaml", "aws.yaml", "gcp.yaml")
KUBERAY = ("kuberay_cluster.yaml", "kuberay_job.yaml")
PINS = dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)$", (CLUSTERS / "requirements.txt").read_text(), re.MULTILINE))
"""The pinned release of each package."""


def content(name: str) -> dict[str, Any]:
    """Return the content of a YAML file."""
    [values] = documents(name)
    return values


def documents(name: str) -> list[dict[str, Any]]:
    """Return the YAML documents of a file."""
    return list(yaml.safe_load_all((CLUSTERS / name).read_text(encoding="utf-8")))


def changed(values: Any, path: str, value: Any) -> Any:
    """Return a copy with a value set, or deleted if `value` is None; the path's parts are keys and indices."""
    # JSON has no anchors, so the change affects one place.
    values = json.loads(json.dumps(values))
    inner = values
    *parts, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parts:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return values
