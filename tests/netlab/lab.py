"""Hosts for tests, each in its own network namespace, and a scripted wire between them.

    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.nat("home", "cone"); c = lab.host("c", behind="home")
        lab.link("a", "b", delay=0.02, loss=0.01)

Linux and root only; `missing()` lists what is absent. Hosts reach each other without delay unless `link` sets one. The
wire and the programs end with the test process; the next run removes the namespaces of a killed one. IPv4 only; no host
reaches the real network.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
NAMESPACES = Path("/run/netns")
PREFIX = "mesh-netlab"
# Addresses for measurements between networks (RFC 2544): nobody's. Behind routers, what everybody has at home.
OUTSIDE, INSIDE = "198.18.0.{}", "192.168.{}.{}"
MTU = 1500
# Packets that a device keeps for a wire that is late; it is one Python process, and may be.
DEVICE_QUEUE = 4000
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


def _ip(*words: str) -> str:
    """The `ip` command. Raises OSError with what it said."""
    result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if result.returncode:
        raise OSError(f"ip {' '.join(words)}: {result.stderr.strip()}")
    return result.stdout


@functools.cache
def missing() -> str | None:
    """What keeps a lab from running here, or None."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if not shutil.which("ip"):
        return "there is no `ip` command: apt install iproute2"
    if not shutil.which("setpriv"):
        return "there is no `setpriv` command: apt install util-linux"
    try:
        with Lab() as lab:
            lab.host("a")
    except OSError as error:
        return f"namespaces or TUN devices cannot be made here: {error}"
    return None


def remove_leftovers() -> None:
    """End and remove what labs of dead processes left behind."""
    for path in NAMESPACES.glob(f"{PREFIX}-*") if NAMESPACES.is_dir() else ():
        if not psutil.pid_exists(int(path.name.split("-")[2])):
            _remove(path.name)


def _remove(namespace: str) -> list[int]:
    """Delete a namespace with every process in it, which are returned (there should be none)."""
    left = [int(pid) for pid in _ip("netns", "pids", namespace).split()]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _ip("netns", "delete", namespace)
    return left


class Host:
    """One computer. `address` is where it is reached, `namespace` its name for `ip netns`."""

    def __init__(self, lab: Lab, name: str, namespace: str, address: str, behind: str | None) -> None:
        self.lab = lab
        self.name = name
        self.namespace = namespace
        self.address = address
        self.behind = behind
        self.device = ""

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command, runs it here, and ends it when we are killed. The process is the command's own."""
        return ("ip", "netns", "exec", self.namespace, "setpriv", "--pdeathsig", "KILL", "--")

    def run(self, command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """A command's output; it must succeed."""
        words = [*self.prefix, *map(str, command)]
        return subprocess.run(words, capture_output=True, text=True, check=True, **options)

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket of this host, for use in the test itself. A namespace is a thread's own: one is made for it."""
        made: list[socket.socket | OSError] = []

        def make() -> None:
            try:
                with (NAMESPACES / self.namespace).open("rb") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns failed")
                made.append(socket.socket(socket.AF_INET, kind))
            except OSError as error:
                made.append(error)

        thread = Thread(target=make, daemon=True)
        thread.start()
        thread.join()
        if isinstance(result := made[0], OSError):
            raise result
        return result

    def move(self, address: str) -> None:
        """Another address for this host, as after a change of network."""
        self.lab.ask("move", name=self.name, address=address, behind=self.behind)
        _ip("-n", self.namespace, "address", "flush", "dev", self.device)
        self.address = address
        self._configure()

    def _configure(self) -> None:
        _ip("-n", self.namespace, "address", "add", f"{self.address}/32", "dev", self.device)
        _ip("-n", self.namespace, "link", "set", self.device, "up")
        _ip("-n", self.namespace, "route", "replace", "default", "dev", self.device, "src", self.address)

    def set_up(self, device: str) -> None:
        """Give it its device; called once by the lab."""
        self.device = device
        _ip("link", "set", device, "netns", self.namespace)
        _ip("-n", self.namespace, "link", "set", device, "mtu", str(MTU), "txqueuelen", str(DEVICE_QUEUE))
        _ip("-n", self.namespace, "link", "set", device, "multicast", "off")
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        # The wire speaks IPv4; the kernel's own announcements over IPv6 would be drawn lots for like other packets.
        self.run(["sh", "-c", f"echo 1 >/proc/sys/net/ipv6/conf/{device}/disable_ipv6"])
        self._configure()


class Lab:
    """Hosts and the wire between them; everything is gone at the end of the block."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._number = next(_numbers)
        self._hosts: dict[str, Host] = {}
        self._nats: list[str] = []
        self._outside = itertools.count(1)
        # What tests start on hosts is entered here: it ends before the hosts do, last started first.
        self.stack = ExitStack()

    def __enter__(self) -> Lab:
        remove_leftovers()
        self._wire = subprocess.Popen(
            [sys.executable, "-m", "tests.netlab.link", str(self._seed)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which still need the wire to end things properly
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stack.close()
        finally:
            assert self._wire.stdin is not None
            assert self._wire.stdout is not None
            self._wire.stdin.close()
            status = self._wire.wait()
            self._wire.stdout.close()
            left = {host.name: pids for host in self._hosts.values() if (pids := _remove(host.namespace))}
        if kind is None:
            assert status == 0, f"the wire ended with {status}"
            assert left == {}, f"processes left behind: {left}"

    def ask(self, wish: str, **arguments: Any) -> dict[str, Any]:
        """One line to the wire, and its answer. Raises OSError with what it refused."""
        assert self._wire.stdin is not None
        assert self._wire.stdout is not None
        self._wire.stdin.write(json.dumps({"do": wish, **arguments}) + "\n")
        self._wire.stdin.flush()
        answer: dict[str, Any] = json.loads(self._wire.stdout.readline() or '{"error": "the wire has ended"}')
        if "error" in answer:
            raise OSError(answer["error"])
        return answer

    def nat(self, name: str, kind: str, **options: float) -> str:
        """A router ("cone" or "symmetric"; see `nat.py`); its outside address."""
        outside = OUTSIDE.format(next(self._outside))
        self.ask("nat", name=name, kind=kind, outside=outside, **options)
        self._nats.append(name)
        return outside

    def host(self, name: str, *, behind: str | None = None) -> Host:
        """A new host, in the open or behind a router."""
        number = next(self._outside)
        address = OUTSIDE.format(number)
        if behind is not None:
            address = INSIDE.format(self._nats.index(behind) + 1, number)
        namespace = f"{PREFIX}-{os.getpid()}-{self._number}-{name}"
        _ip("netns", "add", namespace)
        host = self._hosts[name] = Host(self, name, namespace, address, behind)
        host.set_up(self.ask("host", name=name, address=address, behind=behind)["device"])
        return host

    def link(self, one: str, other: str, *, one_way: bool = False, **changes: Any) -> None:
        """Change what is named of `wire.Settings` between two hosts, in both directions or only towards `other`."""
        self.ask("set", sender=one, receiver=other, changes=changes)
        if not one_way:
            self.ask("set", sender=other, receiver=one, changes=changes)

    def link_all(self, **changes: Any) -> None:
        """The same between all hosts there are."""
        for one, other in itertools.combinations(self._hosts, 2):
            self.link(one, other, **changes)

    def cut(self, one: str, other: str, *, one_way: bool = False) -> None:
        """Nothing passes from now on."""
        self.link(one, other, cut=True, one_way=one_way)

    def mend(self, one: str, other: str, *, one_way: bool = False) -> None:
        """Everything passes again."""
        self.link(one, other, cut=False, one_way=one_way)

    def part(self, *sides: Sequence[str]) -> None:
        """Cut the mesh into sides that hear nothing of each other."""
        self._between(sides, cut=True)

    def unite(self, *sides: Sequence[str]) -> None:
        """Undo `part`."""
        self._between(sides, cut=False)

    def _between(self, sides: Sequence[Sequence[str]], cut: bool) -> None:
        for one_side, other_side in itertools.combinations(sides, 2):
            for one, other in itertools.product(one_side, other_side):
                self.link(one, other, cut=cut)

    def counts(self, sender: str, receiver: str) -> dict[str, int]:
        """What became of the packets of a direction (`wire.Counts`)."""
        return self.ask("counts", sender=sender, receiver=receiver)

    def uninvited(self, nat: str) -> int:
        """How many packets a router kept out."""
        packets: int = self.ask("uninvited", name=nat)["packets"]
        return packets

    def forget(self, nat: str) -> None:
        """A router loses its mappings, as when it is switched off and on."""
        self.ask("forget", name=nat)
