"""The buffers that a llama-server allocates, from its log, and its resident memory after it has worked."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from .children import Child

TIMEOUT_S = 120.0
_BUFFER = re.compile(r": +(\S+) +(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")
MIB = 1 << 20


@dataclass
class Allocated:
    """MiB. `buffers` by what they are for ("model", "KV", "RS", "compute", "output"), `places` by where they lie.

    `loaded` and `worked`: the process's memory when it has loaded, and when it has computed a full batch in every slot;
    pages of files that it maps, and all other. `log`: all that it wrote.
    """

    buffers: dict[str, float] = field(default_factory=dict)
    places: dict[str, float] = field(default_factory=dict)
    loaded: tuple[float, float] = (0.0, 0.0)
    worked: tuple[float, float] = (0.0, 0.0)
    log: str = ""


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def measure(arguments: Sequence[str], scratch: Path, *, tokens: int = 0, slots: int = 1, path: str = "") -> Allocated:
    """Start `arguments` (a llama-server on the socket that stands behind --host) and look.

    `tokens`: so many are computed in each of `slots` before the second look at resident memory; by a POST to `path`,
    /completion or /embeddings.
    """
    address = Path(arguments[arguments.index("--host") + 1])
    with Child("llama-server", [*arguments, "--verbose"], scratch) as child:
        child.wait_for("answering engine", lambda: _ask(address, "/health", None) == 200, TIMEOUT_S, every=0.05)
        found = Allocated(loaded=_resident(child.process.pid))
        for _ in range(slots if tokens else 0):
            words: Any = [5 + number % 20 for number in range(tokens)]
            body = {"prompt": words, "n_predict": 1} if path == "/completion" else {"input": words}
            _ask(address, path, body)
        found.worked = _resident(child.process.pid)
        found.log = child.log.read_text(errors="replace")
    address.unlink(missing_ok=True)
    for place, what, size in _BUFFER.findall(found.log):
        found.buffers[what] = found.buffers.get(what, 0.0) + float(size)
        found.places[place] = found.places.get(place, 0.0) + float(size)
    return found


def _ask(address: Path, path: str, body: dict[str, Any] | None) -> int:
    connection = _Unix(address)
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _resident(pid: int) -> tuple[float, float]:
    """MiB of mapped files and of memory of its own, of the process that is resident."""
    facts = psutil.Process(pid).memory_info()
    shared = float(getattr(facts, "shared", 0))
    return shared / MIB, (facts.rss - shared) / MIB
