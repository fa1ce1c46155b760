"""`mesh-llm blackboard --mcp`: the MCP server of the blackboard on the standard streams, for coding agents.

It is a client of the running node. No node has to run when it starts: each call looks for one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    from meshllm.cli.board_client import ConsoleBoard

    target = stdio.private_output()
    logging.basicConfig(level=logging.WARNING, format="mesh-llm: %(message)s")
    setting = McpSetting(
        ConsoleBoard(node_port),
        __version__,
        time.time,  # noqa: TID251 - the age of messages, for display
        time.monotonic,
        lambda: secrets.token_hex(4),
        _room_of(str(Path.cwd())) if room is None else room,
        name,
    )
    asyncio.run(stdio.serve(setting, room_of=_room_of if room is None else None, target=target))


def _room_of(directory: str) -> str:
    from meshllm.board.rooms import room_of

    return room_of(Path(directory))


def blackboard(
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Serve the blackboard to an agent on the standard streams.")
    ] = False,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the writer. Default: the node's.")] = "",
    room: Annotated[str | None, typer.Option(metavar="ROOM", help="Default: that of the working directory.")] = None,
    node_port: Annotated[int | None, typer.Option(min=1, max=65535, metavar="PORT", help="Console port.")] = None,
) -> None:
    """Serve the blackboard to coding agents."""
    if not mcp:
        raise typer.BadParameter("Only --mcp is known.")
    serve_mcp(name=name, room=room, node_port=node_port)
