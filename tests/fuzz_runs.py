"""Run directories damaged at random: a mutation is a seed, so that each can be made again.

As files are damaged by disks, copies, editors and people: bytes flip, files are cut off or vanish, a folder or a link
stands in their place, JSON is edited.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Mutation", "mutate"]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """What was done to a run."""

    kind: str
    path: str
    """Within the run."""
    outside: Path | None = None
    """Where a link leads to."""


def mutate(run: Path, seed: int, *, spared: tuple[str, ...] = ()) -> Mutation:
    """Damage one file or folder of a run. spared: paths, with all below them, that stay as they are."""
    rng = random.Random(seed)
    paths = sorted(path for path in run.rglob("*") if not str(path.relative_to(run)).startswith(spared))
    # Of the many files of a kind none is more likely than the only one of another.
    kinds: dict[str, list[Path]] = {}
    for path in paths:
        what = "events" if "tfevents" in path.name else path.suffix or path.name
        kind = f"{path.relative_to(run).parts[0]} {what if path.is_file() else 'folder'}"
        kinds.setdefault(kind, []).append(path)
    path = rng.choice(kinds[rng.choice(sorted(kinds))])
    name = str(path.relative_to(run))
    if path.is_dir():
        how = rng.choice(("deleted", "a file", "a link", "a dangling link"))
    else:
        hows = ["flipped", "cut off", "emptied", "deleted", "a folder", "a link", "a dangling link", "foreign JSON"]
        how = rng.choice(hows + 8 * ["edited JSON"] * (path.suffix == ".json"))
    if how in ("a link", "a dangling link"):
        outside = run.with_name(f"outside-{path.name}")
        path.rename(outside)
        path.symlink_to(outside if how == "a link" else run.with_name("nowhere"))
        return Mutation(how, name, outside)
    _CHANGES[how](path, rng)
    return Mutation(how, name)


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) + 1)])


def _delete(path: Path, rng: random.Random) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _become_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _become_file(path: Path, rng: random.Random) -> None:
    shutil.rmtree(path)
    path.write_text("a file")


def _become_foreign(path: Path, rng: random.Random) -> None:
    path.write_text(rng.choice(("{}", "[]", "null", "7", '"text"', '{"a": 1}', '[{"a": 1}]', '{"state": "finished"}')))


def _edit(path: Path, rng: random.Random) -> None:
    """A key less, more or misspelt, or a value of another kind, anywhere in the file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    inner = _containers(content)
    at = rng.choice(inner) if inner else content
    if isinstance(at, dict):
        key = rng.choice(sorted(at)) if at else "key"
        value = at.pop(key, None)
        choice = rng.randrange(4)
        if choice == 1:
            at |= {key: value, "another": rng.choice((1, "text", None))}
        elif choice == 2:
            at[key[1:] + "x"] = value
        elif choice == 3:
            at[key] = rng.choice((None, True, -1, 1e300, "text", [], {}, [1], {"a": 1}))
    else:
        at[:] = rng.choice(([], at * 2, [*at, None], [*at, {}], at[1:]))
    path.write_text(json.dumps(content), encoding="utf-8")


def _containers(value: Any) -> list[Any]:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return ([value] if isinstance(value, (dict, list)) else []) + [of for part in inner for of in _containers(part)]


_CHANGES: dict[str, Callable[[Path, random.Random], None]] = {
    "flipped": _flip,
    "cut off": _cut,
    "emptied": lambda path, rng: path.write_bytes(b"") and None,
    "deleted": _delete,
    "a folder": _become_folder,
    "a file": _become_file,
    "foreign JSON": _become_foreign,
    "edited JSON": _edit,
}
