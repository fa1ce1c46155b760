"""`mesh-llm blackboard --follow`: new messages as they come, over restarts of the node, until Ctrl-C."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from meshllm.errors import BoardRefused, NotRunning
from meshllm.util.backoff import backoff

# How long a request waits for news; the answer may be late.
WAIT_SECONDS = 45.0
LATE_SECONDS = 15.0
MAX_PAGE = 500
# Messages that were shown, so that none is shown twice after a restart of the node.
MAX_SHOWN = 2000
BASE_SECONDS, CAP_SECONDS = 0.5, 15.0

Ask = Callable[[Mapping[str, object], float], dict[str, Any]]
"""A page for these further parameters, within so many seconds."""


class Follower:
    """Reads page after page. `ask` gets a page, `show` shows a message, `say` tells the user what happens; `pause`
    sleeps for seconds."""

    def __init__(
        self,
        ask: Ask,
        show: Callable[[Mapping[str, Any]], None],
        say: Callable[[str], None],
        pause: Callable[[float], None],
    ) -> None:
        self._ask, self._show, self._say, self._pause = ask, show, say, pause
        self._shown: deque[str] = deque(maxlen=MAX_SHOWN)

    def run(self, first: dict[str, Any]) -> None:
        """Follow after the page `first`, which was shown, until an error that no waiting helps against."""
        self._shown.extend(post["id"] for post in first["posts"])
        cursor = first["cursor"]
        while True:
            try:
                query = {"after": cursor, "wait_seconds": WAIT_SECONDS, "limit": MAX_PAGE}
                page = self._ask(query, WAIT_SECONDS + LATE_SECONDS)
            except NotRunning as error:
                page = self._return(error, cursor)
            except BoardRefused:  # the cursor is of a board that the node does not have any more
                page = self._ask({"limit": MAX_PAGE}, LATE_SECONDS)
            self._new(page)
            cursor = page["cursor"] or cursor

    def _return(self, error: NotRunning, cursor: str) -> dict[str, Any]:
        """What came after `cursor`, once the node is there again."""
        self._say(f"{error.message} Waiting for it; Ctrl-C ends this.")
        attempt = 0
        while True:
            self._pause(backoff(attempt, base=BASE_SECONDS, cap=CAP_SECONDS))
            attempt += 1
            try:
                page = self._ask({"after": cursor, "limit": MAX_PAGE}, LATE_SECONDS)
            except NotRunning:
                continue
            except BoardRefused:
                page = self._ask({"limit": MAX_PAGE}, LATE_SECONDS)
            self._say("The node is there again.")
            return page

    def _new(self, page: dict[str, Any]) -> None:
        """Show the messages of a page that were not shown, the oldest first."""
        for post in reversed(page["posts"]):
            if post["id"] not in self._shown:
                self._shown.append(post["id"])
                self._show(post)
        if page["more"]:
            self._say(f"{page['more']} older messages are not shown.")
