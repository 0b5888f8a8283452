"""Print the tables of a benchmark, and write them as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grcf_ray import console
from grcf_ray.tables import Table


def deliver(name: str, about: Mapping[str, Any], tables: Sequence[Table], out: Path | None, *, as_json: bool) -> None:
    """Print the conditions and the tables; write them to NAME.md and NAME.json in the folder `out`, if given."""
    answer = json.dumps({**about, "tables": [table.as_dict() for table in tables]}, indent=2)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(answer + "\n", encoding="utf-8")
        (out / f"{name}.md").write_text(_markdown(name, about, tables), encoding="utf-8")
    if as_json:
        console.say(answer)
        return
    for key, value in about.items():
        console.say(f"{key + ':':12} {_as_text(value)}")
    for table in tables:
        table.print()


def _as_text(value: Any) -> str:
    return ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else str(value)


def _markdown(name: str, about: Mapping[str, Any], tables: Sequence[Table]) -> str:
    lines = [f"# Performance: {name}", ""]
    lines += [
        f"- {key}: `{value}`" if key == "command" else f"- {key}: {_as_text(value)}" for key, value in about.items()
    ]
    lines += [part for table in tables for part in ("", table.markdown())]
    return "\n".join(lines) + "\n"
