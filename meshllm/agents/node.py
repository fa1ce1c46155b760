"""The node that an agent uses: found on its port, or started for it as a client; and its models."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from meshllm.core.routing.agent_choice import AUTO, AgentModel
from meshllm.core.routing.model_names import ModelNames
from meshllm.errors import AmbiguousModel, EnvironmentFailure, NotRunning, PortTaken, UnknownModel
from meshllm.util.format import printable_message
from meshllm.wire.api.model_cards import read_model_cards

# As for the other commands that ask a node.
ANSWER_SECONDS = 5.0
MAX_ANSWER_BYTES = 16 << 20
POLL_SECONDS = 0.2
# A busy machine takes some seconds to load the program.
LISTEN_SECONDS = 60.0
# Joining a mesh behind a slow network, and a model that is being loaded there; the original waited as long.
MODEL_SECONDS = 120.0
# Once there are models, how long the wanted one may take to become known.
OTHER_MODELS_SECONDS = 10.0
# A node that was there before and knows no model will hardly find one.
IDLE_NODE_SECONDS = 10.0
# Bytes of the error that a node leaves behind.
MAX_ERROR_BYTES = 4096


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """A node: ports of its API and its console, and the token of the run. Of a node with another MESH_LLM_HOME only the
    port of the API is known: the console is 0. `key`: what its API asks for, empty if nothing."""

    port: int
    console: int = 0
    token: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """The URL of the API, without /v1."""
        return f"http://127.0.0.1:{self.port}"


class Listener(Enum):
    """What listens on a port."""

    NOTHING = "nothing"
    NODE = "a node of mesh-llm"
    OTHER = "another program"


def listener(port: int) -> Listener:
    """What listens on a port of this machine."""
    try:
        _, _, headers = get_answer(port, "/", {})
    except ConnectionRefusedError:
        return Listener.NOTHING
    except (OSError, http.client.HTTPException):
        return Listener.OTHER
    return Listener.NODE if headers.get("server", "") == "mesh-llm" else Listener.OTHER


def find_node(port: int | None, default: int, running: NodeAddress | None) -> NodeAddress | None:
    """The node to use: `running`, that of MESH_LLM_HOME, unless another `port` is asked for; else a node on the port.
    None if nothing listens there. Raises PortTaken, and NotRunning if this home has a node on another port."""
    if running is not None and port in (None, running.port):
        return running
    wanted = default if port is None else port
    match listener(wanted):
        case Listener.NODE:
            return NodeAddress(wanted)
        case Listener.OTHER:
            raise PortTaken(
                f"Port {wanted} is used by another program.", advice="Choose another with --port.", port=wanted
            )
        case Listener.NOTHING if running is not None:
            raise NotRunning(
                f"Nothing answers on port {wanted}; the node of this MESH_LLM_HOME answers on port {running.port}.",
                advice="Leave out --port to use that node, or stop it with 'mesh-llm stop'.",
            )
    return None


class StartedNode:
    """A client node that this process has started. It is attached by the pipe to the node's standard input, which ends
    with this process."""

    def __init__(self, program: Sequence[str], arguments: Sequence[str], env: Mapping[str, str], errors: Path) -> None:
        """`errors`: the file for what the node prints to standard error."""
        self._errors = errors
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                [*program, "--client", "--until-detached", *arguments],
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,  # Ctrl-C is for the agent
            )

    def wait_until_listening(self, running: Callable[[], NodeAddress | None]) -> NodeAddress:
        """Wait until `running` knows the node. Raises EnvironmentFailure if it ends or takes too long."""
        deadline = time.monotonic() + LISTEN_SECONDS
        while (node := running()) is None:
            if self._process.poll() is not None:
                raise EnvironmentFailure(f"The node could not be started: {self._last_words()}")
            if time.monotonic() > deadline:
                self.detach()
                raise EnvironmentFailure(
                    f"The node did not answer within {LISTEN_SECONDS:.0f} s.", advice="See 'mesh-llm logs'."
                )
            time.sleep(POLL_SECONDS)
        return node

    def detach(self) -> None:
        """Let go of the node: it ends if no other launcher is attached."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        # Not waited for, and no zombie of ours: this process ends next.
        self._process.returncode = self._process.poll() or 0

    def _last_words(self) -> str:
        text = self._errors.read_bytes()[-MAX_ERROR_BYTES:].decode(errors="replace").strip()
        lines = [printable_message(line.removeprefix("mesh-llm: ").strip()) for line in text.splitlines()]
        return " ".join(lines) or f"it ended with status {self._process.returncode}"


def wait_for_models(
    node: NodeAddress, wanted: str | None, *, started: bool, say: Callable[[str], None]
) -> tuple[AgentModel, ...]:
    """The models of the mesh, once there is one, or the `wanted` one. `say` gets what is waited for.

    Raises UnknownModel, and EnvironmentFailure if there is none in time, or the node has no mesh.
    """
    begun = time.monotonic()
    first: float | None = None
    while True:
        status = _status(node)
        models = read_model_cards(_models(node), _template_tools(status), _speeds(status))
        now = time.monotonic()
        if models and (wanted is None or find_model(models, wanted) is not None):
            return models
        if models:
            first = now if first is None else first
            if not started or now > first + OTHER_MODELS_SECONDS:
                raise _unknown(wanted or "", models)
        _check_mesh(status)
        limit = MODEL_SECONDS if started else IDLE_NODE_SECONDS
        if now > begun + limit:
            raise EnvironmentFailure(
                f"No model is served in the mesh ({_progress(status)}).",
                advice="Serve one: mesh-llm --model NAME on a machine of the mesh. 'mesh-llm status' shows the mesh.",
            )
        say(_progress(status))
        time.sleep(POLL_SECONDS)


def find_model(models: Sequence[AgentModel], name: str) -> AgentModel | None:
    """The model that `name` means, by the rule of the API; `auto` is one that may be any of them. Raises AmbiguousModel
    if it means several."""
    names = ModelNames([model.name for model in models], {})
    if several := names.candidates(name):
        raise AmbiguousModel(
            f"{name!r} can mean {', '.join(several[:20])}.", advice="Use one of these names.", candidates=several[:20]
        )
    found = names.find(name)
    if found.casefold() == AUTO and models and not names.is_known(found):
        return AgentModel(AUTO, max(model.context for model in models), loaded=any(model.loaded for model in models))
    return next((model for model in models if model.name == found), None)


def _unknown(name: str, models: Sequence[AgentModel]) -> UnknownModel:
    import difflib

    names = [model.name for model in models]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    return UnknownModel(f"No model is called {name!r} in the mesh.{hint}", advice=f"Models: {', '.join(names[:20])}.")


def needs_key(node: NodeAddress) -> bool:
    """Whether the API asks this machine for a key. Raises NotRunning."""
    return _ask_models(node)[0] == 401


def _ask_models(node: NodeAddress) -> tuple[int, bytes]:
    headers = {"authorization": f"Bearer {node.key}"} if node.key else {}
    try:
        status, body, _ = get_answer(node.port, "/v1/models", headers)
    except (OSError, http.client.HTTPException) as error:
        raise NotRunning(f"The node on port {node.port} does not answer: {error or type(error).__name__}.") from error
    return status, body


def _models(node: NodeAddress) -> bytes:
    status, body = _ask_models(node)
    if status != 200:
        raise NotRunning(f"The node on port {node.port} gives no list of models (status {status}).")
    return body


def _status(node: NodeAddress) -> dict[str, Any]:
    """The status of the node, for its owner; empty if it cannot be had."""
    if not node.console:
        return {}
    try:
        status, body, _ = get_answer(node.console, "/api/status", {"x-mesh-llm-token": node.token})
        found = json.loads(body)
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    return found if status == 200 and isinstance(found, dict) else {}


def _template_tools(status: Mapping[str, Any]) -> dict[str, bool]:
    """What is known of the chat templates of this node's models."""
    models = [model for model in status.get("models", ()) if isinstance(model, dict)]
    engines = [(model.get("name"), model.get("engine")) for model in models]
    return {
        name: engine["tools"]
        for name, engine in engines
        if isinstance(name, str) and isinstance(engine, dict) and isinstance(engine.get("tools"), bool)
    }


def _speeds(status: Mapping[str, Any]) -> dict[str, float]:
    """Tokens per second of the last answers, by model: of its fastest host."""
    found: dict[str, float] = {}
    for load in status.get("load", ()):
        name, speed = (load.get("model"), load.get("tokens_per_second")) if isinstance(load, dict) else ("", None)
        if isinstance(name, str) and name and isinstance(speed, int | float) and 0 < speed < float("inf"):
            found[name] = max(float(speed), found.get(name, 0.0))
    return found


def _check_mesh(status: Mapping[str, Any]) -> None:
    """Raise EnvironmentFailure for a node that has no mesh and no models: it will find none."""
    reason = str(status.get("mesh_reason") or "")
    mesh = status.get("mesh")
    alone = (mesh is None or mesh.get("phase") == "alone") and not status.get("models")
    if alone and reason and not reason.endswith("not started yet"):
        raise EnvironmentFailure(
            f"The node has no mesh: {printable_message(reason)}",
            advice="Join one (--join INVITE; 'mesh-llm invite' prints one there), or serve a model yourself: "
            "mesh-llm --model NAME.",
        )


def _progress(status: Mapping[str, Any]) -> str:
    """What the node does, for people."""
    mesh = status.get("mesh")
    if not isinstance(mesh, dict):
        return "waiting for the node"
    peers = [peer for peer in mesh.get("peers", ()) if isinstance(peer, dict)]
    alive = sum(peer.get("status") == "alive" for peer in peers)
    if alive:
        return f"in the mesh with {alive} other node{'s' if alive != 1 else ''}, waiting for a model"
    reason = printable_message(str(mesh.get("reason") or ""))
    return f"joining the mesh{': ' + reason if reason else ''}"


def get_answer(port: int, path: str, headers: Mapping[str, str]) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Status, body and headers of what a server of this machine answers. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES), response.headers
    finally:
        connection.close()
