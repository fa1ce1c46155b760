"""`mesh-llm blackboard --mcp`: the MCP server of the blackboard on the standard streams, for coding agents.

It is a client of the running node. No node has to run when it starts: each call looks for one. Agents wait for its
first answer at their own start, so that it does not load Typer, which takes longer than all the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

# Options that the quick start knows. With any other argument, the command line's parser takes over.
NAME, ROOM, NODE_PORT, PORT = "--name", "--room", "--node-port", "--port"
_LAST_PORT: Final = 65535


def started_quickly(arguments: list[str]) -> bool:
    """Serve if `arguments`, those behind `mesh-llm`, say just that; False at once if not."""
    options = _options(arguments[1:]) if arguments[:1] == ["blackboard"] else None
    if options is None:
        return False
    from meshllm import paths
    from meshllm.cli.standard_streams import open_closed_streams

    open_closed_streams()
    paths.name_missing_home()
    port = options.get(NODE_PORT)
    serve_mcp(name=options.get(NAME, ""), room=options.get(ROOM), node_port=None if port is None else int(port))
    return True


def _options(arguments: list[str]) -> dict[str, str] | None:
    """The options and their values; None without `--mcp`, and for what the quick start does not know."""
    found: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if argument == "--mcp":
            found[option] = ""
        elif (option := NODE_PORT if option == PORT else option) in (NAME, ROOM, NODE_PORT) and option not in found:
            found[option] = value if equals else next(rest, "")
        else:
            return None
    port = found.get(NODE_PORT, "1")
    if "--mcp" not in found or not (port.isascii() and port.isdecimal() and 0 < int(port[:9]) <= _LAST_PORT):
        return None
    return found


def serve_mcp(*, name: str = "", room: str | None = None, node_port: int | None = None) -> None:
    """Serve until the input ends. `name` of the writer, empty for the node's; `room`, None for that of the working
    directory; `node_port`: console port of the node, None for that of MESH_LLM_HOME."""
    import asyncio
    import logging
    import secrets
    import time

    from meshllm import __version__
    from meshllm.board import stdio
    from meshllm.board.mcp import McpSetting
    from meshllm.board.rooms import room_here
    from meshllm.cli.board_client import ConsoleBoard

    target = stdio.private_output()
    logging.basicConfig(level=logging.WARNING, format="mesh-llm: %(message)s")
    setting = McpSetting(
        ConsoleBoard(node_port),
        __version__,
        time.time,  # noqa: TID251 - the age of messages, for display
        time.monotonic,
        lambda: secrets.token_hex(4),
        room_here() if room is None else room,
        name,
    )
    asyncio.run(stdio.serve(setting, room_of=_room_of if room is None else None, target=target))


def _room_of(directory: str) -> str:
    from meshllm.board.rooms import room_of

    return room_of(Path(directory))
