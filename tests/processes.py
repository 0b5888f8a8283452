"""Run a script in a process of its own; find processes of a test by a mark, and end them."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["gone", "kill_marked", "marked", "output_of"]


def output_of(script: str, *, timeout: float) -> list[str]:
    """Run a script that starts a Ray cluster, without the session's Ray; return the lines of its output."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    outside["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ran = subprocess.run([sys.executable, "-c", script], env=outside, capture_output=True, text=True, timeout=timeout)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def marked(*marks: str) -> dict[int, str]:
    """Return the titles of all other processes with one of the marks, by process id.

    Ray renames its processes, but their environment stays.
    """
    titles = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title = (entry / "cmdline").read_bytes()
            content = title + (entry / "environ").read_bytes()
            if int(entry.name) != os.getpid() and any(mark.encode() in content for mark in marks):
                titles[int(entry.name)] = title.decode(errors="replace")
    return titles


def kill_marked(*marks: str) -> None:
    """Kill all other processes with one of the marks."""
    for pid in marked(*marks):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    """Return whether a process has ended; an orphan may stay a zombie where nobody reaps."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
