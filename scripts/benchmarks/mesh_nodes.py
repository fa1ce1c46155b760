"""Nodes of a mesh on this machine, for `scripts/bench mesh`: daemons, each with its own home and ports."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .children import Child, free_port, get_json, owner_headers
from .native import BenchError
from .targets import MESH_LLM

# No lanes: what goes to peers goes over QUIC alone, as where TCP does not get through.
NO_LANES = {"MESH_LLM_LANES": "off"}
# Only for what is broken.
TIMEOUT_S = 60.0
_numbers = itertools.count()


@dataclass(frozen=True)
class Node:
    """A running daemon; `port` of its API."""

    name: str
    child: Child
    port: int
    console: int
    home: Path

    def status(self) -> dict[str, Any]:
        """/api/status. Raises OSError while it does not answer."""
        return dict(get_json(self.console, "/api/status", owner_headers(self.home)))

    def peers(self) -> list[dict[str, Any]]:
        """What its status says of the others. Raises OSError while it does not answer."""
        mesh = self.status()["mesh"]
        return list(mesh["peers"]) if mesh else []

    def ways(self) -> set[str]:
        """How its requests to others travel: "lane", "quic"."""
        return {peer["transport"] for peer in self.peers() if peer["transport"]}

    def serves(self, model: str) -> bool:
        """Whether it lists `model`. Raises OSError while it does not answer."""
        listed = {str(one["id"]) for one in get_json(self.port, "/v1/models")["data"]}
        return model in listed

    def wait_for_model(self, model: str, seconds: float = TIMEOUT_S) -> None:
        """Until it lists `model`, its own or another node's."""
        self.child.wait_for(f"{model} in /v1/models", lambda: self.serves(model), seconds)

    def wait_for_hosts(self, model: str, count: int) -> None:
        """Until so many live peers serve `model`."""

        def there() -> bool:
            hosts = [peer for peer in self.peers() if model in peer["models"] and peer["status"] == "alive"]
            return len(hosts) >= count

        self.child.wait_for(f"{count} peers with {model}", there, TIMEOUT_S)

    def kill(self) -> None:
        """`kill -9`."""
        os.kill(self.child.process.pid, signal.SIGKILL)


class Nodes:
    """Starts them. All that is started ends with `stack`."""

    def __init__(self, stack: ExitStack, scratch: Path) -> None:
        self.stack = stack
        self.scratch = scratch

    def start(
        self,
        name: str,
        *options: str,
        stack: ExitStack | None = None,
        home: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Node:
        """A daemon, not yet listening. Without `--model` it finds no model on this disk, and so serves none."""
        port, console = free_port(), free_port()
        home = home or self.scratch / f"{name}-{next(_numbers)}"
        command = [str(MESH_LLM), *options, "--port", str(port), "--console", str(console), "--node-name", name]
        around = {"MESH_LLM_HOME": str(home), **(env or {})}
        if "--model" not in options and "MESH_LLM_MODELS" not in around:
            around["MESH_LLM_MODELS"] = str(self.scratch / "no-models")
        child = (stack or self.stack).enter_context(Child(name, command, self.scratch, around))
        return Node(name, child, port, console, home)

    def invite(self, node: Node) -> Path:
        """A file with a fresh invite of that node."""
        command = [str(MESH_LLM), "invite", "--node-port", str(node.console)]
        around = {**os.environ, "MESH_LLM_HOME": str(node.home)}

        def ask() -> str:
            result = subprocess.run(command, capture_output=True, text=True, check=False, env=around)
            return result.stdout.strip() if result.returncode == 0 else ""

        file = self.scratch / f"invite-{next(_numbers)}"
        file.write_text(node.child.wait_for("invite", ask, every=0.1))
        return file


def first_word(port: int, model: str, deadline: float) -> float:
    """Ask for a stream as soon as the port listens; the time (monotonic) at which the first word of it came.

    Raises BenchError when there is none until `deadline`, or the answer is an error.
    """
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": True}
    headers = {"content-type": "application/json"}
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        with closing(connection):
            try:
                connection.connect()
            except ConnectionRefusedError:
                time.sleep(0.002)
                continue
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            for line in response:
                if line.startswith(b"data: {") and _speaks(json.loads(line[6:])):
                    return time.monotonic()
            raise BenchError(f"the first request to the joiner ended with status {response.status} and no word")
    raise BenchError("the joiner did not listen in time")


def _speaks(event: dict[str, Any]) -> bool:
    if "error" in event:
        raise BenchError(f"the first request to the joiner failed: {event['error'].get('message')}")
    return any(choice["delta"].get("content") for choice in event.get("choices", ()))
