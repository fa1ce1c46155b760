"""Shows the blackboard in a terminal: messages in threads, claims, rooms.

Texts and names are of other people and programs: characters that would move the cursor, hide or reorder text become
blanks, and nothing in them is taken for markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meshllm.util.format import counted, printable, printable_message, rough_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

COLOURS = {"status": "blue", "question": "magenta", "finding": "green", "tip": "cyan", "done": "green", "note": ""}
ID_DIGITS = 8
INDENT = 2
COMMON_ROOM = "the common room"


def room_name(room: str) -> str:
    """A room for people."""
    return printable(room) or COMMON_ROOM


def rooms_name(room: str) -> str:
    """The room of a query for people; `*` is all rooms."""
    return "all rooms" if room == "*" else room_name(room)


def age(then: float, now: float) -> str:
    """How long ago a moment was. Clocks of nodes differ a little: the future is now."""
    return "now" if now - then < 1 else f"{rough_duration(now - then)} ago"


def left(until: float, now: float) -> str:
    """How long until a moment: "20 min", "45 s"."""
    seconds = max(0.0, until - now)
    return rough_duration(round(seconds / 60) * 60 if seconds >= 90 else round(seconds))


def writer(row: Mapping[str, Any]) -> str:
    """Who wrote a message or holds a claim: `name@node`, and the program if it is no person."""
    program = f" ({printable(row['program'])})" if row["program"] else ""
    return f"{printable(row['name']) or '?'}@{printable(row['node']) or '?'}{program}"


def threads(posts: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Messages by thread, the oldest first in each; the thread with the latest message last."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for post in sorted(posts, key=lambda one: float(one["time"])):
        found.setdefault(post["thread"] or post["id"], []).append(post)
    return sorted(found.values(), key=lambda thread: float(thread[-1]["time"]))


class BoardPrinter:
    """Prints on `console`. `now`: unix seconds. `room`: that of the query; messages of others show theirs."""

    def __init__(self, console: Console, now: float, room: str) -> None:
        self._console = console
        self._now = now
        self._room = room

    def line(self, text: str, style: str = "") -> None:
        """A line of the command itself."""
        from rich.text import Text

        self._print(Text(text, style=style), 0)

    def threads(self, posts: Sequence[Mapping[str, Any]]) -> None:
        """All threads of a page, with blank lines between those that have replies."""
        for number, thread in enumerate(threads(posts)):
            if number and len(thread) > 1:
                self.line("")
            first = thread[0]
            if first["reply_to"]:
                self.line(f"in the thread {first['thread'][:ID_DIGITS]}", "dim")
            for post in thread:
                self.post(post, INDENT * 2 if post["reply_to"] else 0)

    def post(self, post: Mapping[str, Any], indent: int = 0) -> None:
        """A message: a line about it, then its text."""
        self._print(self._head(post), indent)
        for line in self._lines(post):
            self._print(line, indent + INDENT)

    def _head(self, post: Mapping[str, Any]) -> Text:
        from rich.text import Text

        kind = printable(post["kind"])
        head = Text()
        head.append(post["id"][:ID_DIGITS], "dim")
        head.append(f"  {age(post['time'], self._now)}", "dim")
        head.append(f"  {writer(post)}", "bold green" if post["mine"] else "bold")
        if kind != "note":
            head.append(f"  {kind.upper()}", COLOURS.get(kind, ""))
        if post["room"] != self._room:
            head.append(f"  in {room_name(post['room'])}", "dim")
        if post["to"]:
            head.append(f"  to {', '.join(map(printable, post['to']))}", "yellow")
        if post["reply_to"] and post["reply_to"] != post["thread"]:
            head.append(f"  answers {post['reply_to'][:ID_DIGITS]}", "dim")
        if post["flagged"]:
            head.append("  this author broke the rules of the blackboard: do not rely on it", "red")
        return head

    def _lines(self, post: Mapping[str, Any]) -> Iterable[Text]:
        from rich.text import Text

        if post["retracted"]:
            return [Text("(retracted)", "dim")]
        text = str(post["text"])
        prefix = f"{post['kind']}:"
        if text.lower().startswith(prefix):  # the line above says it
            text = text[len(prefix) :].lstrip()
        return [Text(printable_message(line.expandtabs(4))) for line in text.splitlines()]

    def _print(self, text: Text, indent: int) -> None:
        """Lines are folded on a terminal only: elsewhere a line of a message stays one line."""
        from rich.padding import Padding
        from rich.text import Text

        if self._console.is_terminal:
            self._console.print(Padding(text, (0, 0, 0, indent)))
        else:
            self._console.print(Text(" " * indent).append_text(text), soft_wrap=True)

    def table(self, rows: Sequence[tuple[str, ...]]) -> None:
        """Rows in columns, the first row in bold."""
        from meshllm.cli.engines import table

        for number, line in enumerate(table(list(rows))):
            self.line(line, "" if number else "bold")

    def claims(self, claims: Sequence[Mapping[str, Any]]) -> None:
        """Who is on what."""
        rows = [("KEY", "WHO", "ROOM", "SINCE", "ENDS IN")]
        for claim in claims:
            ends = left(claim["until"], self._now)
            who = f"{writer(claim)}{' *' if claim['mine'] else ''}"
            rows.append((printable(claim["key"]), who, room_name(claim["room"]), age(claim["since"], self._now), ends))
        self.table(rows)
        if any(claim["mine"] for claim in claims):
            self.line("* on this node", "dim")

    def rooms(self, rooms: Sequence[Mapping[str, Any]]) -> None:
        """The rooms, the latest first."""
        rows = [("ROOM", "MESSAGES", "LAST")]
        rows += [(room_name(room["room"]), str(room["posts"]), age(room["last"], self._now)) for room in rooms]
        self.table(rows)


def others_text(rooms: Sequence[Mapping[str, Any]], room: str) -> str:
    """How much there is in other rooms than `room`: "12 messages in 3 other rooms"; empty if nothing."""
    others = [one for one in rooms if one["room"] != room]
    if not others:
        return ""
    return f"{counted(sum(one['posts'] for one in others), 'message')} in {counted(len(others), 'other room')}"
