"""The blackboard of a daemon: made when it is known who this node is and in which mesh, and closed with it.

Until then, and on a node that has none, readers and writers are told why.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from meshllm import __version__
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.ids import NODE_ID_BYTES, NodeId
from meshllm.daemon.settings import Settings
from meshllm.daemon.wall_clock import system_time

if TYPE_CHECKING:
    from meshllm.board.mcp_http import McpHttp
    from meshllm.board.store import EntryStore
    from meshllm.daemon.board import NodeBlackboard
    from meshllm.daemon.mesh_session import MeshSession

log = logging.getLogger(__name__)

BOARD_FILE: Final = "board.db"
# How often the core is told the wall clock, by which entries expire (seconds).
CLOCK_SECONDS: Final = 60.0

STARTING: Final = "The node is starting."
SWITCHED_OFF: Final = "This node was started with --no-blackboard."
GUEST: Final = "This node is a guest of its mesh. Guests do not share its blackboard."

Emit = Callable[[bytes], Awaitable[None]]


class BoardPart:
    """What `App` holds of the blackboard: `board` is always one, also before `open` and where there is none."""

    def __init__(self, settings: Settings, post: Callable[[e.Event], None], on_change: Callable[[str], None]) -> None:
        """`on_change` is called with the cursor of each change."""
        self._settings = settings
        self._post = post
        self._on_change = on_change
        self._timer: asyncio.TimerHandle | None = None
        self._mcp: McpHttp | None = None
        self.board: NodeBlackboard = self._made_off(SWITCHED_OFF if not settings.blackboard else STARTING)

    async def open(self, session: MeshSession | None, reason: str) -> None:
        """Read what is saved, and begin; without a mesh (None: because of `reason`) say why there is none."""
        if not self._settings.blackboard:
            return
        if session is None or reason:
            self.board = self._made_off(f"This node is in no mesh: {reason}")
            return
        if not session.shares_board:
            self.board = self._made_off(GUEST)
            return
        from meshllm.board.store import MemoryStore, SqliteStore
        from meshllm.wire.mesh.board import decode_header

        store: EntryStore = MemoryStore()
        if not self._settings.board_memory:
            store = SqliteStore(self._settings.home / BOARD_FILE, decode_header)
        me, name, name_of = session.config.node, session.config.name, session.members.name_of
        await self._replace(self._made(store, me, lambda node: name if node == me else name_of(node)))
        await self.board.open()
        self._tell_clock()

    async def _replace(self, board: NodeBlackboard) -> None:
        old, self.board = self.board, board
        await old.close()
        if self._mcp is not None:
            await self._mcp.close()
            self._mcp = None

    def _made_off(self, reason: str) -> NodeBlackboard:
        from meshllm.board.store import MemoryStore

        return self._made(MemoryStore(), NodeId(bytes(NODE_ID_BYTES)), lambda node: "", off=reason)

    def _made(
        self, store: EntryStore, node: NodeId, node_name: Callable[[NodeId], str], *, off: str = ""
    ) -> NodeBlackboard:
        from meshllm.daemon.board import NodeBlackboard

        user = ""
        with suppress(OSError, KeyError):  # a container whose user has no entry in its user database
            user = getpass.getuser()
        return NodeBlackboard(
            store,
            me=node,
            writer=self._settings.writer_name or user,
            node_name=node_name,
            names=((socket.gethostname(), "host"), (user, "user")),
            post=self._post,
            wall_clock=system_time,
            on_change=self._on_change,
            off=off,
        )

    def _tell_clock(self) -> None:
        self._post(e.ClockRead(system_time()))
        self._timer = asyncio.get_running_loop().call_later(CLOCK_SECONDS, self._tell_clock)

    def carry_out(self, command: c.Command) -> bool:
        """Begin a command of the core; False if it does not concern the blackboard."""
        return self.board.carry_out(command)

    async def exchange(
        self, body: bytes, headers: Mapping[str, str], room: str, emit: Emit | None
    ) -> tuple[int, bytes]:
        """Answer a message of the Model Context Protocol (`web.console.mcp.McpExchange`)."""
        if self._mcp is None:
            from meshllm.board.mcp import McpSetting
            from meshllm.board.mcp_http import McpHttp
            from meshllm.board.mcp_tools import LocalCalls

            clock = asyncio.get_running_loop().time
            setting = McpSetting(LocalCalls(self.board), __version__, system_time, clock, lambda: secrets.token_hex(4))
            self._mcp = McpHttp(setting)
        return await self._mcp.exchange(body, headers, room, emit)

    async def close(self) -> None:
        """Save what changed, and refuse what waits."""
        if self._timer is not None:
            self._timer.cancel()
        if self._mcp is not None:
            await self._mcp.close()
        await self.board.close()
