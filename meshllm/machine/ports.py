"""Whether a TCP port of this computer is free, and which program uses it otherwise (if the system allows to see it)."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True, slots=True)
class PortFact:
    """`free`: this user can listen on the port now. `permitted`: this user may listen on it at all. `holder_pid`,
    `holder`: the program that listens on it, if known. `ours`: that program is mesh-llm."""

    port: int
    free: bool
    permitted: bool = True
    holder_pid: int | None = None
    holder: str = ""
    ours: bool = False


def probe(port: int, host: str = "127.0.0.1") -> PortFact:
    """Listen on the port for a moment, and find the program that uses it if that fails."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
        if sys.platform != "win32":
            attempt.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as servers do: connections in TIME_WAIT do not matter
        try:
            attempt.bind((host, port))
            attempt.listen(1)
        except PermissionError:
            return PortFact(port, free=False, permitted=False)
        except (OSError, OverflowError):
            return holder(port)
    return PortFact(port, free=True)


def next_free(port: int) -> int:
    """The first port after `port` that this user can listen on; 0 (any free one) if it is not near."""
    return next((near for near in range(port + 1, min(port + 21, 65536)) if probe(near).free), 0)


def holder_text(fact: PortFact) -> str:
    """The program that uses a port, as the end of "in use by"."""
    if fact.ours:
        return f"the mesh-llm of another home (process {fact.holder_pid})"
    return f"{fact.holder} (process {fact.holder_pid})" if fact.holder_pid else "another program"


def holder(port: int, kind: str = "tcp") -> PortFact:
    """The program that uses a port; `kind`: "tcp" or "udp"."""
    import psutil

    try:
        for connection in psutil.net_connections(kind=kind):
            if not connection.laddr or connection.laddr.port != port:
                continue
            if kind == "tcp" and connection.status != psutil.CONN_LISTEN:
                continue
            if connection.pid is None:
                break
            process = psutil.Process(connection.pid)
            # The program's name, because every path of a checkout contains mesh-llm.
            ours = any(
                PurePath(word).name == "mesh-llm" or word.startswith("meshllm.") for word in process.cmdline()[:4]
            )
            return PortFact(port, free=False, holder_pid=connection.pid, holder=process.name(), ours=ours)
    except (psutil.Error, OSError):
        pass
    return PortFact(port, free=False)
