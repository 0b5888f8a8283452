"""Write the tables of docs/settings.md from the settings' dataclasses: `python docs/settings.py`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from grcf_ray.config import RunConfig, field_docstrings, flatten, model_options
from grcf_ray.plugins import model_module, model_names

PAGE = Path(__file__).with_suffix(".md")
MARK = "<!-- The rest is written by docs/settings.py. -->\n"
# Pydantic keeps its own names for bounds on values that a function checks first.
_BOUNDS = {"minimum": ">=", "ge": ">=", "gt": ">", "maximum": "<=", "le": "<=", "lt": "<"}


class Setting(NamedTuple):
    """One setting, as the documentation describes it."""

    path: str
    type: str
    """Accepted values in words, such as `number > 0` or `one of "best", "last"`."""
    default: Any
    meaning: str
    """One paragraph: the meaning, the unit, and the paper's equation or table."""


def described_options() -> Iterator[Setting]:
    """Yield the options of every model that has some."""
    for name in model_names():
        options = model_module(name).CARD.options
        properties = TypeAdapter(options).json_schema().get("properties", {})
        meanings = field_docstrings(options)
        for path, value in model_options(name).items():
            option = path.partition(".")[2]
            yield Setting(path, _type_text(properties[option]), value, meanings[option])


def described_settings() -> Iterator[Setting]:
    """Yield every setting in the order of its section."""
    schema = TypeAdapter(RunConfig).json_schema()
    for field in dataclasses.fields(RunConfig):
        default = getattr(RunConfig(), field.name)
        section, prefix = (type(default), f"{field.name}.") if dataclasses.is_dataclass(default) else (RunConfig, "")
        properties = (schema["$defs"][section.__name__] if prefix else schema)["properties"]
        meanings = field_docstrings(section)
        for path, value in (flatten(default, prefix) if prefix else {field.name: default}).items():
            name = path.removeprefix(prefix)
            yield Setting(path, _type_text(properties[name]), value, meanings[name])


def _type_text(schema: Mapping[str, Any]) -> str:
    """Return the type of a JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(_type_text(choice) for choice in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(json.dumps, schema['enum']))}"
    name = {"string": "text", "boolean": "true or false"}.get(schema["type"], schema["type"])
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return f"{name} {' and '.join(bounds)}".rstrip()


def tables() -> str:
    """Return a Markdown table for each section of the settings."""
    lines = []
    for section, settings in groupby(
        [*described_settings(), *described_options()], key=lambda setting: setting.path.rpartition(".")[0]
    ):
        lines += ["", f"## `{section}`" if section else "## Top level", ""]
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        for setting in settings:
            default = "-" if setting.default is None else f"`{json.dumps(setting.default)}`"
            lines.append(f"| `{setting.path}` | {setting.type} | {default} | {setting.meaning} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page with its tables written anew."""
    return PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + tables()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
