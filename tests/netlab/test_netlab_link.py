"""The lab itself: real sockets of real hosts over the wire. Times have lower bounds only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from threading import Thread

import psutil
import pytest

from tests.netlab.lab import NAMESPACES, PREFIX, ROOT, Host, Lab, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no network lab: {missing()}")
# Only a failing test reaches it: everything here takes milliseconds.
PATIENCE = 30.0


def udp(host: Host, port: int = 0) -> socket.socket:
    made = host.socket(socket.SOCK_DGRAM)
    made.bind(("0.0.0.0", port))
    made.settimeout(PATIENCE)
    return made


def until(fact: Callable[[], bool]) -> None:
    """Wait until a fact of the wire holds; each check is a round trip to it."""
    deadline = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < deadline


def settled(lab: Lab, sender: str, receiver: str, packets: int) -> dict[str, int]:
    """The counts of a direction once it has carried so many packets."""
    until(lambda: sum(lab.counts(sender, receiver).values()) >= packets)
    return lab.counts(sender, receiver)


def test_link_has_the_requested_round_trip_time(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    with udp(a) as asker, udp(b, 7) as answerer:
        for delay in (0.0, 0.05):
            lab.link("a", "b", delay=delay)
            began = time.monotonic()
            asker.sendto(b"hello", (b.address, 7))
            data, sender = answerer.recvfrom(100)
            assert time.monotonic() - began >= delay
            answerer.sendto(data, sender)
            assert asker.recv(100) == b"hello"
            assert time.monotonic() - began >= 2 * delay
            assert sender[0] == a.address


def test_link_loses_the_same_packets_for_a_seed() -> None:
    def arrived(seed: int) -> list[int]:
        with Lab(seed) as lab:
            a, b = lab.host("a"), lab.host("b")
            lab.link("a", "b", loss=0.25)
            with udp(a) as sender, udp(b, 7) as receiver:
                for number in range(100):
                    sender.sendto(bytes([number]), (b.address, 7))
                counts = settled(lab, "a", "b", 100)
                assert counts["passed"] + counts["lost"] == 100
                return [receiver.recv(100)[0] for _ in range(counts["passed"])]

    first = arrived(5)
    assert 50 < len(first) < 95
    assert arrived(5) == first
    assert arrived(6) != first


def test_connection_survives_a_cut_link(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    with b.socket() as listener, a.socket() as caller:
        listener.bind((b.address, 80))
        listener.listen()
        caller.settimeout(PATIENCE)
        caller.connect((b.address, 80))
        served, _ = listener.accept()
        with served:
            served.settimeout(PATIENCE)
            lab.cut("a", "b")
            caller.sendall(b"through")
            until(lambda: lab.counts("a", "b")["cut"] > 0)
            lab.mend("a", "b")
            assert served.recv(100) == b"through"


def test_bulk_data_survives_a_bad_link(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link("a", "b", delay=0.002, jitter=0.002, loss=0.01, rate=8e6)
    data = os.urandom(1 << 20)
    with b.socket() as listener, a.socket() as caller:
        listener.bind((b.address, 80))
        listener.listen()
        caller.settimeout(PATIENCE)
        caller.connect((b.address, 80))
        served, _ = listener.accept()

        def send() -> None:
            with served:
                served.sendall(data)

        began = time.monotonic()
        sender = Thread(target=send, daemon=True)
        sender.start()
        with caller.makefile("rb") as stream:
            assert stream.read() == data
        assert time.monotonic() - began > 0.1  # a MiB at 8 MB/s
        sender.join()
    assert lab.counts("b", "a")["lost"] > 0


def test_link_blocks_tcp_only(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link("a", "b", blocked=["tcp"])
    with udp(a) as sender, udp(b, 7) as receiver, a.socket() as caller:
        sender.sendto(b"hello", (b.address, 7))
        assert receiver.recv(100) == b"hello"
        caller.setblocking(False)
        caller.connect_ex((b.address, 80))
        assert settled(lab, "a", "b", 2)["blocked"] >= 1


def test_router_passes_replies_only(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    outside = lab.nat("home", "cone")
    inside = lab.host("inside", behind="home")
    with udp(inside) as asker, udp(a, 7) as asked, udp(b, 7) as stranger, a.socket() as listener:
        asker.sendto(b"question", (a.address, 7))
        data, sender = asked.recvfrom(100)
        assert (data, sender[0]) == (b"question", outside)
        asked.sendto(b"answer", sender)
        assert asker.recv(100) == b"answer"

        before = lab.uninvited("home")
        stranger.sendto(b"spam", sender)
        asked.sendto(b"spam", (outside, 9))
        until(lambda: lab.uninvited("home") == before + 2)
        asked.sendto(b"after", sender)
        assert asker.recv(100) == b"after"

        listener.bind((a.address, 80))
        listener.listen()
        with inside.socket() as caller:
            caller.settimeout(PATIENCE)
            caller.connect((a.address, 80))
            served, sender = listener.accept()
            with served:
                assert sender[0] == outside
                served.sendall(b"page")
                assert caller.recv(100) == b"page"


def test_moved_host_has_its_new_address_only(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    old = b.address
    b.move("198.18.9.9")
    with udp(a) as sender, udp(b, 7) as receiver:
        sender.sendto(b"there", (old, 7))
        sender.sendto(b"here", (b.address, 7))
        data, source = receiver.recvfrom(100)
        assert (data, source[0]) == (b"here", a.address)


def test_hosts_have_loopback_and_no_real_network(lab: Lab) -> None:
    a = lab.host("a")
    assert "127.0.0.1" in a.run(["ip", "address"]).stdout
    assert a.run(["ip", "route"]).stdout.split("\n")[0].startswith(f"default dev {a.device}")
    assert psutil.net_if_addrs().keys() & {a.device} == set()


def test_lab_leaves_nothing_behind() -> None:
    with Lab() as lab:
        host = lab.host("a")
        wire = lab._wire.pid
        assert (NAMESPACES / host.namespace).exists()
    assert not psutil.pid_exists(wire)
    assert not (NAMESPACES / host.namespace).exists()
    assert not [name for name in psutil.net_if_addrs() if name.startswith(f"nl{wire}n")]


def test_lab_removes_what_a_killed_run_left() -> None:
    script = """
import os, subprocess
from tests.netlab.lab import Lab
lab = Lab().__enter__()
host = lab.host("a")
orphan = subprocess.Popen(["ip", "netns", "exec", host.namespace, "sleep", "600"], stdout=-3, stderr=-3)  # to nowhere
print(host.namespace, lab._wire.pid, orphan.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    namespace, wire, orphan = run.stdout.split()
    assert namespace.startswith(PREFIX)
    with Lab():
        assert not (NAMESPACES / namespace).exists()
    for pid in (int(wire), int(orphan)):
        if psutil.pid_exists(pid):
            psutil.Process(pid).wait(PATIENCE)
