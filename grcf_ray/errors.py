"""Every failure that a user can meet, each with the exit code that `console.run` ends the process with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")


class GrcfError(Exception):
    """Base of the errors that end a command with one clear message instead of a traceback."""

    exit_code = 1


class ConfigError(GrcfError):
    """Usage or configuration is wrong: an option, a `--set` key, a search space, a backbone."""

    exit_code = 2


class DataError(GrcfError):
    """The data are missing, malformed or inconsistent."""

    exit_code = 3


class DamagedError(DataError):
    """A file is not what was written: its checksum differs, or a part of it is missing."""


class NoWinnerError(GrcfError):
    """The search ended without a usable winner."""

    exit_code = 4


class DivergedError(NoWinnerError):
    """Training left the finite numbers: a result of its settings, not a fault of the process."""


class ClusterError(GrcfError):
    """The cluster, or this machine, can never run the plan."""

    exit_code = 5


def faults_message(head: str, faults: Sequence[str], *, limit: int = 20) -> str:
    """One message for several faults: the head, then a line per fault, the rest counted past `limit`."""
    lines = [f"  {fault}" for fault in faults[:limit]]
    if len(faults) > limit:
        lines.append(f"  ... and {len(faults) - limit} more")
    return "\n".join([head, *lines])


def data_error(source: Path, faults: Sequence[str], *, named: bool = False) -> DataError:
    """The error for all that is wrong with a source; named: each fault says itself which file it is in."""
    if len(faults) == 1:
        return DataError(faults[0] if named else f"{source}: {faults[0]}")
    return DataError(faults_message(f"{source}: {len(faults)} faults", faults))


def collect_error(faults: list[str], function: Callable[..., _T], *arguments: Any) -> _T | None:
    """What a function returns; None where it raises a DataError, which joins the faults."""
    try:
        return function(*arguments)
    except DataError as error:
        faults.append(str(error))
        return None


def reason(error: BaseException) -> str:
    """The first line of what another library's error says, or else its type."""
    return str(error).partition("\n")[0].rstrip(". ") or type(error).__name__
