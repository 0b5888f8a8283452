"""Errors that a user can meet, each with the exit code with which `console.run` ends the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")


class GrcfError(Exception):
    """Base of all errors that end a command with one clear message instead of a traceback."""

    exit_code = 1


class ConfigError(GrcfError):
    """Wrong usage or configuration: an option, a `--set` path, a search space, a backbone."""

    exit_code = 2


class HubError(ConfigError):
    """A Hugging Face hub that does not answer, limits the rate (HTTP 429) or fails (5xx): a later try may succeed."""


class DataError(GrcfError):
    """Missing, malformed or inconsistent data."""

    exit_code = 3


class DamagedError(DataError):
    """A damaged file: its checksum differs, or a part of it is missing."""


class NoWinnerError(GrcfError):
    """A search without a usable winner."""

    exit_code = 4


class DivergedError(NoWinnerError):
    """Training whose numbers are no longer finite: a result of the settings, not a fault of the process."""


class ClusterError(GrcfError):
    """A plan that the cluster, or this machine, cannot run."""

    exit_code = 5


def faults_message(head: str, faults: Sequence[str], *, limit: int = 20) -> str:
    """Return one message for several faults: the head, then a line per fault, and a count of those past `limit`."""
    lines = [f"  {fault}" for fault in faults[:limit]]
    if len(faults) > limit:
        lines.append(f"  ... and {len(faults) - limit} more")
    return "\n".join([head, *lines])


def data_error(source: Path, faults: Sequence[str], *, named: bool = False) -> DataError:
    """Return the error for all faults of a source.

    named: each fault already names its file.
    """
    if len(faults) == 1:
        return DataError(faults[0] if named else f"{source}: {faults[0]}")
    return DataError(faults_message(f"{source}: {len(faults)} faults", faults))


def collect_error(faults: list[str], function: Callable[..., _T], *arguments: Any) -> _T | None:
    """Call a function and return its result; if it raises a DataError, add the message to the faults and return
    None."""
    try:
        return function(*arguments)
    except DataError as error:
        faults.append(str(error))
        return None


def reason(error: BaseException) -> str:
    """Return the first line of another library's error, or its type if the message is empty."""
    return str(error).partition("\n")[0].rstrip(". ") or type(error).__name__
