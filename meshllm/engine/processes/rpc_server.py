"""One ggml-rpc-server: a worker's part of a split. Its command line, its environment, and when it is ready.

Law: it listens on Unix sockets in a folder that only this user can enter. Which files it may read, and where it may
push to, stands in its environment, written by this daemon: nothing of that ever comes from the other side.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshllm.engine.processes.child import ChildSpec
from meshllm.engine.processes.llama_server import INHERITED, SPIN_ROUNDS, SPIN_VARIABLE

# What our patches of the engine read (llama.cpp/patches).
FILES_VARIABLE, PEERS_VARIABLE, PUSH_VARIABLE = "GGML_RPC_FILES", "GGML_RPC_PEERS", "GGML_RPC_PUSH"
# And what they have it print once its sockets are there.
LISTENS = "Listening"


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file that host and worker both may have: its sha256 in hexadecimal (verified), its size, and where it is."""

    sha256: str
    size: int
    path: Path


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """`socket`: for the host's commands; `pushes`: for tensors of the worker before; `peers`: where others are reached,
    by name; `devices`: the accelerators to use, in the order of their layers (none: the processor); `threads` of the
    processor."""

    name: str
    socket: Path
    pushes: Path
    files: Path
    peers: Mapping[str, Path]
    devices: tuple[str, ...]
    threads: int


def write_files(path: Path, files: Sequence[SharedFile]) -> None:
    """The list that FILES_VARIABLE names: one file a line."""
    lines = [f"{file.sha256} {file.size} {file.path}\n" for file in files if "\n" not in str(file.path)]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as out:
        out.writelines(lines)


def peers_value(peers: Mapping[str, Path]) -> str:
    """What PEERS_VARIABLE says: names of servers, and the sockets by which they are reached."""
    return ",".join(f"{name}={path}" for name, path in peers.items())


def child_spec(program: Path, plan: WorkerPlan, log: Path) -> ChildSpec:
    """The child. It is ready when its sockets are there, and then serves one host at a time."""

    async def listens() -> bool:
        return plan.socket.is_socket() and plan.pushes.is_socket()

    def on_line(line: str) -> bool:
        return line == LISTENS

    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment.setdefault(SPIN_VARIABLE, SPIN_ROUNDS)
    environment |= {
        FILES_VARIABLE: str(plan.files),
        PEERS_VARIABLE: peers_value(plan.peers),
        PUSH_VARIABLE: str(plan.pushes),
        "GGML_NO_BACKTRACE": "1",
    }
    argv = [str(program), "--host", str(plan.socket), "--threads", str(plan.threads)]
    if plan.devices:
        argv += ["--device", ",".join(plan.devices)]
    return ChildSpec(
        name=f"rpc-server for {plan.name}",
        argv=tuple(argv),
        environment=environment,
        log=log,
        probe=listens,
        on_line=on_line,
    )
