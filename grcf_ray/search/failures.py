"""Classify failures by cause and by node. Some are the trial's own, others have causes outside of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from grcf_ray.search.record import TrialRecord

if TYPE_CHECKING:
    from grcf_ray.train.location import Location

HUNG = "hung"

_CAUSES = {
    # Ray kills a process when its node runs out of memory, whichever process needs most of it.
    "node out of memory": r"running low on memory",
    "out of memory": r"OutOfMemoryError|CUDA out of memory|MemoryError",
    "disk full": r"No space left on device|Disk quota exceeded|Errno 28|Errno 122",
    "storage": r"Read-only file system|Errno 30|PermissionError|AWS Error|google::cloud::Status|Input/output error"
    r"|Stale file handle|Errno 116|Transport endpoint is not connected",
    "hub": r"HubError|HfHubHTTPError|\b(429|5\d\d) (Client|Server) Error|HTTP (Error|status) (429|5\d\d)"
    r"|429 Too Many Requests|50[0234] (Internal Server Error|Bad Gateway|Service Unavailable|Gateway Time-?out)",
    "node lost": r"NodeDied|its node has died|[Nn]ode was terminated|node \w+ (has been marked|is) dead",
    # A traceback contains the exception's name; the exception itself contains only its message.
    "process died": r"ActorDiedError|ActorUnavailableError|RayActorError|WorkerCrashedError"
    r"|The actor died unexpectedly|The actor \w+ is unavailable",
}
"""Patterns by cause; the first one that fits applies."""
_SERVICES = frozenset({"storage", "disk full", "hub"})
"""Causes that can lie in a service that all nodes share."""
OUTSIDE = _SERVICES | {"node out of memory", "node lost", "process died"}
"""Causes that lie outside the trial. All other causes count as the trial's own."""
FAILURES_OF_A_NODE = 2
"""Failures for causes outside the trial after which a node gets no more trials."""

_NODE = re.compile(r"[Nn]ode ?I[dD]: (\w+)")
_ADDRESS = re.compile(r"\bip[=:] ?([\da-fA-F.:]+)")
"""A process's node and address in Ray's messages."""


class NodeHealth:
    """Count failures by node, to tell nodes that fail trials while other nodes train them."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()
        self._epochs: Counter[str] = Counter()
        self._elsewhere: dict[str, int] = {}
        """Epochs saved on other nodes when a service failed on a node that has saved none since."""
        self.hosts: dict[str, str] = {}
        """Host name and address of each node with a failure."""
        self.told: set[str] = set()
        """Excluded nodes that the user has been told of."""

    @property
    def bad(self) -> frozenset[str]:
        """The nodes that should get no more trials."""
        return frozenset(node for node, failures in self._failures.items() if failures >= FAILURES_OF_A_NODE)

    def epoch_saved(self, node: str) -> None:
        """Count an epoch of a trial that has saved weights from a node."""
        self._epochs[node] += 1
        self._elsewhere.pop(node, None)

    def failed(self, location: Location, cause: str) -> None:
        """Count a failure for a cause outside the trial.

        A service that fails everywhere makes no node bad. It does if it fails on a node twice, while another node
        saves an epoch and this one does not.
        """
        node = location.node
        self.hosts[node] = location.host
        if cause not in _SERVICES:
            self._failures[node] += 1
            return
        elsewhere = self._epochs.total() - self._epochs[node]
        if elsewhere > self._elsewhere.setdefault(node, elsewhere):
            self._failures[node] = FAILURES_OF_A_NODE

    def condemn(self, location: Location) -> None:
        """Make a node bad because trials in a row failed on it by themselves."""
        self.hosts[location.node] = location.host
        self._failures[location.node] = FAILURES_OF_A_NODE


def cause_of_error(text: str) -> str:
    """Return the cause of an exception that ended a trial's process; "process died" for an empty text.

    All of these causes are temporary: the trial may succeed if it runs again.
    """
    if not text.strip():
        return "process died"
    return next((cause for cause, pattern in _CAUSES.items() if re.search(pattern, text)), "error")


def node_of_error(text: str, nodes: Mapping[str, str]) -> str | None:
    """Return the id of the node that an error of Ray names, None if it names none or its address fits several.

    nodes: addresses by node id.
    """
    if named := _NODE.search(text):
        return named[1]
    addresses = _ADDRESS.findall(text)
    fitting = [node for node, address in nodes.items() if addresses and address == addresses[-1]]
    return fitting[0] if len(fitting) == 1 else None


def cause_of_result(state: str, error: str) -> str:
    """Return the cause of a failure that the trial reported itself, and that would repeat with the same settings.

    error: name of the exception's type.
    """
    if state == "diverged":
        return "not finite"
    return "damaged file" if error == "DamagedError" else "refused"


def last_line(text: str) -> str:
    """Return the last line of a traceback that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else text


def failures_by_cause(trials: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """Return the trials that failed or diverged, by cause."""
    by_cause: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.cause is not None:
            by_cause.setdefault(trial.cause, []).append(trial)
    return by_cause
