"""A start that failed because of a port: who holds it, and with which options the node starts."""

from __future__ import annotations

from meshllm.errors import PortTaken
from meshllm.machine import ports

API, CONSOLE, OLLAMA, UDP = "--port", "--console", "--ollama-port", "--bind-port"


def explained(error: PortTaken, wanted: dict[str, int]) -> PortTaken:
    """`error` with the program that holds the port, and free ports; `wanted`: the ports by option that the node has
    not opened yet. Blocks for some milliseconds."""
    if not error.option:
        return error
    fact = ports.holder(error.port, "udp" if error.option == UDP else "tcp")
    flags = [f"{option} {ports.next_free(port)}" for option, port in wanted.items() if _is_taken(option, port, error)]
    advice = f"Start with {' '.join(flags)}, or stop that program."
    message = f"Port {error.port} is in use by {ports.holder_text(fact)}."
    return PortTaken(message, advice=advice, port=error.port, option=error.option)


def _is_taken(option: str, port: int, error: PortTaken) -> bool:
    return option == error.option or (port != 0 and not ports.probe(port).free)
