"""The network interface on which workers of several machines meet: chosen or asked for, never the loopback one.

Those of a Ray of one machine alone meet on the loopback interface, and on no other.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping

from grcf_ray.errors import ClusterError

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Which interface gloo and NCCL take. Left alone, gloo takes that of the host's name: often the loopback one."""


def named_interfaces() -> dict[str, str]:
    """Those of the variables that are set in this process."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def choose_interfaces(address: str, named: Mapping[str, str]) -> dict[str, str]:
    """A value for each of `VARIABLES`: the one in `named`, else the interface that holds this node's address in Ray.

    ClusterError, which names the variable, where that is the loopback interface or none.
    """
    held = _addresses()
    return {name: _checked(name, named[name], held) if name in named else _holder(address, held) for name in VARIABLES}


def private_interfaces(address: str) -> dict[str, str]:
    """A value for each of `VARIABLES` that keeps workers to their node, if its address in Ray is a loopback one."""
    if not ipaddress.ip_address(address).is_loopback:
        return {}
    found = next((name for name, addresses in _addresses().items() if address in addresses), None)
    return dict.fromkeys(VARIABLES, found) if found else {}


def _holder(address: str, held: Mapping[str, list[str]]) -> str:
    """The interface with the address."""
    found = next((name for name, addresses in held.items() if address in addresses), None)
    if found is None:
        raise ClusterError(
            f"no network interface has this node's address in Ray, {address}; name the one that reaches the other "
            f"nodes: {VARIABLES[0]}, one of {_reaching(held)}"
        )
    if ipaddress.ip_address(address).is_loopback:
        raise ClusterError(
            f"its address in Ray is {address}, which no other node reaches; start it with ray start "
            f"--node-ip-address=ADDRESS, or name the interface: {VARIABLES[0]}, one of {_reaching(held)}"
        )
    return found


def _checked(variable: str, value: str, held: Mapping[str, list[str]]) -> str:
    """The value of a variable that was set. NCCL also takes beginnings of names, and `^` before those to leave out."""
    for name in value.split(",") if not value.startswith("^") else ():
        plain = name.removeprefix("=")
        if _loops(held.get(plain, [])):
            raise ClusterError(
                f"{variable}={value} names the loopback interface, on which no other node is reached; name one of "
                f"{_reaching(held)}, or leave it unset"
            )
        if variable.startswith("GLOO") and plain not in held:
            raise ClusterError(
                f"{variable}={value}: there is no such interface; name one of {_reaching(held)}, or leave it unset"
            )
    return value


def _addresses() -> dict[str, list[str]]:
    """The IP addresses of each interface of this machine."""
    # Ray carries one where none is installed, and is imported by then.
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [entry.address.partition("%")[0] for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }


def _loops(addresses: list[str]) -> bool:
    return bool(addresses) and all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _reaching(held: Mapping[str, list[str]]) -> str:
    """The interfaces that other machines may be reached on."""
    return ", ".join(name for name, addresses in held.items() if addresses and not _loops(addresses)) or "none there is"
