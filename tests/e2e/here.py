"""Daemons that are all on this machine, with homes and ports of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import openai

from tests.daemons import OPEN_WAIT_SECONDS, PROGRAM
from tests.netlab.lab import Host
from tests.netlab.nodes import FakeModel, Node, Status, _end, serving


class Here:
    """This machine, in the place of a lab's host."""

    name = "here"
    prefix: tuple[str, ...] = ()

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Of this machine's network."""
        return socket.socket(socket.AF_INET, kind)

    def run(self, command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, **options)


HERE = cast(Host, Here())


class Site:
    """Starts nodes and models below `folder`, and ends them all."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        (folder / "models").mkdir(parents=True)
        # Nothing that lies on this machine is to be served by a node that was not asked to.
        self.environment = {"MESH_LLM_MODELS": str(folder / "models")}

    def model(self, name: str, says: str) -> FakeModel:
        """A model server that answers with the word `says`."""
        return self._stack.enter_context(serving(FakeModel(HERE, name, says)))

    def node(
        self, home: str, *arguments: str, join: Node | None = None, environment: dict[str, str] | None = None
    ) -> Node:
        """A node that listens; into the mesh of `join`, with an invite from a file."""
        words = list(arguments)
        if join is not None:
            file = self.folder / f"invite for {home}"
            file.write_text(join.invite())
            words += ["--join", f"@{file}"]
        return self.adopt(Node(HERE, self.folder / home, *words, environment=environment or self.environment))

    def adopt(self, node: Node, *, at_once: bool = False) -> Node:
        """`node` listens and, unless it is to be asked `at_once`, knows its mesh; it is ended with the others."""
        self._stack.callback(_end, node)
        node.wait_until_listening()
        if not at_once:
            node.until(lambda status: status["mesh"] is not None, "the mesh to be looked for")
        return node

    def run(
        self, home: str, *arguments: str, stdin: str = "", environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`mesh-llm` to its end."""
        chosen = self.environment if environment is None else environment
        environment = {**os.environ, **chosen, "MESH_LLM_HOME": str(self.folder / home)}
        return subprocess.run(
            [str(PROGRAM), *arguments],
            env=environment, input=stdin, capture_output=True, text=True, timeout=OPEN_WAIT_SECONDS,
        )  # fmt: skip

    def kept(self, home: str) -> dict[str, Any]:
        """What a node keeps of its mesh."""
        return cast(dict[str, Any], json.loads((self.folder / home / "mesh.json").read_text()))


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """A place for nodes, all of them ended afterwards."""
    with ExitStack() as stack:
        yield Site(folder, stack)
    while _clients:
        _clients.popitem()[1].close()


# Of the nodes of one site, by the address of their API; closed with it.
_clients: dict[str, openai.OpenAI] = {}


def client(node: Node) -> openai.OpenAI:
    """OpenAI's client, which tries nothing twice."""
    found = _clients.get(node.base_url)
    if found is None:
        found = openai.OpenAI(base_url=node.base_url, api_key="none", max_retries=0, timeout=OPEN_WAIT_SECONDS)
        _clients[node.base_url] = found
    return found


def joined(status: Status) -> bool:
    """Whether the node has found its mesh."""
    return status["mesh"] is not None and status["mesh"]["phase"] == "joined"


def serves(model: str) -> Any:
    """Whether a status has a living peer that serves `model`."""
    return lambda status: any(
        model in peer["models"] and peer["status"] == "alive" for peer in (status["mesh"] or {"peers": []})["peers"]
    )
