"""Daemons that serve a split model, for `scripts/bench split`: on this machine, or on hosts of a lab with a delay.

Only the public interfaces are used (command line, API, status). All nodes share a folder with the model's file and
cannot download: weights that a node does not have come from the host.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any, Protocol

import psutil

from .children import Child, free_port, owner_headers
from .native import BenchError
from .targets import MESH_LLM

TIMEOUT_S = 120.0
CONTEXT = 2048
# How exactly loading is timed; asking takes a daemon about a millisecond.
LOOK_S = 0.005
# A stream that says nothing for so long hangs: the gateway promises a word at least every six seconds.
HANG_S = 30.0
# One thread for each engine, so that two cores can play several machines.
COMMON = ("--ctx-size", str(CONTEXT), "--threads", "1")
# No hub and no packages.
NOTHING_ELSE = {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nowhere"}
_numbers = itertools.count()


class Place(Protocol):
    """A computer: `prefix` are the words before a command that have it run there."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command."""

    def socket(self) -> socket.socket:
        """A TCP socket of it."""


class Here:
    """This machine."""

    name = "here"
    prefix: tuple[str, ...] = ()

    def socket(self) -> socket.socket:
        """A TCP socket of it."""
        return socket.socket()


@dataclass
class Node:
    """A running daemon; `port` of its API, `options` with which it was started."""

    name: str
    place: Place
    child: Child
    port: int
    console: int
    home: Path
    options: tuple[str, ...]

    def connect(self, port: int, seconds: float = TIMEOUT_S) -> http.client.HTTPConnection:
        """To a port of its machine's loopback. Raises OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
        connection.sock = self.place.socket()
        try:
            connection.sock.settimeout(seconds)
            connection.sock.connect(("127.0.0.1", port))
        except OSError:
            connection.close()
            raise
        return connection

    def status(self) -> dict[str, Any]:
        """/api/status. Raises OSError and ValueError while it does not answer."""
        with closing(self.connect(self.console, 5.0)) as connection:
            connection.request("GET", "/api/status", headers=owner_headers(self.home))
            return dict(json.load(connection.getresponse()))

    def wait_for(self, what: str, fact: Callable[[dict[str, Any]], Any]) -> Any:
        """What `fact` says of its status, once that is true."""
        return self.child.wait_for(what, lambda: fact(self.status()), TIMEOUT_S, every=0.1)

    def node_id(self) -> str:
        """Its name in the mesh."""
        return str(self.wait_for("mesh", lambda status: (status["mesh"] or {}).get("node")))

    def complete(self, prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
        """The engine's `timings` of a greedy completion of exactly `tokens` tokens, nothing cached; and `text`.

        Raises BenchError for an answer that is an error.
        """
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        with closing(self.connect(self.port)) as connection:
            text = json.dumps({**body, "cache_prompt": False, **more})
            connection.request("POST", "/v1/completions", text, {"content-type": "application/json"})
            told = json.load(connection.getresponse())
        if "timings" not in told:
            raise BenchError(f"{self.name} answered {str(told)[:300]}")
        return {**told["timings"], "text": told["choices"][0]["text"]}

    def stream(self, prompt: str, tokens: int) -> Iterator[dict[str, Any]]:
        """The events of a streamed chat answer. Raises TimeoutError when nothing comes for HANG_S, OSError."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
        with closing(self.connect(self.port, HANG_S)) as connection:
            text = json.dumps({**body, "stream": True, "temperature": 0, "ignore_eos": True})
            connection.request("POST", "/v1/chat/completions", text, {"content-type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                yield dict(json.load(response))
                return
            for line in response:
                if line.startswith(b"data: [DONE]"):
                    yield {"done": True}
                elif line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    @property
    def model(self) -> str:
        """What it was asked to serve."""
        return Path(self.options[self.options.index("--model") + 1]).stem

    def split(self) -> dict[str, Any] | None:
        """The split that it serves now; None while there is none."""
        status = self.status()
        phases = [model["phase"] for model in status["models"]]
        return next((dict(s) for s in status["splits"] if s["committed"] and phases == ["serving"]), None)

    def wait_until_split(self) -> dict[str, Any]:
        """The split, once it serves one."""
        return dict(self.child.wait_for("a split that is served", self.split, TIMEOUT_S, every=0.05))

    def load_seconds(self) -> float:
        """From when the engine began to load until it served, for a node that has just been started.

        Asked for again and again: of what changes, events tell only every tenth of a second.
        """
        began: list[float] = []

        def served() -> float:
            phase = next((model["phase"] for model in self.status()["models"]), "")
            if phase == "loading" and not began:
                began.append(time.monotonic())
            return time.monotonic() - began[0] if phase == "serving" and began else 0.0

        return float(self.child.wait_for("a model that is served", served, TIMEOUT_S, every=LOOK_S))

    def engines(self, program: str) -> list[psutil.Process]:
        """The processes of that name that it runs."""
        with suppress(psutil.NoSuchProcess):
            return [one for one in self.child.process.children(recursive=True) if one.name() == program]
        return []


@dataclass
class Daemons:
    """Starts them; they end with `stack`. `model` is the file that all of them have."""

    stack: ExitStack
    scratch: Path
    model: Path
    _folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self._folder = self.scratch / "models"
        self._folder.mkdir()
        (self._folder / self.model.name).symlink_to(self.model.resolve())

    def start(
        self,
        place: Place,
        name: str,
        *options: str,
        join: Node | None = None,
        home: Path | None = None,
        stack: ExitStack | None = None,
    ) -> Node:
        """A daemon that may not be listening yet; with `home` that of an earlier one, whose mesh it knows."""
        home = home or self.scratch / f"{next(_numbers)}"
        words = (*options, "--join", f"@{self._invite(join)}") if join is not None else options
        port, console = free_port(), free_port()
        command = [*place.prefix, str(MESH_LLM), *words, "--port", str(port), "--console", str(console)]
        around = {
            **NOTHING_ELSE,
            "MESH_LLM_HOME": str(home),
            "MESH_LLM_MODELS": str(self._folder),
            "HF_HOME": str(self.scratch / "no-hub-cache"),
        }
        child = (stack or self.stack).enter_context(Child(name, [*command, "--node-name", name], self.scratch, around))
        return Node(name, place, child, port, console, home, options)

    def host(self, place: Place, name: str, *options: str, join: Node, stack: ExitStack | None = None) -> Node:
        """One that is asked to serve the model in parts."""
        words = ("--model", str(self._folder / self.model.name), "--split", *COMMON, *options)
        return self.start(place, name, *words, join=join, stack=stack)

    def alone(self, place: Place, name: str, *options: str, stack: ExitStack | None = None) -> Node:
        """A node that serves the whole model."""
        words = ("--model", str(self._folder / self.model.name), *COMMON, *options)
        return self.start(place, name, *words, stack=stack)

    def worker(self, place: Place, name: str, *options: str, join: Node | None = None) -> Node:
        """A worker in its mesh."""
        node = self.start(place, name, "--worker", "--threads", "1", *options, join=join)
        node.wait_for("mesh", lambda status: status["mesh"] is not None and (join is None or _joined(status)))
        return node

    def _invite(self, node: Node) -> Path:
        command = [*node.place.prefix, str(MESH_LLM), "invite", "--node-port", str(node.console)]
        around = {**os.environ, "MESH_LLM_HOME": str(node.home)}

        def ask() -> str:
            result = subprocess.run(command, capture_output=True, text=True, check=False, env=around)
            return result.stdout.strip() if result.returncode == 0 else ""

        file = self.scratch / f"invite-{next(_numbers)}"
        file.write_text(node.child.wait_for("invite", ask, TIMEOUT_S, every=0.1))
        return file


def _joined(status: dict[str, Any]) -> bool:
    return bool(status["mesh"]["phase"] == "joined")


def round_trip_ms(one: Place, other: Place, address: str, times: int = 30) -> float:
    """The median time for a byte from one machine to another and back, over TCP."""
    with other.socket() as listener:
        listener.bind((address, 0))
        listener.listen()

        def echo() -> None:
            taken, _ = listener.accept()
            with taken:
                while data := taken.recv(16):
                    taken.sendall(data)

        thread = Thread(target=echo)
        thread.start()
        took = []
        with one.socket() as caller:
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            caller.connect(listener.getsockname())
            for _ in range(times):
                began = time.monotonic()
                caller.sendall(b".")
                caller.recv(16)
                took.append((time.monotonic() - began) * 1000)
        thread.join()
    return median(took)
