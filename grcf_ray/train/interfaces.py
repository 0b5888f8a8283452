"""Choose the network interface on which workers of several nodes meet.

Workers of a Ray on one machine meet on the loopback interface only.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping

from grcf_ray.errors import ClusterError

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables with the interface of gloo and NCCL. By default gloo uses the host name's, often the loopback interface."""


def named_interfaces() -> dict[str, str]:
    """Return the variables that are set in this process."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def choose_interfaces(address: str, named: Mapping[str, str]) -> dict[str, str]:
    """Return a value for each of `VARIABLES`: the one in `named`, or the interface with this node's address in Ray.

    ClusterError, with the name of the variable, if that is the loopback interface or does not exist.
    """
    held = _addresses()
    return {name: _checked(name, named[name], held) if name in named else _holder(address, held) for name in VARIABLES}


def private_interfaces(address: str) -> dict[str, str]:
    """Return values of `VARIABLES` that keep workers on their node, if its address in Ray is a loopback address."""
    if not ipaddress.ip_address(address).is_loopback:
        return {}
    interface = _interface_with(address, _addresses())
    return dict.fromkeys(VARIABLES, interface) if interface else {}


def _holder(address: str, held: Mapping[str, list[str]]) -> str:
    """Return the interface with the address. ClusterError if there is none, or if it is the loopback interface."""
    interface = _interface_with(address, held)
    if interface is None:
        raise ClusterError(
            f"no network interface has this node's address in Ray, {address}; set {VARIABLES[0]} to the interface that "
            f"reaches the other nodes: one of {_reachable(held)}"
        )
    if ipaddress.ip_address(address).is_loopback:
        raise ClusterError(
            f"its address in Ray is {address}, which other nodes cannot reach; start it with ray start "
            f"--node-ip-address=ADDRESS, or set {VARIABLES[0]} to one of {_reachable(held)}"
        )
    return interface


def _interface_with(address: str, held: Mapping[str, list[str]]) -> str | None:
    return next((name for name, addresses in held.items() if address in addresses), None)


def _checked(variable: str, value: str, held: Mapping[str, list[str]]) -> str:
    """Return the value of a variable after checking it.

    NCCL also accepts the beginning of a name, and `^` before names to leave out.
    """
    for name in value.split(",") if not value.startswith("^") else ():
        plain = name.removeprefix("=")
        if _is_loopback(held.get(plain, [])):
            raise ClusterError(
                f"{variable}={value} names the loopback interface, which does not reach other nodes; use one of "
                f"{_reachable(held)}, or unset it"
            )
        if variable.startswith("GLOO") and plain not in held:
            raise ClusterError(
                f"{variable}={value}: there is no such interface; use one of {_reachable(held)}, or unset it"
            )
    return value


def _addresses() -> dict[str, list[str]]:
    """Return the IP addresses of each interface of this machine."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [entry.address.partition("%")[0] for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }


def _is_loopback(addresses: list[str]) -> bool:
    return bool(addresses) and all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _reachable(held: Mapping[str, list[str]]) -> str:
    """Return the interfaces that other machines can reach, as text."""
    return (
        ", ".join(name for name, addresses in held.items() if addresses and not _is_loopback(addresses))
        or "none (no interface reaches other machines)"
    )
