"""The process that is the lab's wire: `python -m tests.netlab.link SEED`.

It makes the hosts' TUN devices (whoever started it moves them into namespaces: an open device keeps working), passes
their packets through a `Wire`, and does what lines of JSON on its standard input say, one line of answer for each. It
ends with its standard input, and its devices end with it: nothing is left of it whatever becomes of the tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import struct
import sys
import time
from typing import Any

from tests.netlab.wire import Wire

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
# Packets read from one device before others are read.
BATCH = 64
MAX_PACKET = 65536


def open_tun() -> tuple[int, str]:
    """A new TUN device without packet headers: its descriptor and its name (unique by our process id)."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    answer = fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"nl%dn%%d" % os.getpid(), _IFF_TUN | _IFF_NO_PI))
    return tun, answer[:16].rstrip(b"\0").decode()


class Process:
    """The event loop and the commands of the wire."""

    def __init__(self, seed: int) -> None:
        self._wire = Wire(seed, self._deliver)
        self._devices: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._epoll = select.epoll()
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._asked = b""
        self._undelivered = 0

    def run(self) -> None:
        """Until standard input ends."""
        control = sys.stdin.fileno()
        while True:
            wait = self._wire.arrive(time.monotonic())
            for ready, _ in self._epoll.poll(-1 if wait is None else wait):
                if ready != control:
                    self._read(ready)
                elif not self._obey():
                    return

    def _read(self, device: int) -> None:
        name = self._names[device]
        with contextlib.suppress(BlockingIOError):
            for _ in range(BATCH):
                self._wire.sent(name, os.read(device, MAX_PACKET), time.monotonic())

    def _deliver(self, name: str, packet: bytes) -> None:
        try:
            os.write(self._devices[name], packet)
        except OSError:  # the host's device is down or its queue is full: the packet is lost
            self._undelivered += 1

    def _obey(self) -> bool:
        data = os.read(sys.stdin.fileno(), 1 << 16)
        *lines, self._asked = (self._asked + data).split(b"\n")
        for line in lines:
            wish = json.loads(line)
            try:
                answer = getattr(self, f"do_{wish.pop('do')}")(**wish)
            except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer or {}), flush=True)
        return bool(data)

    def do_host(self, name: str, address: str, behind: str | None) -> dict[str, Any]:
        """A new host: its device's name."""
        self._wire.place(name, address, behind)
        tun, device = open_tun()
        self._devices[name], self._names[tun] = tun, name
        self._epoll.register(tun, select.EPOLLIN)
        return {"device": device}

    def do_move(self, name: str, address: str, behind: str | None) -> None:
        """Another address for a host, perhaps at another place."""
        self._wire.place(name, address, behind)

    def do_nat(self, name: str, **options: Any) -> None:
        """A router."""
        self._wire.add_nat(name, **options)

    def do_forget(self, name: str) -> None:
        """A router loses its mappings."""
        self._wire.nat(name).forget()

    def do_uninvited(self, name: str) -> dict[str, Any]:
        """How many packets a router kept out."""
        return {"packets": self._wire.nat(name).uninvited}

    def do_set(self, sender: str, receiver: str, changes: dict[str, Any]) -> None:
        """Change a direction."""
        self._wire.set(sender, receiver, changes)

    def do_counts(self, sender: str, receiver: str) -> dict[str, Any]:
        """What became of a direction's packets."""
        return self._wire.counts(sender, receiver)

    def do_drops(self) -> dict[str, Any]:
        """Packets that belong to no direction, or that a host's kernel did not take."""
        return {"strange": self._wire.strange, "undelivered": self._undelivered}


if __name__ == "__main__":
    Process(int(sys.argv[1])).run()
