"""Whether a TCP port of this computer can be listened on, and who holds it otherwise.

Law: nothing is connected to and nothing stays open; who holds a port is told only where the system lets us see it.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True, slots=True)
class PortFact:
    """`free`: we could listen on it now. `permitted`: the system lets us. Otherwise who holds it, as far as is known;
    `ours` where that is a mesh-llm."""

    port: int
    free: bool
    permitted: bool = True
    holder_pid: int | None = None
    holder: str = ""
    ours: bool = False


def probe(port: int, host: str = "127.0.0.1") -> PortFact:
    """Try to listen on the port for a moment. `ours` says that a mesh-llm holds it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
        if sys.platform != "win32":
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no obstacle
        try:
            attempt.bind((host, port))
            attempt.listen(1)
        except PermissionError:
            return PortFact(port, free=False, permitted=False)
        except (OSError, OverflowError):
            return _held(port)
    return PortFact(port, free=True)


def _held(port: int) -> PortFact:
    import psutil

    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != port:
                continue
            if connection.pid is None:
                break
            process = psutil.Process(connection.pid)
            # The program's name, not just any path that has it: everything in a checkout has.
            ours = any(
                PurePath(word).name == "mesh-llm" or word.startswith("meshllm.") for word in process.cmdline()[:4]
            )
            return PortFact(port, free=False, holder_pid=connection.pid, holder=process.name(), ours=ours)
    except (psutil.Error, OSError):
        pass
    return PortFact(port, free=False)
