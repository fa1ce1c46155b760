"""A console with a blackboard, as the node of MESH_LLM_HOME, in a thread: what the command line asks is really sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from meshllm.daemon.pidfile import HomeLock
from meshllm.web.console.server import Console
from meshllm.web.console.status import NodeStatus
from meshllm.web.http.access_control import AccessPolicy
from tests.local_board import LocalBoard

TOKEN = "token-of-this-run"
PATIENCE = 30.0


def no_status() -> NodeStatus:
    """These tests ask for no status."""
    raise AssertionError("the status was asked for")


class BoardNode:
    """`start` and `stop` may be called again and again; the board survives, `port` does not."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.board = LocalBoard()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="node", daemon=True)
        self._thread.start()
        self._console: Console | None = None
        self._lock: HomeLock | None = None

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` on the node's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def start(self, *, with_token: bool = True) -> None:
        """Listen, and announce that."""

        async def begin() -> None:
            self._console = Console(AccessPolicy(), no_status, token=TOKEN, board=lambda: self.board)
            self.port = await self._console.start(("127.0.0.1",), 0)

        self.run(begin())
        self._lock = HomeLock(self.home)
        self._lock.announce(1, self.port, TOKEN if with_token else "")

    def stop(self) -> None:
        """End as a daemon does."""
        if self._console is None or self._lock is None:
            return
        console = self._console

        async def end() -> None:
            await console.close()
            if console._handlers is not None:
                for transport in list(console._handlers.asked):  # to a command that was ended, and reads no more
                    transport.abort()  # type: ignore[attr-defined]
            for _ in range(5):  # closed connections are closed in the next turns of the loop
                await asyncio.sleep(0)

        self.run(end())
        self._lock.release()
        self._console = self._lock = None

    def arrive(self, text: str, **fields: Any) -> dict[str, str]:
        """A message of another node; its id and its thread."""

        async def put() -> dict[str, str]:
            post = self.board.arrive(text, **fields)
            return {"id": post.id, "thread": post.thread}

        found: dict[str, str] = self.run(put())
        return found

    def close(self) -> None:
        """Stop, and end the thread."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
