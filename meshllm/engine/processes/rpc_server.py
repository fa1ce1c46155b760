"""One ggml-rpc-server: the process of a split's worker. Command line, environment and readiness.

It listens on Unix sockets in a folder with mode 0700. The files it may read and the peers it may push to come from its
environment, which this daemon writes; the host cannot change them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshllm.engine.processes.child import ChildSpec
from meshllm.engine.processes.llama_server import SPIN_ROUNDS, SPIN_VARIABLE
from meshllm.engine.sandbox import environment as sandbox_environment
from meshllm.engine.sandbox.policy import NO_SANDBOX, Sandboxing

# Environment variables read by our patches (llama.cpp/README.md).
FILES_VARIABLE, PEERS_VARIABLE, PUSH_VARIABLE = "GGML_RPC_FILES", "GGML_RPC_PEERS", "GGML_RPC_PUSH"
# The line that the patched server prints once its sockets exist.
LISTENING_LINE = "Listening"


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A model file for the list in FILES_VARIABLE: verified sha256 in hexadecimal, size in bytes, path."""

    sha256: str
    size: int
    path: Path


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What a worker's rpc-server runs with.

    `socket`: for the host's commands. `pushes`: for tensors from the previous worker. `files`: the list of model files.
    `peers`: sockets of other workers by name. `devices`: accelerators in the order of their layers (empty: CPU only).
    `threads`: CPU threads. `models`: the model files on that list. `memory`: the most private memory that the process
    may take, in bytes (None: not known).
    """

    name: str
    socket: Path
    pushes: Path
    files: Path
    peers: Mapping[str, Path]
    devices: tuple[str, ...]
    threads: int
    models: tuple[Path, ...] = ()
    memory: int | None = None


def write_files(path: Path, files: Sequence[SharedFile]) -> None:
    """Write the list that FILES_VARIABLE names: one line per file, mode 0600."""
    lines = [f"{file.sha256} {file.size} {file.path}\n" for file in files if "\n" not in str(file.path)]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as out:
        out.writelines(lines)


def peers_value(peers: Mapping[str, Path]) -> str:
    """The value of PEERS_VARIABLE: NAME=SOCKET, comma-separated."""
    return ",".join(f"{name}={path}" for name, path in peers.items())


def child_spec(program: Path, plan: WorkerPlan, log: Path, sandboxing: Sandboxing = NO_SANDBOX) -> ChildSpec:
    """The child: ready once its sockets exist, which are in a folder of its own. It serves one host at a time."""

    async def is_listening() -> bool:
        return plan.socket.is_socket() and plan.pushes.is_socket()

    def on_line(line: str) -> bool:
        return line == LISTENING_LINE

    sandbox = sandboxing.apply(
        sandboxing.policy(
            program,
            reads=(plan.files, *plan.models),
            sockets=plan.socket.parent,
            connects=tuple(plan.peers.values()),
            accelerators=bool(plan.devices),
            memory=plan.memory,
            kind="rpc-server",
        )
    )
    environment = sandbox_environment.filtered() | sandbox.policy.variables
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
        probe=is_listening,
        on_line=on_line,
        sandbox=sandbox,
    )
