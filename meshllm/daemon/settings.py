"""What a daemon was asked to do. Made by `cli` from the command line, read by `daemon`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line is read before anything that takes long to import is needed
    from meshllm.wire.mesh.invite import Invite

DEFAULT_PORT = 9337
DEFAULT_CONSOLE = 3131
# Clients cost a node a link and a table each; a machine that serves models has other work.
DEFAULT_MAX_CLIENTS = 64


@dataclass(frozen=True, slots=True)
class Backend:
    """`url` without a trailing `/v1`; `key_variable` names the environment variable that holds its key, if any."""

    url: str
    key_variable: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """`models` as they were given (catalogue names or paths); ports (0: any that is free); `context` in tokens.

    The first model is served here, the others are wanted by the mesh. `invites` are of one mesh. A `client` serves
    nothing. `bind_port` is UDP: None for the one used last, or any that is free. `node_name` is what others see;
    `max_clients` how many clients this node lets in. `draft`: the model that guesses ahead for the first of `models`,
    as it was given; `drafts`: whether there may be any; `speculation`: whether tokens are guessed ahead at all.

    `max_memory`: bytes lent at most, of accelerators where there are any, else of the computer's memory. `devices`: the
    engine's names of those to use ("none": the processor alone), none for its own choice. `share_models`: whether other
    nodes may have model files of this one, at `share_rate` bytes per second at most (None: as fast as it goes).

    `listen_all`: other machines may call, with a key; `allowed_hosts` are names by which they may, besides addresses.
    `split`: the first model is spread over several nodes even if it fits on this one. `threads`: of the processor, for
    each engine process.
    """

    home: Path
    models: tuple[str, ...] = ()
    backends: tuple[Backend, ...] = ()
    port: int = DEFAULT_PORT
    console: int = DEFAULT_CONSOLE
    listen_all: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    context: int | None = None
    invites: tuple[Invite, ...] = ()
    client: bool = False
    bind_port: int | None = None
    node_name: str = ""
    max_clients: int = DEFAULT_MAX_CLIENTS
    draft: str | None = None
    drafts: bool = True
    speculation: bool = True
    max_memory: int | None = None
    devices: tuple[str, ...] = ()
    share_models: bool = True
    share_rate: float | None = None
    split: bool = False
    threads: int | None = None
