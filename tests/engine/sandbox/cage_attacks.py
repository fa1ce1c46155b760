"""Runs in a sandbox: tries what a program must not be able to do there, and prints the results as JSON.

python cage_attacks.py OWN_FOLDER MODEL SECRET OUTSIDE TCP_PORT ALLOWED_SOCKET OTHER_SOCKET VICTIM_PID
"""

# ruff: noqa: PTH120, PTH123, PTH101, PTH108, PTH208, PTH211, SIM115

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

FOLDER, MODEL, SECRET, OUTSIDE, PORT, ALLOWED, OTHER, VICTIM = sys.argv[1:9]
LIBC = ctypes.CDLL(None, use_errno=True)


def attempt(action: Callable[[], object]) -> str:
    """ "" if it worked, otherwise the name of the error."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def call(result: int) -> None:
    """Raise OSError if the C function failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def connect(path: str) -> bytes:
    """What the listener at `path` says."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        return connection.recv(16)


def system_call(x86_64: int, aarch64: int, *arguments: int) -> None:
    """Make a system call by its number."""
    call(LIBC.syscall(x86_64 if platform.machine() == "x86_64" else aarch64, *arguments))


def bind(path: str) -> None:
    """Make a Unix socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def raise_core_limit() -> None:
    """ValueError is Python's word for EPERM or EINVAL here."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError:
        raise PermissionError(errno.EPERM, "") from None


def fork() -> None:
    """Start a process that leaves everything behind that ends it."""
    if os.fork() == 0:
        os.setsid()
        LIBC.prctl(1, 0)
        time.sleep(3600)
        os._exit(0)


def in_memory_file() -> None:
    """Hold memory that belongs to no process."""
    descriptor = os.memfd_create("x")
    os.ftruncate(descriptor, 1 << 20)


def spoil_with_signals() -> None:
    """Let the kernel send SIGKILL to another process when a pipe can be read."""
    reading, writing = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETOWN, victim)
    fcntl.fcntl(reading, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
    os.write(writing, b".")


def append_only() -> None:
    """Make the model append-only."""
    descriptor = os.open(MODEL, os.O_RDONLY)
    fcntl.ioctl(descriptor, 0x40086602, struct.pack("i", 0x20))


victim = int(VICTIM)
results = {
    "fork": attempt(fork),
    "memory in a file without a name": attempt(in_memory_file),
    "shared memory": attempt(lambda: mmap.mmap(-1, 1 << 20, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)),
    "private memory": attempt(lambda: mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)),
    "start a thread": attempt(lambda: threading.Thread(target=int, daemon=True).start()),
    "signal by a pipe": attempt(spoil_with_signals),
    "truncate the model by opening it": attempt(lambda: os.open(MODEL, os.O_RDONLY | os.O_TRUNC)),
    "attributes of the model": attempt(append_only),
    "watch a folder": attempt(lambda: call(LIBC.inotify_init1(0))),
    "priority of another process": attempt(lambda: os.setpriority(os.PRIO_PROCESS, victim, 19)),
    "own priority": attempt(lambda: os.setpriority(os.PRIO_PROCESS, 0, 1)),
    "processors of another process": attempt(lambda: os.sched_setaffinity(victim, {0})),
    "scheduler of another process": attempt(lambda: os.sched_setscheduler(victim, os.SCHED_OTHER, os.sched_param(0))),
    "read the model": attempt(lambda: open(MODEL, "rb").read(1)),
    "write the model": attempt(lambda: open(MODEL, "r+b")),
    "truncate the model": attempt(lambda: os.truncate(MODEL, 0)),
    "remove the model": attempt(lambda: os.unlink(MODEL)),
    "chmod the model": attempt(lambda: os.chmod(MODEL, 0o777)),
    "read a secret": attempt(lambda: open(SECRET, "rb").read(1)),
    "read /etc/shadow": attempt(lambda: open("/etc/shadow", "rb").read(1)),
    "list a home": attempt(lambda: os.listdir(os.path.dirname(SECRET))),
    "write outside": attempt(lambda: open(OUTSIDE, "wb")),
    "write into its own folder": attempt(lambda: open(f"{FOLDER}/file", "wb")),
    "make a link": attempt(lambda: os.symlink(SECRET, f"{FOLDER}/link")),
    "make a socket in its own folder": attempt(lambda: bind(f"{FOLDER}/own.sock")),
    "make a socket outside": attempt(lambda: bind(f"{OUTSIDE}.sock")),
    "environment of another process": attempt(lambda: open(f"/proc/{VICTIM}/environ", "rb").read(1)),
    "memory of another process": attempt(lambda: open(f"/proc/{VICTIM}/mem", "rb")),
    "connect by TCP": attempt(lambda: socket.create_connection(("127.0.0.1", int(PORT)))),
    "AF_INET": attempt(lambda: socket.socket(socket.AF_INET)),
    "AF_INET6": attempt(lambda: socket.socket(socket.AF_INET6)),
    "AF_NETLINK": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "AF_UNIX datagrams": attempt(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
    "connect to the allowed socket": attempt(lambda: connect(ALLOWED)),
    "connect to another socket": attempt(lambda: connect(OTHER)),
    "connect to an abstract socket": attempt(lambda: connect("\0mesh-llm-no-such")),
    "ptrace": attempt(lambda: call(LIBC.ptrace(16, victim, 0, 0))),
    "process_vm_readv": attempt(lambda: system_call(310, 270, victim, 0, 0, 0, 0, 0)),
    "signal another process": attempt(lambda: os.kill(victim, 0)),
    "signal itself": attempt(lambda: os.kill(os.getpid(), 0)),
    "setuid": attempt(lambda: os.setuid(12345)),
    "unshare": attempt(lambda: call(LIBC.unshare(0x10000000))),
    "mount": attempt(lambda: call(LIBC.mount(b"none", b"/mnt", b"tmpfs", 0, None))),
    "bpf": attempt(lambda: system_call(321, 280, 0, 0, 0)),
    "io_uring": attempt(lambda: system_call(425, 425, 1, 0)),
    "userfaultfd": attempt(lambda: system_call(323, 282, 0)),
    "perf_event_open": attempt(lambda: system_call(298, 241, 0, 0, 0, 0, 0)),
    "keyctl": attempt(lambda: system_call(250, 219, 0, 0)),
    "prlimit of another process": attempt(lambda: resource.prlimit(victim, resource.RLIMIT_NOFILE)),
    "raise the core limit": attempt(raise_core_limit),
    "more memory than the limit": "ENOMEM",
}


with contextlib.suppress(MemoryError):
    len(bytearray(1 << 30))
    results["more memory than the limit"] = ""
with open("/proc/self/status") as file:
    status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
facts = {
    "results": results,
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "umask": os.umask(0),
    "environment": sorted(os.environ),
    "status": {name: status[name].strip() for name in ("NoNewPrivs", "Seccomp", "CapEff", "CapPrm", "CapBnd")},
}
print("facts " + json.dumps(facts), flush=True)
