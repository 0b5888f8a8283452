"""Choose the columns of a user's table: by option, by exact name, or by an alias that only one column has."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from grcf_ray.errors import ConfigError, DataError

ROLES = {"text": "text", "label": "label", "id": "id", "split": "split", "group": "video_id"}
"""The roles that an option `--ROLE-column` gives to a column, each with its name in `RAW_SCHEMA`."""

_ALIASES = {
    "text": "review reviews review_text reviewtext reviews_text sentence utterance transcript content tweet comment "
    "body",
    "label": "labels stars star star_rating rating reviews_rating score sentiment polarity target overall",
    "id": "review_id sentence_id utterance_id tweet_id comment_id segment_id",
    "split": "partition subset",
}


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise ConfigError for an unknown role, a column of two roles, or an empty name of a column that must exist."""
    if unknown := [role for role in columns if role not in ROLES]:
        raise ConfigError(f"columns: unknown role {unknown[0]!r} (accepted: {', '.join(ROLES)})")
    for role, column in columns.items():
        if not column and role not in ("id", "split"):
            raise ConfigError(f"{option(role)} '': give the name of a column")
        same = [option(other) for other in columns if columns[other] == column]
        if column and len(same) > 1:
            raise ConfigError(f"{' and '.join(same)} name the same column {column!r}. Give each its own column")


def check_nameable(source: Path, columns: Mapping[str, str]) -> None:
    """Raise ConfigError if options name columns of a source that is not a table."""
    if columns:
        raise ConfigError(
            f"{source} is not a table, so it has no columns to name: leave out {shlex.join(column_options(columns))}"
        )


def option(role: str) -> str:
    """Return the option that names the column of a role."""
    return f"--{role}-column"


def column_options(columns: Mapping[str, str]) -> list[str]:
    """Return the options of a command line that name these columns."""
    return [word for role, column in columns.items() for word in (option(role), column)]


def choose_columns(
    path: Path,
    present: Sequence[str],
    given: Mapping[str, str],
    *,
    required: Collection[str],
    guessed: Collection[str],
    others: Collection[str] = (),
) -> dict[str, str]:
    """Return the file's column for each name in `RAW_SCHEMA` that has one; DataError unless every choice is certain.

    An option decides, then the exact name, then the name in other letters, then an alias. given: the columns that
    options name, by role; an empty name means that no column has the role. required: roles that must have a column.
    guessed: roles that may have another name. others: further names, which must be exact.
    """
    chosen = {ROLES[role]: column for role, column in given.items() if column}
    absent = [role for role, column in given.items() if column not in ("", *present)]
    problems = [f"{option(role)} {given[role]}: no such column" for role in absent]
    free = [name for name in dict.fromkeys(present) if name not in given.values()]
    missing = []
    for role, aliases in _ALIASES.items():
        if role in given:
            continue
        fits = [name for name in free if name == role]
        if role in guessed:
            fits = fits or [name for name in free if _plain(name) == role]
            fits = fits or [name for name in free if _plain(name) in aliases.split()]
        if len(fits) > 1:
            listed = ", ".join(map(repr, fits))
            problems.append(f"several columns may be the {role}: {listed}. Name one: {option(role)} {fits[0]}")
        elif fits:
            chosen[role] = fits[0]
        elif role in required:
            missing.append(role)
    if missing:
        remedy = " ".join(f"{option(role)} NAME" for role in missing)
        problems.append(f"missing columns {', '.join(missing)}; present: {', '.join(present)}. Name them: {remedy}")
    chosen |= {name: name for name in others if name in free and name not in chosen}
    misspelled = [
        f"{other!r} to {name}" for name in others if name not in chosen for other in free if _plain(other) == name
    ]
    if misspelled:
        problems.append(f"column names are lower case: rename {', '.join(misspelled)}")
    if twice := sorted({name for name in chosen.values() if present.count(name) > 1}):
        problems.append(f"more than one column named {', '.join(twice)}")
    if problems:
        raise DataError("\n".join(f"{path}: {problem}" for problem in problems))
    return chosen


def _plain(name: str) -> str:
    """Return a column's name in lower case, with underscores between its words."""
    return "_".join(name.lower().replace("-", " ").replace(".", " ").replace("_", " ").split())
