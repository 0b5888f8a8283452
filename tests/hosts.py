"""Machines in small: hosts with a network, processes, a name and a /tmp and /dev/shm of their own, on one machine.

Each host is a process in namespaces of its own, and lives for as long as that process does, which reads a pipe that
this one holds: whatever ends this one ends them all, and their network with them. They share one folder, as machines
share a network disk, and what lies outside /tmp.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Host", "Network", "lacking"]

SUBNET = "10.77.0"
_KEEPER = """
import os, signal, socket, subprocess, sys
name, *kept = sys.argv[1:]
def do(*lines):
    for line in lines:
        subprocess.run(line.split(), check=True)
do("mount --make-rprivate /", "mount -t proc proc /proc", "mount -t tmpfs tmpfs /mnt")
for number, folder in enumerate(kept):
    do(f"mkdir /mnt/{number}", f"mount --rbind {folder} /mnt/{number}")
do("mount -t tmpfs tmpfs /tmp", "mount -t tmpfs tmpfs /dev/shm", "ip link set lo up")
for number, folder in enumerate(kept):
    do(f"mkdir -p {folder}", f"mount --move /mnt/{number} {folder}")
socket.sethostname(name)
# Orphans come to the first process of a namespace, and this one buries them.
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
"""
ROOT = Path(__file__).parents[1]


def lacking() -> str | None:
    """What this machine lacks to have hosts; None where there is nothing."""
    if missing := [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]:
        return f"no {', '.join(missing)} here (iproute2, util-linux)"
    asked = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "ip", "link", "add", "name", "a", "type", "bridge"],
        capture_output=True,
        text=True,
    )
    return f"no privilege to make network namespaces: {asked.stderr.strip()}" if asked.returncode else None


class Host:
    """A machine: it runs commands until it is killed. `shared` is a folder that all of them see, with what they run."""

    def __init__(self, name: str, address: str, shared: Path) -> None:
        self.name, self.address = name, address
        kept = [
            path for path in (shared, ROOT, Path(sys.prefix), Path(sys.base_prefix)) if Path("/tmp") in path.parents
        ]
        words = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", sys.executable]
        self._unshare = subprocess.Popen(
            [*words, "-c", _KEEPER, name, *map(str, kept)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._unshare.stdout is not None
        if (said := self._unshare.stdout.readline()) != "ready\n":
            raise RuntimeError(f"host {name} did not start: {said}{self._unshare.stdout.read()}")
        (self.pid,) = map(int, Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split())
        self._processes = Path(f"/proc/{self.pid}/ns/pid").readlink()

    def command(self, words: Sequence[str], environment: Mapping[str, str], folder: Path | str = "/") -> list[str]:
        """The command that runs another one on this host; its environment is the given one alone."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--uts", "sh", "-c"]
        clean = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
        return [*enter, f"cd {shlex.quote(str(folder))} && exec {shlex.join([*clean, *words])}"]

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], folder: Path | str = "/", timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end."""
        return subprocess.run(self.command(words, environment, folder), capture_output=True, text=True, timeout=timeout)

    def do(self, *lines: str) -> None:
        """Run short commands as its administrator, one after another."""
        for line in lines:
            done = self.run(line.split(), {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
            assert done.returncode == 0, f"{line}: {done.stderr}"

    def titles(self) -> list[str]:
        """Of its processes."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "ns" / "pid").readlink() == self._processes:
                    found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
        return found

    def kill(self) -> None:
        """End it with all of its processes, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait()
        for pipe in (self._unshare.stdin, self._unshare.stdout):
            if pipe is not None:
                pipe.close()


class Network:
    """Hosts joined by a bridge, which lies on the first of them, the client."""

    def __init__(self, shared: Path) -> None:
        self._shared = shared
        self.hosts: dict[str, Host] = {}
        self.client = Host("client", f"{SUBNET}.1", shared)
        # By itself a bridge takes the address of a port, and another one when that goes: it is not found for a while.
        self._ip(self.client, "link add name bridge address 02:00:00:00:00:01 type bridge")
        self._ip(self.client, f"addr add {self.client.address}/24 dev bridge")
        self._ip(self.client, "link set bridge up")

    def add(self, name: str, number: int, interface: str) -> Host:
        """A host with the address that ends with `number`; its interface has a name of its own."""
        host = Host(name, f"{SUBNET}.{number}", self._shared)
        self.hosts[name] = host
        self._ip(self.client, f"link add name {name} type veth peer name {interface} netns {host.pid}")
        self._ip(self.client, f"link set {name} master bridge up")
        self._ip(host, f"addr add {host.address}/24 dev {interface}")
        self._ip(host, f"link set {interface} up")
        self._ip(host, f"route add default via {self.client.address}")
        return host

    def cut(self, name: str) -> None:
        """A power cut: the host falls silent and is gone; nobody is told."""
        self._ip(self.client, f"link del {name}")
        self.hosts.pop(name).kill()

    def close(self) -> None:
        """End all hosts."""
        for host in (*self.hosts.values(), self.client):
            host.kill()

    def _ip(self, host: Host, words: str) -> None:
        # In its network alone: the ids of processes are this machine's.
        command = ["nsenter", f"--target={host.pid}", "--net", "ip", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"ip {words}: {done.stderr}"
