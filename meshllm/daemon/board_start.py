"""The blackboard of a daemon: made when it is known who this node is and in which mesh, and closed with it.

Until then, and on a node that has none, readers and writers are told why.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.daemon.board_mcp import BoardMcp
from meshllm.daemon.board_shield import STOPPING
from meshllm.daemon.settings import Settings
from meshllm.daemon.wall_clock import system_time
from meshllm.errors import BoardOff
from meshllm.tasks import Owner
from meshllm.util.threads import in_thread

if TYPE_CHECKING:
    from meshllm.core.board import service as s
    from meshllm.core.board.service import Blackboard
    from meshllm.daemon.board import NodeBlackboard
    from meshllm.daemon.mesh_session import MeshSession

log = logging.getLogger(__name__)

BOARD_FILE: Final = "board.db"
# How often the core is told the wall clock, by which entries expire (seconds).
CLOCK_SECONDS: Final = 60.0

STARTING: Final = "The node is starting."
# How long a caller waits for the blackboard of a node that is starting.
STARTING_SECONDS: Final = 20.0
SWITCHED_OFF: Final = "This node was started with --no-blackboard."
GUEST: Final = "This node is a guest of its mesh. Guests do not share its blackboard."


class NoBoard:
    """The blackboard of a node that has none, or none yet: a `Blackboard` that says why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def facts(self) -> s.BoardFacts:
        """See `Blackboard`."""
        from meshllm.core.board.service import BoardFacts

        return BoardFacts(False, self._reason, "", "", 0, 0, ())

    async def post(self, wish: s.PostWish) -> s.PostAnswer:
        """Raises BoardOff, as all that follow."""
        raise BoardOff(self._reason)

    async def feed(self, query: s.FeedQuery) -> s.BoardPage:
        """See `post`."""
        raise BoardOff(self._reason)

    async def search(self, query: s.SearchQuery) -> s.BoardPage:
        """See `post`."""
        raise BoardOff(self._reason)

    async def claim(self, wish: s.ClaimWish) -> s.ClaimAnswer:
        """See `post`."""
        raise BoardOff(self._reason)

    def claims(self, room: str = "") -> tuple[s.ClaimFacts, ...]:
        """See `post`."""
        raise BoardOff(self._reason)

    def rooms(self) -> tuple[s.RoomFacts, ...]:
        """See `post`."""
        raise BoardOff(self._reason)

    async def retract(self, post: str) -> s.BoardPost:
        """See `post`."""
        raise BoardOff(self._reason)

    def preview(self, text: str) -> s.ScrubPreview:
        """See `post`."""
        raise BoardOff(self._reason)

    async def notice(self, reader: s.BoardWriter, cursor: str) -> s.BoardNotice:
        """See `post`."""
        raise BoardOff(self._reason)


class StartingBoard(NoBoard):
    """The blackboard of a node that is starting: what can wait does, for a bounded time."""

    def __init__(self, ready: asyncio.Future[Blackboard]) -> None:
        super().__init__(STARTING)
        self._ready = ready

    async def _board(self) -> Blackboard:
        try:
            async with asyncio.timeout(STARTING_SECONDS):
                return await asyncio.shield(self._ready)
        except TimeoutError:
            raise BoardOff(STARTING) from None

    async def post(self, wish: s.PostWish) -> s.PostAnswer:
        """See `Blackboard`, as all that follow."""
        return await (await self._board()).post(wish)

    async def feed(self, query: s.FeedQuery) -> s.BoardPage:
        """See `post`."""
        return await (await self._board()).feed(query)

    async def search(self, query: s.SearchQuery) -> s.BoardPage:
        """See `post`."""
        return await (await self._board()).search(query)

    async def claim(self, wish: s.ClaimWish) -> s.ClaimAnswer:
        """See `post`."""
        return await (await self._board()).claim(wish)

    async def retract(self, post: str) -> s.BoardPost:
        """See `post`."""
        return await (await self._board()).retract(post)

    async def notice(self, reader: s.BoardWriter, cursor: str) -> s.BoardNotice:
        """See `post`."""
        return await (await self._board()).notice(reader, cursor)


class BoardPart:
    """What `App` holds of the blackboard: `board` is always one, also before `open` and where there is none; `mcp`
    answers agents."""

    def __init__(self, settings: Settings, post: Callable[[e.Event], None], on_change: Callable[[str], None]) -> None:
        """`on_change` is called with the cursor of each change."""
        self._settings = settings
        self._post = post
        self._on_change = on_change
        self._owner = Owner("blackboard")
        self._timer: asyncio.TimerHandle | None = None
        self.mcp = BoardMcp(lambda: self.board, system_time)
        self._opened: NodeBlackboard | None = None
        self._ready: asyncio.Future[Blackboard] = asyncio.get_running_loop().create_future()
        self.board: Blackboard = StartingBoard(self._ready) if settings.blackboard else NoBoard(SWITCHED_OFF)

    def open(self, session: MeshSession | None, reason: str) -> None:
        """Begin to read what is saved; without a mesh (None: because of `reason`) say why there is none."""
        if not self._settings.blackboard:
            return
        if session is None or reason or not session.shares_board:
            off = GUEST if session is not None and not reason else f"This node is in no mesh: {reason}"
            self._set_ready(NoBoard(off))
        else:
            # The mesh and its models do not wait for it.
            self._owner.start(self._open(session), "open")

    async def _open(self, session: MeshSession) -> None:
        # In a thread: callers must not wait for imports.
        opened = self._opened = await in_thread(lambda stop: self._made(session), "load the blackboard")
        if not await opened.open():
            self._set_ready(opened)  # it says why it is closed
        self._tell_clock()

    def _set_ready(self, board: Blackboard) -> None:
        self.board = board
        if not self._ready.done():
            self._ready.set_result(board)

    def _made(self, session: MeshSession) -> NodeBlackboard:
        from meshllm.board.store import EntryStore, MemoryStore, SqliteStore
        from meshllm.daemon.board import NodeBlackboard
        from meshllm.wire.mesh.board import decode_header

        settings = self._settings
        path = settings.home / BOARD_FILE
        store: EntryStore = MemoryStore(path) if settings.board_memory else SqliteStore(path, decode_header)
        user = ""
        with suppress(OSError, KeyError):  # a container whose user has no entry in its user database
            user = getpass.getuser()
        me, name, name_of = session.config.node, session.config.name, session.members.name_of
        return NodeBlackboard(
            store,
            me=me,
            writer=settings.writer_name or user,
            node_name=lambda node: name if node == me else name_of(node),
            names=((socket.gethostname(), "host"), (user, "user")),
            post=self._post,
            wall_clock=system_time,
            on_change=self._on_change,
        )

    def _tell_clock(self) -> None:
        self._post(e.ClockRead(system_time()))
        self._timer = asyncio.get_running_loop().call_later(CLOCK_SECONDS, self._tell_clock)

    def carry_out(self, command: c.Command) -> bool:
        """Begin a command of the core; False if it does not concern the blackboard."""
        if self._opened is None or not self._opened.carry_out(command):
            return False
        if not self._ready.done() and isinstance(command, c.BoardChanged):
            self._set_ready(self._opened)
        return True

    async def close(self) -> None:
        """Save what changed, and refuse what waits."""
        await self._owner.close()
        self._set_ready(NoBoard(STOPPING))
        if self._timer is not None:
            self._timer.cancel()
        if self._opened is not None:
            await self._opened.close()
