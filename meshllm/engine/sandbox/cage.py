"""Applies a sandbox to the calling process, for its rest and its children. Nothing here can be undone.

Invariants: imports only the standard library, and little of it: the reaper runs it between fork and exec. The process
must have one thread. What to apply was worked out by policy.py; here are only the system calls.
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import struct

TYPE_CHECKING = False  # typing takes 2 ms to import
if TYPE_CHECKING:
    from typing import Any

# A core file would hold prompts. 1 rather than 0: 0 does not keep the kernel from piping the dump to a program, such as
# systemd-coredump (Linux, fs/coredump.c); and no file is that small.
CORE_BYTES = 1
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION, _LANDLOCK_RULE_PATH_BENEATH = 1, 1
# EXECUTE, WRITE_FILE, READ_FILE, TRUNCATE, IOCTL_DEV: the rights on something that is no folder.
_FILE_RIGHTS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
_SECCOMP_SET_MODE_FILTER = 1
# SPEC_ALLOW: before Linux 5.16 a filter switches on a mitigation that costs speed; it protects secrets in a process.
_SPEC_ALLOW, _NEW_LISTENER = 4, 8
_CAPABILITY_VERSION_3, _CAP_DAC_OVERRIDE, _LAST_CAPABILITY = 0x20080522, 1, 63
_SYSTEM_CALLS = {"x86_64": (317, 126), "aarch64": (277, 91)}  # seccomp, capset


class _Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def apply(plan: dict[str, Any]) -> int:
    """Apply the layers of `plan` (policy.py, `plan`). Raises OSError; the process must then not go on.

    Returns the descriptor on which the kernel asks about connect(), -1 if it does not.
    """
    os.umask(plan["umask"])
    for name, value in plan["limits"].items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)  # noqa: PLW2901 - never above the limit
        resource.setrlimit(kind, (value, value))
    if not plan["linux"]:
        return -1
    libc = _libc()
    _call("no_new_privs", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if os.geteuid() == 0:
        drop_capabilities(libc, [path for path, _ in plan["rules"]])
    if plan["landlock"]:
        restrict_files(libc, plan["landlock"], plan["rules"])
    if plan["filter"]:
        return install_filter(libc, bytes.fromhex(plan["filter"]), plan["own_pid"], listener=plan["asks"])
    return -1


def landlock_abi() -> int:
    """The version of Landlock. Raises OSError: ENOSYS (the kernel has none) or EOPNOTSUPP (it is off)."""
    number, zero = ctypes.c_long(_LANDLOCK_CREATE_RULESET), ctypes.c_long(0)
    version = ctypes.c_long(_LANDLOCK_CREATE_RULESET_VERSION)
    return _call("landlock", _libc().syscall(number, None, zero, version))


def drop_capabilities(libc: ctypes.CDLL, paths: list[str]) -> None:
    """Root without privileges. CAP_DAC_OVERRIDE stays if one of `paths` (a device, a model) is another user's."""
    kept = 1 << _CAP_DAC_OVERRIDE if any(map(_needs_privilege, paths)) else 0
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(_LAST_CAPABILITY + 1):
        if not kept >> capability & 1:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails above the kernel's last, and without any
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    permitted = _permitted() & kept
    data = struct.pack("=6I", permitted, permitted, 0, 0, 0, 0)
    number = ctypes.c_long(_SYSTEM_CALLS[os.uname().machine][1]) if os.uname().machine in _SYSTEM_CALLS else None
    if number is not None:
        _call("capset", libc.syscall(number, header, data))


def _permitted() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123 - pathlib is slow
        return next((int(line.split()[1], 16) for line in status if line.startswith("CapPrm:")), 0)


def _needs_privilege(path: str) -> bool:
    """Whether root without capabilities could not open `path`: it is not root's, nor open to all."""
    real = os.path.realpath(path)
    while True:
        try:
            facts = os.stat(real)  # noqa: PTH116
        except OSError:
            return False
        wanted = stat.S_IXOTH if stat.S_ISDIR(facts.st_mode) else stat.S_IROTH
        if stat.S_ISCHR(facts.st_mode):
            wanted = stat.S_IROTH | stat.S_IWOTH
        if facts.st_uid != 0 and facts.st_mode & wanted != wanted:
            return True
        if real == "/":
            return False
        real = os.path.dirname(real)  # noqa: PTH120


def restrict_files(libc: ctypes.CDLL, handled: list[int], rules: list[tuple[str, int]]) -> None:
    """Landlock. `handled`: the members of struct landlock_ruleset_attr that the kernel knows; `rules`: path, rights."""
    attributes = struct.pack(f"={len(handled)}Q", *handled)
    zero = ctypes.c_long(0)
    ruleset = _call(
        "landlock_create_ruleset",
        libc.syscall(ctypes.c_long(_LANDLOCK_CREATE_RULESET), attributes, ctypes.c_size_t(len(attributes)), zero),
    )
    try:
        for path, rights in rules:
            _add_rule(libc, ruleset, path, rights & handled[0])
        _call(
            "landlock_restrict_self",
            libc.syscall(ctypes.c_long(_LANDLOCK_RESTRICT_SELF), ctypes.c_long(ruleset), zero),
        )
    finally:
        os.close(ruleset)


def _add_rule(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    """Allow `rights` beneath `path`; what does not exist (any more) is left out, which denies it."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, descriptor)
        added = libc.syscall(
            ctypes.c_long(_LANDLOCK_ADD_RULE),
            ctypes.c_long(ruleset),
            ctypes.c_long(_LANDLOCK_RULE_PATH_BENEATH),
            rule,
            ctypes.c_long(0),
        )
        _call(f"landlock_add_rule {path}", added)
    finally:
        os.close(descriptor)


def install_filter(libc: ctypes.CDLL, code: bytes, own_pid: int, *, listener: bool) -> int:
    """The seccomp filter; `own_pid` in it is replaced. Returns the listener's descriptor, -1 without one."""
    count = len(code) // 8
    words = list(struct.unpack(f"={count * 2}I", code))
    words = [os.getpid() if index % 2 and word == own_pid else word for index, word in enumerate(words)]
    buffer = ctypes.create_string_buffer(struct.pack(f"={count * 2}I", *words))
    program = _Filter(count, ctypes.cast(buffer, ctypes.c_void_p))
    result = libc.syscall(
        ctypes.c_long(_SYSTEM_CALLS[os.uname().machine][0]),
        ctypes.c_long(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_long(_SPEC_ALLOW | (_NEW_LISTENER if listener else 0)),
        ctypes.byref(program),
    )
    found = _call("seccomp", result)
    return found if listener else -1


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return libc


def _call(name: str, result: int) -> int:
    """`result` of a system call. Raises OSError with the name of what failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return int(result)
