"""YAML as settings need it: the one reader of all YAML that people write.

Mappings, lists and scalars; a scalar is a word unless it is true, false, null or a number in decimal digits, as YAML
1.2 has it. YAML 1.1, which PyYAML reads, takes `1e-4` for a word, `010` for 8 and `1:30` for 90.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from grcf_ray.errors import ConfigError, faults_message

LARGEST = 1 << 15
"""Bytes that are read; a space takes a few thousand."""
_DEEPEST = 16
"""Mappings and lists within each other; a space has four."""
_INTEGER = r"[-+]?(?:0|[1-9][0-9]*)"
DECIMAL = re.compile(rf"(?:{_INTEGER}(?:\.[0-9]*)?|[-+]?\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
"""A number in decimal digits, as text."""


class PlainYaml(NamedTuple):
    """What a text holds."""

    content: Any
    """Keys of mappings are texts."""
    lines: Mapping[tuple[str, ...], int]
    """The line, counted from 1, of each key, by the keys that lead to it."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way


for _tag, _pattern, _first in (
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("int", re.compile(_INTEGER), "-+0123456789"),
    ("float", re.compile(rf"{DECIMAL.pattern}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), "-+0123456789."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern.pattern})$"), list(_first))


def read_yaml(text: str, source: str) -> PlainYaml:
    """The content of a YAML text. ConfigError, with the line, where it is none, repeats a key, or is not plain.

    source: names the text in messages. Aliases, anchors and tags are refused, and so is what is very large or deep: a
    few lines of aliases can stand for more than memory holds.
    """
    if len(text) > LARGEST:
        raise ConfigError(f"{source}: has more than {LARGEST // 1024} KiB, which no search space needs")
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
    """Look at the text piece by piece, before anything is built of it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        where = f"{source}: line {event.start_mark.line + 1}" if event.start_mark else source
        if isinstance(event, yaml.NodeEvent) and event.anchor:
            raise ConfigError(f"{where}: aliases and anchors (*{event.anchor}) are not read; write the values out")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag:
            raise ConfigError(f"{where}: tags ({event.tag}) are not read; leave it out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise ConfigError(f"{where}: more than {_DEEPEST} mappings and lists within each other")


def _content(
    loader: _Loader, node: yaml.Node, keys: tuple[str, ...], lines: dict[tuple[str, ...], int], faults: list[str]
) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_content(loader, child, (*keys, str(i)), lines, faults) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    found: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            faults.append(f"line {line}: a key should be a word")
            continue
        here = (*keys, key.value)
        if here in lines:
            faults.append(f"line {line}: {key.value} was given in line {lines[here]} already; keep one of them")
            continue
        lines[here] = line
        found[key.value] = _content(loader, value, here, lines, faults)
    return found
