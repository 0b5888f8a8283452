"""Read YAML that people write: search spaces and `--set` values.

Only mappings, lists and scalars are accepted. As in YAML 1.2, a scalar is a word unless it is true, false, null or a
decimal number. PyYAML follows YAML 1.1, where `1e-4` is a word, `010` is 8 and `1:30` is 90.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from grcf_ray.errors import ConfigError, faults_message

LARGEST = 1 << 15
"""Largest accepted text, in characters; a search space has a few thousand."""
_DEEPEST = 16
"""Deepest accepted nesting of mappings and lists; a search space has four levels."""
_INTEGER = r"[-+]?(?:0|[1-9][0-9]*)"
DECIMAL = re.compile(rf"(?:{_INTEGER}(?:\.[0-9]*)?|[-+]?\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
"""A number in decimal digits, as text."""


class PlainYaml(NamedTuple):
    """The content of a YAML text."""

    content: Any
    """Keys of mappings are strings."""
    lines: Mapping[tuple[str, ...], int]
    """The line of each key, counted from 1, by its path of keys."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - declared by PyYAML


for _tag, _pattern, _first in (
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("int", re.compile(_INTEGER), "-+0123456789"),
    ("float", re.compile(rf"{DECIMAL.pattern}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), "-+0123456789."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern.pattern})$"), list(_first))


def read_yaml(text: str, source: str) -> PlainYaml:
    """Return the content of a YAML text.

    ConfigError, with the line, if it is not YAML, repeats a key, or uses aliases, anchors or tags. Very large or deep
    texts are refused too: a few lines of aliases can expand beyond all memory.

    source: name of the text in messages.
    """
    if len(text) > LARGEST:
        raise ConfigError(f"{source}: has more than {LARGEST // 1024} KiB, too much for a search space")
    try:
        _check_plain(text, source)
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[tuple[str, ...], int] = {}
        faults: list[str] = []
        content = None if node is None else _content(loader, node, (), lines, faults)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}: not YAML{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error
    if faults:
        raise ConfigError(faults_message(f"{source}: {len(faults)} fault(s)", faults))
    return PlainYaml(content, lines)


def _check_plain(text: str, source: str) -> None:
    """Check the events of a text for refused constructs, before any object is created."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        where = f"{source}: line {event.start_mark.line + 1}" if event.start_mark else source
        if isinstance(event, yaml.NodeEvent) and event.anchor:
            raise ConfigError(f"{where}: aliases and anchors (*{event.anchor}) are not accepted; write the values out")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag:
            raise ConfigError(f"{where}: tags ({event.tag}) are not accepted; remove it")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise ConfigError(f"{where}: more than {_DEEPEST} levels of mappings and lists")


def _content(
    loader: _Loader, node: yaml.Node, keys: tuple[str, ...], lines: dict[tuple[str, ...], int], faults: list[str]
) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_content(loader, child, (*keys, str(i)), lines, faults) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    mapping: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            faults.append(f"line {line}: a key must be a word")
            continue
        path = (*keys, key.value)
        if path in lines:
            faults.append(f"line {line}: {key.value} is already set in line {lines[path]}; keep one of them")
            continue
        lines[path] = line
        mapping[key.value] = _content(loader, value, path, lines, faults)
    return mapping
