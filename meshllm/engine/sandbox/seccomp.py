"""The seccomp filter: system calls that an engine never needs fail with EPERM. Pure; cage.py installs it.

Landlock leaves out what changes a file's mode, owner, times or attributes, Unix sockets, signals (before ABI 6) and the
rest of the kernel; the filter covers these. Numbers: Linux, arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h (aarch64); instructions: include/uapi/linux/filter.h and seccomp.h.
"""

from __future__ import annotations

import errno
import platform
import struct
from enum import Enum
from typing import Final

# name -> number on x86_64, on aarch64; None: it has no such call.
_DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "process_madvise": (440, 440), "tkill": (200, 130), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "ioprio_set": (251, 30), "inotify_init": (253, None), "inotify_init1": (294, 26),
    # namespaces and mounts
    "setns": (308, 268), "unshare": (272, 97), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "userfaultfd": (323, 282), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "create_module": (174, None), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
    "syslog": (103, 116), "vmsplice": (278, 75), "modify_ldt": (154, None), "uselib": (134, None),
    "_sysctl": (156, None), "personality": (135, 92),
    # the machine
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "iopl": (172, None), "ioperm": (173, None), "sethostname": (170, 161),
    "setdomainname": (171, 162), "vhangup": (153, 58),
    # files: what Landlock does not ask about
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45), "file_getattr": (468, 468),
    "file_setattr": (469, 469),
    # memory and queues that are shared by name
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
}  # fmt: skip

# Not denied to a process that uses a GPU: drivers start programs, and keep memory in files without a name.
_DENIED_WITHOUT_GPU: Final[dict[str, tuple[int | None, int | None]]] = {
    "fork": (57, None), "vfork": (58, None), "memfd_create": (319, 279),
}  # fmt: skip
# Denied where Landlock does not know truncation (before ABI 3), beside O_TRUNC.
_TRUNCATING: Final[dict[str, tuple[int | None, int | None]]] = {"creat": (85, None), "openat2": (437, 437)}
_LANDLOCK_TRUNCATE_ABI: Final = 3

_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_*
_X32_BIT: Final = 0x40000000
OWN_PID: Final = 0x4D4C5044
"""Stands in the filter for the process's own id, which cage.py knows."""

_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _NOTIFY = 0x7FFF0000, 0x80000000, 0x7FC00000
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
_NEW_NAMESPACES: Final = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_CLONE_THREAD: Final = 0x00010000
_O_TRUNC: Final = 0x200
_MAP_ANONYMOUS, _MAP_TYPE, _MAP_SHARED, _MAP_SHARED_VALIDATE = 0x20, 0xF, 1, 3
# fcntl(): who gets which signal when a descriptor is ready. Landlock limits these signals since ABI 6.
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
# ioctl(): attributes of a file (immutable, append only).
_FS_IOC_SETFLAGS, _FS_IOC_FSSETXATTR = 0x40086602, 0x401C5820
_AF_UNIX, _STREAM, _SEQPACKET = 1, 1, 5

_Instruction = tuple[int, int, int, int]


class Connect(Enum):
    """What connect() does: fail, ask the guard (connect_broker.py), or work."""

    DENIED = "denied"
    ASKED = "asked"
    ALLOWED = "allowed"


def supported(machine: str | None = None) -> bool:
    """Whether there are system call numbers for this processor."""
    return (machine or platform.machine()) in _ARCHITECTURES


def program(connect: Connect, machine: str | None = None, *, gpu: bool = False, landlock: int = 0) -> bytes:
    """The filter as an array of struct sock_filter. Raises KeyError for an unknown processor.

    `gpu`: the process uses drivers of accelerators, which may start processes and share memory. `landlock`: the ABI
    that is enforced beside the filter (0: none).
    """
    column, arch = _ARCHITECTURES[machine or platform.machine()]
    truncates = landlock < _LANDLOCK_TRUNCATE_ABI
    refused = _DENIED | ({} if gpu else _DENIED_WITHOUT_GPU) | (_TRUNCATING if truncates else {})

    def number(x86_64: int, aarch64: int) -> int:
        return (x86_64, aarch64)[column]

    code: list[_Instruction] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), _returns(_KILL), (_LOAD, 0, 0, _NUMBER)]
    if not column:
        code += [(_AT_LEAST, 0, 1, _X32_BIT), _returns(_KILL)]
    for numbers in refused.values():
        if (denied := numbers[column]) is not None:
            code += [(_EQUAL, 0, 1, denied), _returns(_error(errno.EPERM))]
    for call in (number(62, 129), number(234, 131), number(129, 138), number(297, 240)):  # kill, tgkill, sigqueue
        code += _when(call, [(_LOAD, 0, 0, _argument(0)), (_EQUAL, 1, 0, OWN_PID), _denies(), _returns(_ALLOW)])
    # prlimit64: of the process itself, as 0
    code += _when(number(302, 261), [(_LOAD, 0, 0, _argument(0)), (_EQUAL, 1, 0, 0), _denies(), _returns(_ALLOW)])
    # clone: threads; processes, which could outlive the lease, only with a GPU; no namespaces. clone3 has its flags in
    # memory: the C library falls back to clone.
    threads = [] if gpu else [(_ANY_BIT, 1, 0, _CLONE_THREAD)]
    code += _when(
        number(56, 220),
        [(_LOAD, 0, 0, _argument(0)), (_ANY_BIT, len(threads), 1 - len(threads), _NEW_NAMESPACES), *threads, _denies(),
         _returns(_ALLOW)],
    )  # fmt: skip
    if not gpu:
        code += _when(number(9, 222), _anonymous_shared())
    if truncates:
        opening = [(number(257, 56), 2), *([] if column else [(2, 1)])]  # openat, open, and where their flags are
        for call, flags in opening:
            body = [(_LOAD, 0, 0, _argument(flags)), (_ANY_BIT, 0, 1, _O_TRUNC), _denies(), _returns(_ALLOW)]
            code += _when(call, body)
    code += _when(number(72, 25), _refuses_values(1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX)))
    code += _when(number(16, 29), _refuses_values(1, (_FS_IOC_SETFLAGS, _FS_IOC_FSSETXATTR)))
    # Priorities, schedulers and processors: of the calling thread only. setpriority has the process second.
    of_itself = [(number(call[0], call[1]), 0) for call in ((142, 118), (144, 119), (314, 274), (203, 122))]
    for call, place in (*of_itself, (number(141, 140), 1)):
        code += _when(call, [(_LOAD, 0, 0, _argument(place)), (_EQUAL, 1, 0, 0), _denies(), _returns(_ALLOW)])
    code += _when(435, [_returns(_error(errno.ENOSYS))])
    code += _sockets(number(41, 198)) + _sockets(number(53, 199))
    # sendto: only without an address; a datagram socket, which may have one, cannot be made.
    zero = [(_LOAD, 0, 0, _argument(4)), (_EQUAL, 0, 2, 0), (_LOAD, 0, 0, _argument(4) + 4), (_EQUAL, 1, 0, 0)]
    code += _when(number(44, 206), [*zero, _denies(), _returns(_ALLOW)])
    if connect is not Connect.ALLOWED:
        answer = _NOTIFY if connect is Connect.ASKED else _error(errno.EACCES)
        code += _when(number(42, 203), [_returns(answer)])
    code.append(_returns(_ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _when(call: int, body: list[_Instruction]) -> list[_Instruction]:
    """`body`, which returns, for the system call `call`; its number is loaded before and after."""
    return [(_EQUAL, 0, len(body), call), *body]


def _refuses_values(index: int, values: tuple[int, ...]) -> list[_Instruction]:
    """Deny a call if an argument has one of these values."""
    tests = [(_EQUAL, len(values) - place - 1, 0, value) for place, value in enumerate(values[:-1])]
    last = (_EQUAL, 0, 1, values[-1])
    return [(_LOAD, 0, 0, _argument(index)), *tests, last, _denies(), _returns(_ALLOW)]


def _anonymous_shared() -> list[_Instruction]:
    """mmap(): deny memory without a file that is shared, which the limit of memory does not count."""
    return [
        (_LOAD, 0, 0, _argument(3)),
        (_ANY_BIT, 0, 4, _MAP_ANONYMOUS),
        (_AND, 0, 0, _MAP_TYPE),
        (_EQUAL, 1, 0, _MAP_SHARED),
        (_EQUAL, 0, 1, _MAP_SHARED_VALIDATE),
        _denies(),
        _returns(_ALLOW),
    ]


def _sockets(call: int) -> list[_Instruction]:
    """Unix sockets with connections only."""
    return _when(
        call,
        [
            (_LOAD, 0, 0, _argument(0)),
            (_EQUAL, 0, 4, _AF_UNIX),
            (_LOAD, 0, 0, _argument(1)),
            (_AND, 0, 0, 0xF),
            (_EQUAL, 2, 0, _STREAM),
            (_EQUAL, 1, 0, _SEQPACKET),
            _denies(),
            _returns(_ALLOW),
        ],
    )


def _argument(index: int) -> int:
    """The offset of the low half of an argument (both processors are little-endian)."""
    return 16 + 8 * index


def _returns(value: int) -> _Instruction:
    return (_RETURN, 0, 0, value)


def _denies() -> _Instruction:
    return _returns(_error(errno.EPERM))


def _error(number: int) -> int:
    return 0x00050000 | number
