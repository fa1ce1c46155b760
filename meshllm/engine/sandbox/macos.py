"""The profile of macOS's sandbox-exec for a policy. Pure but for symbolic links, which the profile must not contain.

Not run by the tests, which run on Linux: they check the text. Everything is denied but what stands in the profile;
Metal needs the services and drivers named here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from meshllm.engine.sandbox.policy import SandboxPolicy

PROGRAM: Final = "/usr/bin/sandbox-exec"
_LIBRARIES: Final = (
    "/usr/lib", "/usr/share", "/usr/local/lib", "/usr/local/share", "/opt/homebrew", "/System", "/Library/Apple",
    "/Library/Frameworks", "/Library/GPUBundles", "/private/var/db/dyld", "/private/var/db/timezone",
    "/private/etc/localtime",
)  # fmt: skip
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/dtracehelper")
_GPU_SERVICES: Final = ("com.apple.MTLCompilerService", "com.apple.CARenderServer", "com.apple.gpumemd.source")
_GPU_CLIENTS: Final = (
    "AGXDeviceUserClient", "AGXAccelerator", "IOAccelDevice2", "IOAccelContext2", "IOAccelSharedUserClient2",
    "IOSurfaceRootUserClient", "RootDomainUserClient",
)  # fmt: skip


def command(policy: SandboxPolicy, argv: tuple[str, ...]) -> tuple[str, ...]:
    """`argv` under sandbox-exec."""
    return (PROGRAM, "-p", profile(policy), *argv)


def profile(policy: SandboxPolicy) -> str:
    """The profile in the sandbox profile language."""
    program = _real(policy.program)
    folders = [*map(Path, _LIBRARIES), program.parent]
    readable = [_real(path) for path in policy.reads]
    lines = [
        "(version 1)",
        "(deny default)",
        "(allow process-exec* " + _literals([policy.program, program]) + ")",
        "(allow signal (target self))",
        "(allow sysctl-read)",
        "(allow process-info* (target self))",
        "(allow file-read-metadata)",
        '(allow file-read-data (literal "/"))',
        "(allow file-read* " + _subpaths([*folders, *readable]) + ")",
        "(allow file-map-executable " + _subpaths(folders) + ")",
        "(allow file-read* file-write-data " + _literals(map(Path, _DEVICES)) + ")",
    ]
    if policy.sockets is not None or policy.connects:
        lines.append("(allow system-socket (socket-domain AF_UNIX))")
    if policy.sockets is not None:
        place = _subpaths([_real(policy.sockets)])
        lines += [
            f"(allow file-read* file-write-create file-write-unlink {place})",
            f"(allow network-bind network-inbound (local unix-socket {place}))",
        ]
    if policy.connects:
        allowed = " ".join(f"(remote unix-socket (path-literal {_text(_real(path))}))" for path in policy.connects)
        lines.append(f"(allow network-outbound {allowed})")
    for folder in (policy.scratch, policy.saves):
        if folder is not None:
            lines.append("(allow file-read* file-write* " + _subpaths([_real(folder)]) + ")")
    if policy.accelerators:
        services = " ".join(f'(global-name "{name}")' for name in _GPU_SERVICES)
        clients = " ".join(f'(iokit-user-client-class "{name}")' for name in _GPU_CLIENTS)
        lines += [f"(allow mach-lookup {services})", f"(allow iokit-open {clients})", "(allow iokit-get-properties)"]
    return "\n".join(lines) + "\n"


def _subpaths(paths: Iterable[Path]) -> str:
    return " ".join(f"(subpath {_text(path)})" for path in paths)


def _literals(paths: Iterable[Path]) -> str:
    return " ".join(f"(literal {_text(path)})" for path in paths)


def _real(path: Path) -> Path:
    """The path without symbolic links (/tmp is one): the profile is matched against real paths."""
    return Path(os.path.realpath(path))


def _text(path: Path) -> str:
    """A string literal of the profile language."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    if any(ord(letter) < 0x20 for letter in escaped):
        raise ValueError(f"{path!r} has control characters: the sandbox profile cannot name it")
    return f'"{escaped}"'
