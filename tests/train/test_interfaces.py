"""Workers of several machines meet at their node's address in Ray or as told; those of a private Ray on loopback."""

from __future__ import annotations

import socket
from collections import namedtuple

import pytest

from grcf_ray.errors import ClusterError
from grcf_ray.train.interfaces import choose_interfaces, named_interfaces, private_interfaces

Entry = namedtuple("Entry", "family address")
MACHINE = {
    "lo": [Entry(socket.AF_INET, "127.0.0.1"), Entry(socket.AF_INET6, "::1")],
    "docker0": [Entry(socket.AF_INET, "172.17.0.1")],
    "ens5": [
        Entry(socket.AF_PACKET, "02:00:00:00:00:01"),
        Entry(socket.AF_INET, "10.0.0.4"),
        Entry(socket.AF_INET, "10.0.1.4"),
        Entry(socket.AF_INET6, "fe80::1%ens5"),
    ],
    "down0": [Entry(socket.AF_PACKET, "02:00:00:00:00:02")],
}


@pytest.fixture
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "net_if_addrs", lambda: MACHINE)


@pytest.mark.usefixtures("_machine")
@pytest.mark.parametrize(
    ("address", "named", "gloo", "nccl"),
    [
        *((address, {}, "ens5", "ens5") for address in ("10.0.0.4", "10.0.1.4", "fe80::1")),
        # Each for itself: the other one is still chosen.
        *(("10.0.0.4", {"GLOO_SOCKET_IFNAME": value}, value, "ens5") for value in ("docker0", "ens5,docker0")),
        # NCCL has a grammar of its own.
        *(("10.0.0.4", {"NCCL_SOCKET_IFNAME": value}, "ens5", value) for value in ("ens", "^docker,lo", "=ens5")),
    ],
)
def test_the_interface_is_the_named_one_or_that_of_the_nodes_address(
    address: str, named: dict[str, str], gloo: str, nccl: str
) -> None:
    assert choose_interfaces(address, named) == {"GLOO_SOCKET_IFNAME": gloo, "NCCL_SOCKET_IFNAME": nccl}


@pytest.mark.usefixtures("_machine")
@pytest.mark.parametrize(
    ("address", "named", "said"),
    [
        ("127.0.0.1", {}, "its address in Ray is 127.0.0.1, .*--node-ip-address"),
        ("10.9.9.9", {}, "no network interface has this node's address in Ray, 10.9.9.9; .*one of docker0, ens5"),
        ("10.0.0.4", {"GLOO_SOCKET_IFNAME": "lo"}, "GLOO_SOCKET_IFNAME=lo names the loopback interface"),
        ("10.0.0.4", {"NCCL_SOCKET_IFNAME": "=lo"}, "NCCL_SOCKET_IFNAME==lo names the loopback interface"),
        ("10.0.0.4", {"GLOO_SOCKET_IFNAME": "eth0"}, "GLOO_SOCKET_IFNAME=eth0: there is no such interface"),
    ],
)
def test_loopback_is_refused_by_the_variables_name(address: str, named: dict[str, str], said: str) -> None:
    with pytest.raises(ClusterError, match=said) as caught:
        choose_interfaces(address, named)
    assert caught.value.exit_code == 5
    assert "GLOO_SOCKET_IFNAME" in str(caught.value) or "NCCL_SOCKET_IFNAME" in str(caught.value)


def test_this_process_and_machine_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ens5")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    assert named_interfaces() == {"GLOO_SOCKET_IFNAME": "ens5"}
    assert private_interfaces("127.0.0.1") == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


@pytest.mark.usefixtures("_machine")
def test_workers_of_a_private_ray_stay_on_the_loopback_interface() -> None:
    assert private_interfaces("127.0.0.1") == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert private_interfaces("10.0.0.4") == {}
