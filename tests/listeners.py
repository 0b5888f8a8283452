"""Which sockets a process and those that it has started listen on."""

from __future__ import annotations

import ipaddress

import psutil

__all__ = ["listening", "reachable"]


def listening() -> set[tuple[str, str]]:
    """The title of each process of this tree that listens, with the address."""
    found = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            title = " ".join(process.cmdline())
            # Another name since psutil 6.
            entries = process.net_connections("inet") if hasattr(process, "net_connections") else process.connections()
        except psutil.Error:
            continue
        found |= {(title, entry.laddr.ip) for entry in entries if entry.status == psutil.CONN_LISTEN}
    return found


def reachable(listeners: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that other machines reach, of either family: `::` is all interfaces."""

    def private(address: str) -> bool:
        found = ipaddress.ip_address(address)
        return bool((getattr(found, "ipv4_mapped", None) or found).is_loopback)

    return sorted(entry for entry in listeners if not private(entry[1]))
