"""The options of a daemon: made by `cli` from the command line, read by `daemon`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line is read before anything that takes long to import is needed
    from meshllm.wire.mesh.invite import Invite

DEFAULT_PORT = 9337
DEFAULT_CONSOLE = 3131
# Clients cost a node a link and a table each; a machine that serves models has other work.
DEFAULT_MAX_CLIENTS = 64
# The largest model that a machine with 24 GB for models serves, or several small ones; a small part of a disk.
DEFAULT_MAX_DOWNLOAD = 20_000_000_000


@dataclass(frozen=True, slots=True)
class Backend:
    """`url` without a trailing `/v1`; `key_variable` names the environment variable that holds its key, if any."""

    url: str
    key_variable: str = ""


@dataclass(frozen=True, slots=True)
class StartCommand:
    """How the user started this node. `program`: shell text that runs mesh-llm on this machine, `arguments`: those of
    the start, without invites; `elsewhere`: how another machine that was set up in the same way runs it."""

    program: str = "mesh-llm"
    arguments: tuple[str, ...] = ()
    elsewhere: str = "mesh-llm"

    @property
    def text(self) -> str:
        """Shell text that starts this node again."""
        return " ".join([self.program, shlex.join(self.arguments)]).rstrip()


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a start. Ports: 0 is any free one; `ollama_port`: a further one of the API, for
    clients of Ollama. Sizes in bytes, rates in bytes per second, context in tokens.

    `models`: names or paths as given; the first runs here, the others are requested from the mesh and run here if no
    other node takes them (`serve_all`: all run here at once). `idle_unload`: models that are idle for so many seconds
    are unloaded (None: never). `on_demand`: a request loads a model of the disk (None: if this node joins a mesh and
    has no model or backend of its own, or fetches on demand). `fetch_on_demand`: models that the mesh asks for and that
    no node could load are downloaded (None: they are not), `max_download` bytes of files at most (None: 20 GB).
    `invites`: all of one mesh; `notices`: what the user should know about them.
    `client`: only use the mesh. `bind_port`: UDP; None is the last one used, or any free one. `node_name`: shown to
    other nodes. `writer_name`: of this node's owner on the blackboard. `blackboard`: this node has one;
    `board_memory`: it is kept in memory only. `max_clients`: clients that this node admits.
    `draft`: draft model for the first of `models`; `drafts`: whether draft models may be used; `speculation`: whether
    speculative decoding is used at all.

    `max_memory`: most accelerator memory to use (system RAM if there is no accelerator). `devices`: names of the
    accelerators to use ("none": CPU only), empty for the engine's choice. `share`: which model files other nodes may
    learn of and download ("known", "all", "none"; see `Share`), at `upload_limit` at most (None: no limit).

    `listen_all`: other machines may call, with a key. `allowed_hosts`: host names by which they may, besides IP
    addresses. `require_key`: programs of this machine need it, too. `only_from`: beginnings of node ids: requests
    go only to these nodes and to this one. `aliases`: (name, model): callers may ask for the model by that name.
    `declared_tools`: (model, whether it calls tools): models that are not tested for it.
    `split`: spread the first model over several nodes even if it fits here.
    `chat_template`: a file that replaces the chat template of the first of `models`.
    `threads`: CPU threads of each engine process. `sandbox`: engine processes run in one, where the system has it.
    `save_prompts`: computed prompts are kept in files over restarts of the engines.
    `worker`: whether this node takes leases of other nodes' splits (None: unless it is idle).
    `lease_cache`: the most bytes on the disk for files that leases bring (None: half of what is free, at most 256 GiB).
    `until_detached`: end once standard input is closed and no launcher of an agent is attached. `command`: how to
    start this node again.
    """

    home: Path
    models: tuple[str, ...] = ()
    backends: tuple[Backend, ...] = ()
    port: int = DEFAULT_PORT
    console: int = DEFAULT_CONSOLE
    ollama_port: int | None = None
    listen_all: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    require_key: bool = False
    only_from: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    declared_tools: tuple[tuple[str, bool], ...] = ()
    context: int | None = None
    invites: tuple[Invite, ...] = ()
    notices: tuple[str, ...] = ()
    client: bool = False
    bind_port: int | None = None
    node_name: str = ""
    writer_name: str = ""
    blackboard: bool = True
    board_memory: bool = False
    max_clients: int = DEFAULT_MAX_CLIENTS
    draft: str | None = None
    drafts: bool = True
    speculation: bool = True
    max_memory: int | None = None
    devices: tuple[str, ...] = ()
    share: str = "known"
    upload_limit: float | None = None
    split: bool = False
    threads: int | None = None
    sandbox: bool = True
    save_prompts: bool = True
    worker: bool | None = None
    lease_cache: int | None = None
    serve_all: bool = False
    idle_unload: float | None = None
    on_demand: bool | None = None
    fetch_on_demand: bool | None = None
    max_download: int | None = None
    chat_template: Path | None = None
    until_detached: bool = False
    command: StartCommand = StartCommand()

    def loads_on_demand(self, *, founded: bool) -> bool:
        """Whether requests load models of the disk. `founded`: this node began its mesh, or is in none."""
        if self.client:
            return False
        if self.on_demand is not None:
            return self.on_demand
        return bool(self.fetch_on_demand) or not (founded or self.models or self.backends)

    @property
    def download_limit(self) -> int:
        """Bytes of model files that the mesh's demand may bring to this disk; 0: none."""
        if self.client or not self.fetch_on_demand:
            return 0
        return DEFAULT_MAX_DOWNLOAD if self.max_download is None else self.max_download
