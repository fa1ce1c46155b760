"""Runs in a sandbox: tries what a program must not be able to do there, and prints the results as JSON.

python cage_attacks.py OWN_FOLDER MODEL SECRET OUTSIDE TCP_PORT ALLOWED_SOCKET OTHER_SOCKET VICTIM_PID
"""

# ruff: noqa: PTH120, PTH123, PTH101, PTH108, PTH208, PTH211, SIM115

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import socket
import sys
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


victim = int(VICTIM)
results = {
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
