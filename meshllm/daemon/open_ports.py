"""Opens the ports of the API and the console. A port that is taken is explained: by which program, and what to do."""

from __future__ import annotations

from typing import NamedTuple

from meshllm.daemon import port_holder
from meshllm.daemon.settings import Settings
from meshllm.errors import PortTaken
from meshllm.util.threads import in_thread
from meshllm.web.console.server import Console
from meshllm.web.gateway.gateway import Gateway

LOOPBACK = ("127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")


class OpenPorts(NamedTuple):
    """The ports that are open; `ollama`: None without `--ollama-port`."""

    api: int
    console: int
    ollama: int | None


async def open_ports(settings: Settings, gateway: Gateway, console: Console) -> OpenPorts:
    """Open the ports of `settings`. Raises PortTaken, with the program that holds the port."""
    hosts = EVERYWHERE if settings.listen_all else LOOPBACK
    left = {port_holder.API: settings.port, port_holder.CONSOLE: settings.console}
    if settings.ollama_port is not None:
        left[port_holder.OLLAMA] = settings.ollama_port
    try:
        api = await gateway.start(hosts, settings.port)
        del left[port_holder.API]
        page = await console.start(hosts, settings.console)
        del left[port_holder.CONSOLE]
        ollama = None
        if settings.ollama_port is not None:
            ollama = await gateway.start_ollama_port(hosts, settings.ollama_port)
    except PortTaken as error:
        found = error
        raise await in_thread(lambda stop: port_holder.explained(found, left), "port") from error
    return OpenPorts(api, page, ollama)
