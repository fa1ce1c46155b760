"""Which layers of the sandbox this system enforces, found by trying them in a child process. Blocks for about 50 ms."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from meshllm.engine.sandbox import cage_probe, landlock, macos, seccomp
from meshllm.engine.sandbox.cage import CORE_BYTES
from meshllm.engine.sandbox.policy import SandboxLayers
from meshllm.engine.sandbox.seccomp import Connect

SECONDS: Final = 20.0
_NO_LANDLOCK: Final = (
    (errno.ENOSYS, "the kernel has no Landlock (Linux 5.13 or newer has it), or a container blocks it"),
    (errno.EOPNOTSUPP, "Landlock is switched off: add `landlock` to the kernel's `lsm=` parameter"),
    (errno.EPERM, "a container's seccomp profile blocks Landlock: update the container engine, or its profile"),
)


def available() -> SandboxLayers:
    """What works here, tried out. Never raises: what cannot be tried does not work."""
    if sys.platform == "darwin":
        return _macos()
    if not sys.platform.startswith("linux"):
        return SandboxLayers(problems=(f"there is no sandbox for {sys.platform}.",))
    try:
        reply = _ask()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return SandboxLayers(problems=(f"the check of the sandbox failed: {error}.",))
    problems = []
    if reply["landlock"]:
        problems.append(f"Files cannot be confined: {_landlock_problem(reply['landlock'])}.")
    if reply["filter"]:
        problems.append(f"The network cannot be confined: seccomp: {reply['filter']}.")
    elif reply["broker"]:
        problems.append(f"A split's engine may connect to any Unix socket: {reply['broker']}.")
    return SandboxLayers(
        landlock=0 if reply["landlock"] else int(reply["abi"]),
        filter=not reply["filter"],
        broker=not reply["broker"],
        problems=tuple(problems),
    )


def _ask() -> dict[str, Any]:
    plan: dict[str, Any] = {
        "linux": True, "umask": 0o077, "limits": {"RLIMIT_CORE": CORE_BYTES}, "landlock": [], "rules": [],
        "filter": "", "own_pid": seccomp.OWN_PID, "asks": False,
    }  # fmt: skip
    plans = {"landlock": {**plan, "landlock": [landlock.handled_files(1), 0, 0]}}
    if seccomp.supported():
        plans["filter"] = {**plan, "filter": seccomp.program(Connect.DENIED).hex()}
        plans["broker"] = {**plan, "filter": seccomp.program(Connect.ASKED).hex(), "asks": True}
    command = [sys.executable, "-I", "-S", cage_probe.__file__, json.dumps(plans)]
    environment = {"PATH": os.defpath, **({"TMPDIR": os.environ["TMPDIR"]} if "TMPDIR" in os.environ else {})}
    done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"it ended with {done.returncode}"]
        raise OSError(lines[-1][:300])
    reply = json.loads(done.stdout)
    if not isinstance(reply, dict):
        raise ValueError("not a reply")
    return reply


def _landlock_problem(reason: str) -> str:
    for number, text in _NO_LANDLOCK:
        if os.strerror(number) in reason:
            return text
    return reason


def _macos() -> SandboxLayers:
    program = Path(macos.PROGRAM)
    if not program.exists():
        return SandboxLayers(problems=(f"{program} is missing.",))
    try:
        done = subprocess.run(
            [macos.PROGRAM, "-p", "(version 1)(allow default)(deny network*)", "/usr/bin/true"],
            capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return SandboxLayers(problems=(f"{program} does not work: {error}.",))
    if done.returncode:
        return SandboxLayers(problems=(f"{program} does not work here (status {done.returncode}).",))
    return SandboxLayers(profile=True)
