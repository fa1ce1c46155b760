"""The blackboard of a made-up node: `LocalBoard`, changed from the thread of a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from meshllm.core.board.service import (
    BoardFacts,
    BoardPage,
    BoardPost,
    ClaimFacts,
    FeedQuery,
    ScrubPreview,
    SearchQuery,
)
from tests.local_board import LocalBoard


class StagedBoard(LocalBoard):
    """`changed` is called with each change, in the thread that makes it. `ahead`: messages that wait because of clocks;
    `flagged`: authors who broke the rules; `asked`: what was asked for."""

    def __init__(self) -> None:
        super().__init__("owner", "workbench")
        self.ahead = 0
        self.flagged: tuple[str, ...] = ()
        self.asked: list[str] = []
        self.changed: Callable[[], None] = lambda: None

    def arrive(self, text: str, *, ago: float = 0.0, **fields: Any) -> BoardPost:
        """A message of ann on the node amber, unless `fields` say otherwise."""
        post = super().arrive(text, ago=ago, **{"name": "ann", "node": "amber", **fields})
        self.changed()
        return post

    def hold(self, key: str, seconds: float, **fields: Any) -> ClaimFacts:
        """A claim of ann's agent."""
        claim = super().hold(key, seconds, **{"name": "ann", "node": "amber", "program": "claude-code", **fields})
        self.changed()
        return claim

    def erase(self, post: str) -> None:
        """The author retracts a message."""
        found = self._one(post)
        self.posts[self.posts.index(found)] = replace(found, text="", retracted=True)
        self.changed()

    def facts(self) -> BoardFacts:
        """The state."""
        return replace(super().facts(), waiting=self.ahead, flagged=self.flagged)

    def _listed(self, query: FeedQuery) -> list[BoardPost]:
        # The places of retracted messages are shown in their threads only.
        return [post for post in super()._listed(query) if query.thread or not post.retracted]

    async def feed(self, query: FeedQuery) -> BoardPage:
        """The newest first."""
        self.asked.append("news" if query.after else "feed")
        return await super().feed(query)

    async def search(self, query: SearchQuery) -> BoardPage:
        """The best first."""
        self.asked.append("search")
        return await super().search(query)

    def preview(self, text: str) -> ScrubPreview:
        """What the scrubber makes of it."""
        self.asked.append("preview")
        return super().preview(text)

    async def retract(self, post: str) -> BoardPost:
        """Erase the text of an own message."""
        erased = await super().retract(post)
        self.changed()
        return erased


TEXTS = (
    ("finding", "FINDING: the tunnel dies after 60 s of silence: the NAT forgets it. A ping every 20 s helps."),
    ("status", "STATUS: splitting the parser into two files [branch:parser]"),
    ("question", "QUESTION: who knows why test_lanes is slow on the laptop? It takes 40 s there, 3 s here."),
    ("tip", "TIP: scripts/check needs Node 22; see https://nodejs.org/en/download"),
    ("done", "DONE: the board forgets after 48 hours."),
    ("note", "Lunch at one?"),
)  # fmt: skip
WRITERS = (("ann", "amber", "claude-code"), ("ben", "birch", "codex"), ("owner", "workbench", ""))
ROOMS = ("acme/engine", "acme/site", "")


def filled(board: StagedBoard, count: int, *, numbered: bool = True) -> tuple[BoardPost, ...]:
    """`count` messages; the two newest are a reply to the third one, and a reply to that.
    `numbered`: each text ends with its number."""
    made: list[BoardPost] = []
    for number in range(count):
        left = count - 1 - number
        kind, text = TEXTS[number % len(TEXTS)]
        name, node, program = WRITERS[number % len(WRITERS)]
        thread = count >= 3 and left < 2
        parent = made[-1].id if thread else ""
        made.append(
            board.arrive(
                ("It needs two of them: the first is lost while the path changes." if left else "Thanks, that was it.")
                if thread
                else f"{text} ({number})"
                if numbered
                else text,
                kind="note" if thread else kind,
                name=name,
                node=node,
                program=program,
                mine=node == "workbench",
                room=made[-1].room if thread else ROOMS[number % len(ROOMS)],
                reply_to=parent,
                ago=60.0 * left * (1 if count < 1000 else 0.5),
            )
        )
    return tuple(made)
