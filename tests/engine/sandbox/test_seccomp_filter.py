"""The filter's program, run by an interpreter of the few instructions it uses, for both processors."""

from __future__ import annotations

import errno
import struct

import pytest

from meshllm.engine.sandbox import seccomp
from meshllm.engine.sandbox.seccomp import Connect

ALLOW, KILL, NOTIFY = 0x7FFF0000, 0x80000000, 0x7FC00000
X86, ARM = ("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)
EPERM, EACCES, ENOSYS = (0x50000 | number for number in (errno.EPERM, errno.EACCES, errno.ENOSYS))


def run(
    machine: tuple[str, int],
    number: int,
    *arguments: int,
    connect: Connect = Connect.DENIED,
    arch: int = 0,
    gpu: bool = False,
    landlock: int = 0,
) -> int:
    """What the filter returns for a system call."""
    code = seccomp.program(connect, machine[0], gpu=gpu, landlock=landlock)
    data = struct.pack("=iIQ6Q", number, arch or machine[1], 0, *(*arguments, *[0] * 6)[:6])
    accumulator = at = 0
    while True:
        operation, yes, no, value = struct.unpack_from("=HBBI", code, at * 8)
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
                at += yes if holds[operation] else no
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


@pytest.mark.parametrize(
    ("machine", "calls"),
    [
        (X86, {"read": 0, "mmap": 9, "execve": 59, "openat": 257, "futex": 202, "exit_group": 231, "sendmsg": 46}),
        (ARM, {"read": 63, "mmap": 222, "execve": 221, "openat": 56, "futex": 98, "exit_group": 94, "sendmsg": 211}),
    ],
    ids=["x86_64", "aarch64"],
)  # fmt: skip
def test_what_engines_do_is_allowed(machine: tuple[str, int], calls: dict[str, int]) -> None:
    assert {name: run(machine, number) for name, number in calls.items()} == dict.fromkeys(calls, ALLOW)


@pytest.mark.parametrize("machine", [X86, ARM], ids=["x86_64", "aarch64"])
def test_every_listed_call_is_denied(machine: tuple[str, int]) -> None:
    column = ("x86_64", "aarch64").index(machine[0])
    numbers = [pair[column] for pair in seccomp._DENIED.values() if pair[column] is not None]
    assert len(numbers) == len(set(numbers)) > 70
    assert {run(machine, number) for number in numbers if number is not None} == {EPERM}


@pytest.mark.parametrize(
    ("machine", "socket", "socketpair"), [(X86, 41, 53), (ARM, 198, 199)], ids=["x86_64", "aarch64"]
)
def test_only_connected_unix_sockets(machine: tuple[str, int], socket: int, socketpair: int) -> None:
    for call in (socket, socketpair):
        assert run(machine, call, 1, 1) == run(machine, call, 1, 1 | 0o2000000) == run(machine, call, 1, 5) == ALLOW
        assert run(machine, call, 1, 2) == run(machine, call, 1, 3) == EPERM
        assert {run(machine, call, family, 1) for family in (2, 10, 16, 17, 38, 40)} == {EPERM}


@pytest.mark.parametrize(("machine", "call"), [(X86, 42), (ARM, 203)], ids=["x86_64", "aarch64"])
def test_connect(machine: tuple[str, int], call: int) -> None:
    answers = [run(machine, call, 3, 4, 110, connect=how) for how in Connect]
    assert answers == [EACCES, NOTIFY, ALLOW]


@pytest.mark.parametrize(
    ("machine", "kill", "tgkill", "clone", "sendto", "prlimit"),
    [(X86, 62, 234, 56, 44, 302), (ARM, 129, 131, 220, 206, 261)],
    ids=["x86_64", "aarch64"],
)
def test_arguments_decide(
    machine: tuple[str, int], kill: int, tgkill: int, clone: int, sendto: int, prlimit: int
) -> None:
    for call in (kill, tgkill):
        assert run(machine, call, seccomp.OWN_PID, 9) == ALLOW
        assert run(machine, call, 1, 9) == run(machine, call, 0xFFFFFFFF, 9) == EPERM
    assert run(machine, clone, 0x3D0F00) == run(machine, clone, 0x3D0F00, gpu=True) == ALLOW  # a thread
    assert [run(machine, clone, 17, gpu=gpu) for gpu in (False, True)] == [EPERM, ALLOW]  # a process
    assert run(machine, clone, 0x10000000 | 17, gpu=True) == run(machine, clone, 0x10000000 | 0x10000) == EPERM
    assert run(machine, clone, 0x10000000 | 17) == run(machine, clone, 0x00020000) == EPERM
    assert run(machine, 435) == ENOSYS  # clone3
    assert run(machine, sendto, 3, 4, 5, 0, 0) == ALLOW
    assert run(machine, sendto, 3, 4, 5, 0, 6) == run(machine, sendto, 3, 4, 5, 0, 1 << 32) == EPERM
    assert run(machine, prlimit, 0, 7) == ALLOW
    assert run(machine, prlimit, 77, 7) == EPERM


def test_foreign_system_calls_kill() -> None:
    assert run(X86, 0, arch=0x40000003) == KILL  # i386
    assert run(X86, 0x40000000 | 59) == KILL  # x32
    assert run(ARM, 0, arch=0x40000028) == KILL


def test_processors() -> None:
    assert seccomp.supported("x86_64")
    assert seccomp.supported("aarch64")
    assert not seccomp.supported("riscv64")


@pytest.mark.parametrize(
    ("machine", "fcntl", "ioctl", "mmap", "openat", "memfd", "setpriority", "affinity"),
    [(X86, 72, 16, 9, 257, 319, 141, 203), (ARM, 25, 29, 222, 56, 279, 140, 122)],
    ids=["x86_64", "aarch64"],
)
def test_what_reaches_others_or_escapes_limits(
    machine: tuple[str, int],
    fcntl: int,
    ioctl: int,
    mmap: int,
    openat: int,
    memfd: int,
    setpriority: int,
    affinity: int,
) -> None:
    for command in (8, 10, 15):
        assert run(machine, fcntl, 3, command, 1) == EPERM
    assert run(machine, fcntl, 3, 1) == run(machine, fcntl, 3, 4, 0x2000) == run(machine, fcntl, 3, 1030) == ALLOW
    assert run(machine, ioctl, 3, 0x40086602) == run(machine, ioctl, 3, 0x401C5820) == EPERM
    assert run(machine, ioctl, 3, 0x5401) == run(machine, ioctl, 3, 0xC0384627) == ALLOW  # a terminal, a driver
    for flags, answer in ((0x22, ALLOW), (0x01, ALLOW), (0x02, ALLOW), (0x21, EPERM), (0x23, EPERM), (0x40021, EPERM)):
        assert run(machine, mmap, 0, 1 << 30, 3, flags) == answer
        assert run(machine, mmap, 0, 1 << 30, 3, flags, gpu=True) == ALLOW
    assert [run(machine, memfd, gpu=gpu) for gpu in (False, True)] == [EPERM, ALLOW]
    assert [run(machine, openat, -100 & 0xFFFFFFFF, 0, 0x200, landlock=abi) for abi in (0, 2, 3)] == [
        EPERM,
        EPERM,
        ALLOW,
    ]
    assert run(machine, openat, -100 & 0xFFFFFFFF, 0, 0x80000) == ALLOW
    assert run(machine, setpriority, 0, 0, 19) == run(machine, affinity, 0) == ALLOW
    assert run(machine, setpriority, 0, 77, 19) == run(machine, affinity, 77) == EPERM
