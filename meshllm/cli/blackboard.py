"""`mesh-llm blackboard`: reads and writes the mesh's blackboard through the running node."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshllm.board.rooms import room_here
from meshllm.cli import board_options as options
from meshllm.cli.flags import Commands, LazyCommand
from meshllm.core.board.service import ALL_ROOMS, DEFAULT_HOURS, DEFAULT_LISTED, SEARCH_HOURS
from meshllm.errors import EnvironmentFailure, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshllm.cli.board_view import BoardPrinter

# A text on standard input; the node says how long a message may be.
MAX_INPUT_BYTES = 1 << 16
MINUTE = 60
ONE_WORD = re.compile(r"[A-Za-z-]+")
# What people try as a command; as a message it says nothing.
NO_TEXTS = frozenset({"help", "list", "ls", "lst", "show", "read", "feed", "search", "post", "status", "delete", "rm"})

app = Commands(
    lazy={
        "peek": LazyCommand("meshllm.cli.board_peek", "peek"),
        "install-skill": LazyCommand("meshllm.cli.board_skill", "install_skill"),
    },
    takes_text=True,
    add_completion=False,
    invoke_without_command=True,
    help="Read and write the mesh's blackboard: messages, questions and claims of people and agents, for 48 hours.",
    epilog='mesh-llm blackboard "STATUS: working on the parser" posts a message; without a text it lists the messages.',
)


@app.callback()
def blackboard(
    context: typer.Context,
    text: options.Text = None,
    search: options.Search = None,
    author: options.Author = "",
    since: options.Since = None,
    all_rooms: options.AllRooms = False,
    mine: options.Mine = False,
    to_me: options.ToMe = False,
    thread: options.Thread = "",
    limit: options.Limit = None,
    follow: options.Follow = False,
    reply: options.Reply = "",
    to: options.To = None,
    kind: options.Kind = "",
    room: options.Room = None,
    name: options.Name = "",
    json: options.Json = False,
    node_port: options.Port = None,
    mcp: options.Mcp = False,
) -> None:
    """Post TEXT, or list the messages."""
    if context.invoked_subcommand is not None:
        return
    given = {
        "--search": search,
        "--from": author,
        "--since": since,
        "--all": all_rooms,
        "--mine": mine,
        "--to-me": to_me,
        "--thread": thread,
        "--limit": limit,
        "--follow": follow,
    }
    if mcp:
        _refuse(given | {"TEXT": text, "--reply": reply, "--to": to, "--kind": kind, "--json": json}, "--mcp")
        from meshllm.cli.board_mcp import serve_mcp

        serve_mcp(name=name, room=room, node_port=node_port)
        return
    if room is not None and all_rooms:
        raise UsageError("--room and --all exclude each other.", advice="Remove one of them.")
    if text is not None:
        hint = "Use --reply ID to answer a message." if thread else ""
        _refuse(given, "a text", hint)
        _check_word(text, context)
        _post(
            {"text": _input(text), "kind": kind, "reply_to": reply, "to": to or [], "name": name},
            room,
            node_port,
            json=json,
        )
        return
    _refuse({"--reply": reply, "--to": to}, "reading", "Give the text to post, in quotes.")
    if search is not None:
        narrowing = {"--mine": mine, "--to-me": to_me, "--thread": thread, "--follow": follow, "--kind": kind}
        _refuse(narrowing, "--search")
    hours = since if since is not None else DEFAULT_HOURS if search is None else SEARCH_HOURS
    query: dict[str, object] = {"author": author, "hours": hours, "limit": limit or DEFAULT_LISTED, "name": name}
    wanted = ALL_ROOMS if all_rooms or (thread and room is None) else room
    query["room"] = (room_here() or ALL_ROOMS) if wanted is None else wanted
    if search is not None:
        _search(query | {"words": search}, node_port, json=json)
        return
    query |= {"mine": mine, "to_me": to_me, "thread": thread, "kind": kind}
    _list(query, node_port, json=json, follow=follow)


def _refuse(options: Mapping[str, object], beside: str, advice: str = "") -> None:
    """Raise UsageError for an option that was given and has no effect beside `beside`."""
    for option, value in options.items():
        if value is not None and value is not False and value not in ("", []):
            raise UsageError(f"{option} has no effect with {beside}.", advice=advice or f"Remove {option}.")


def _check_word(text: str, context: typer.Context) -> None:
    """Raise UsageError for a text that was probably meant as a sub-command: posting it would tell the whole mesh."""
    import difflib

    commands = context.command.list_commands(context)  # type: ignore[attr-defined]
    near = difflib.get_close_matches(text.lower(), commands, 1, 0.75) if ONE_WORD.fullmatch(text) else []
    if text.lower() in NO_TEXTS:
        raise UsageError(
            f"{text!r} is not posted, because it looks like a command, and there is none of that name.",
            advice="'mesh-llm blackboard' lists the messages, 'mesh-llm blackboard --help' all commands.",
        )
    if near:
        raise UsageError(
            f"{text!r} is not posted, because it looks like the command '{near[0]}'.",
            advice=f"Run 'mesh-llm blackboard {near[0]}', with options behind it; or post a text of several words.",
        )


def _input(text: str) -> str:
    """The text; `-`: that of standard input."""
    if text != "-":
        return text
    data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise UsageError(f"Standard input has more than {MAX_INPUT_BYTES:,} bytes.", advice="Post a summary of it.")
    try:
        return data.decode().strip("\n")
    except UnicodeDecodeError as error:
        raise UsageError("Standard input is no text (UTF-8).", advice="Post a text.") from error


def _printer(room: str) -> BoardPrinter:
    import time

    from rich.console import Console

    from meshllm.cli.board_view import BoardPrinter

    return BoardPrinter(Console(highlight=False), time.time(), room)  # noqa: TID251 - ages, for display


def _write_json(answer: object) -> None:
    import orjson

    from meshllm.util.format import printable_json

    typer.echo(printable_json(orjson.dumps(answer).decode()))


# -- messages


def _post(body: dict[str, Any], room: str | None, node_port: int | None, *, json: bool) -> None:
    from meshllm.cli.board_calls import board_call
    from meshllm.cli.board_view import ID_DIGITS, room_name
    from meshllm.cli.console_client import console_port

    port = console_port(node_port)
    if room is None:
        # A reply without a room goes to that of the message.
        room = "" if body["reply_to"] else room_here()
    answer = board_call(port, "post", {**body, "room": room})
    if json:
        _write_json(answer)
        return
    post = answer["post"]
    printer = _printer(post["room"])
    printer.line(f"Posted {post['id'][:ID_DIGITS]} in {room_name(post['room'])}.")
    if answer["replaced"]:
        printer.line(f"Replaced before it was posted: {answer['replaced']}.", "yellow")


def _search(query: dict[str, object], node_port: int | None, *, json: bool) -> None:
    from meshllm.cli.board_calls import board_call
    from meshllm.cli.board_view import rooms_name
    from meshllm.cli.console_client import console_port
    from meshllm.util.format import counted

    port = console_port(node_port)
    page = board_call(port, "search", query=query)
    if json:
        _write_json(page)
        return
    room = str(query["room"])
    printer = _printer(room)
    for post in page["posts"]:
        printer.post(post)
    if not page["posts"]:
        printer.line(f"No message in {rooms_name(room)} in the last {query['hours']:g} h has one of these words.")
    if page["more"]:
        printer.line(f"{counted(page['more'], 'message')} more: --limit shows them.", "dim")
    _tell_others(port, room, printer)


def _list(query: dict[str, object], node_port: int | None, *, json: bool, follow: bool) -> None:
    from meshllm.cli.board_calls import board_call
    from meshllm.cli.console_client import console_port

    port = console_port(node_port)
    page = board_call(port, "feed", query=query)
    room = str(query["room"])
    if json and not follow:
        _write_json(page)
        return
    if json:
        for post in reversed(page["posts"]):
            _write_json(post)
    else:
        _show_page(page, query)
    if not json and not follow:
        _tell_others(port, room, _printer(room))
    if follow:
        _follow(query, node_port, page, json=json, room=room)


def _show_page(page: dict[str, Any], query: Mapping[str, object]) -> None:
    from meshllm.cli.board_view import rooms_name
    from meshllm.util.format import counted

    room = str(query["room"])
    printer = _printer(room)
    where = f"{rooms_name(room)}, last {query['hours']:g} h"
    if page["more"]:
        printer.line(f"{where}: {counted(page['more'], 'older message')} not shown (--limit)", "dim")
    elif page["posts"]:
        printer.line(where, "dim")
    else:
        printer.line(f'No messages: {where}. Post one: mesh-llm blackboard "STATUS: ..."')
    printer.threads(page["posts"])


def _tell_others(port: int, room: str, printer: BoardPrinter) -> None:
    """Say how much there is in other rooms."""
    from meshllm.cli.board_calls import board_call
    from meshllm.cli.board_view import others_text

    if room != ALL_ROOMS and (others := others_text(board_call(port, "rooms")["rooms"], room)):
        printer.line(f"{others}: --all shows them.", "dim")


def _follow(query: dict[str, object], node_port: int | None, page: dict[str, Any], *, json: bool, room: str) -> None:
    import time

    from meshllm.cli.board_calls import board_call
    from meshllm.cli.board_follow import Follower
    from meshllm.cli.console_client import console_port

    def ask(more: Mapping[str, object], within: float) -> dict[str, Any]:
        # A node that was started again may have another port.
        return board_call(console_port(node_port), "feed", query={**query, **more}, within=within)

    def show(post: Mapping[str, Any]) -> None:
        if json:
            _write_json(post)
        else:
            _printer(room).post(post)
        sys.stdout.flush()

    def say(text: str) -> None:
        sys.stdout.flush()
        typer.echo(f"mesh-llm: {text}", err=True)

    sys.stdout.flush()
    try:
        Follower(ask, show, say, time.sleep).run(page)
    except KeyboardInterrupt:
        return


@app.command()
def retract(
    message: Annotated[str, typer.Argument(metavar="ID", help="One of this node's own messages.")],
    json: options.Json = False,
    node_port: options.Port = None,
) -> None:
    """Erase the text of one of your messages, on all nodes."""
    from meshllm.cli.board_calls import board_call
    from meshllm.cli.board_view import ID_DIGITS
    from meshllm.cli.console_client import console_port

    answer = board_call(console_port(node_port), "retract", {"post": message})
    if json:
        _write_json(answer)
        return
    typer.echo(
        f"The text of {answer['post']['id'][:ID_DIGITS]} is erased here; other nodes erase it when they hear of it."
    )


@app.command()
def preview(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="- reads standard input.")],
    json: options.Json = False,
    node_port: options.Port = None,
) -> None:
    """Show what of a text would be replaced before it is posted. Nothing is posted."""
    from meshllm.cli.board_calls import board_call
    from meshllm.cli.console_client import console_port
    from meshllm.util.format import printable_message

    answer = board_call(console_port(node_port), "preview", {"text": _input(text)})
    if json:
        _write_json(answer)
        return
    for line in answer["text"].splitlines():
        typer.echo(printable_message(line))
    told = f"{answer['replaced']} would be replaced." if answer["replaced"] else "Nothing would be replaced."
    typer.echo(told, err=True)


@app.command()
def rooms(json: options.Json = False, node_port: options.Port = None) -> None:
    """List the rooms with messages."""
    from meshllm.cli.board_calls import board_call
    from meshllm.cli.console_client import console_port

    answer = board_call(console_port(node_port), "rooms")
    if json:
        _write_json(answer)
    elif not answer["rooms"]:
        typer.echo("No room has a message.")
    else:
        _printer("").rooms(answer["rooms"])


# -- claims


@app.command()
def claim(
    key: options.Key,
    length: options.Duration = "30m",
    room: options.Room = None,
    name: options.Name = "",
    json: options.Json = False,
    node_port: options.Port = None,
) -> None:
    """Tell the mesh that you work on KEY. A claim ends by itself; it is an agreement, not a lock."""
    _claim("acquire", key, length, room, name, node_port, json=json)


@app.command()
def renew(
    key: options.Key,
    length: options.Duration = "30m",
    room: options.Room = None,
    name: options.Name = "",
    json: options.Json = False,
    node_port: options.Port = None,
) -> None:
    """Extend your claim of KEY: it ends TIME from now."""
    _claim("renew", key, length, room, name, node_port, json=json)


@app.command()
def release(
    key: options.Key,
    room: options.Room = None,
    name: options.Name = "",
    json: options.Json = False,
    node_port: options.Port = None,
) -> None:
    """End your claim of KEY."""
    _claim("release", key, "", room, name, node_port, json=json)


@app.command()
def claims(
    room: options.Room = None,
    all_rooms: options.AllRoomsOfClaims = False,
    json: options.Json = False,
    node_port: options.Port = None,
) -> None:
    """List who is on what, and until when."""
    from meshllm.cli.board_calls import board_call
    from meshllm.cli.board_view import rooms_name
    from meshllm.cli.console_client import console_port
    from meshllm.util.format import counted

    if room is not None and all_rooms:
        raise UsageError("--room and --all exclude each other.", advice="Remove one of them.")
    port = console_port(node_port)
    wanted = ALL_ROOMS if all_rooms else (room_here() or ALL_ROOMS) if room is None else room
    shown: Sequence[dict[str, Any]] = board_call(port, "claims", query={"room": wanted})["claims"]
    if json:
        _write_json({"claims": shown})
        return
    printer = _printer(wanted)
    if shown:
        printer.claims(shown)
    else:
        printer.line(f"No claims in {rooms_name(wanted)}.")
    if wanted == ALL_ROOMS:
        return
    if (others := len(board_call(port, "claims", query={"room": ALL_ROOMS})["claims"]) - len(shown)) > 0:
        printer.line(f"{counted(others, 'claim')} in other rooms: --all shows them.", "dim")


def _claim(op: str, key: str, length: str, room: str | None, name: str, node_port: int | None, *, json: bool) -> None:
    """Raises EnvironmentFailure if the claim was not granted, with who holds it and until when."""
    from meshllm.cli.board_calls import board_call
    from meshllm.cli.console_client import console_port

    body: dict[str, object] = {"key": key, "op": op, "name": name}
    if length:
        body["seconds"] = _seconds(length)
    body["room"] = room_here() if room is None else room
    answer = board_call(console_port(node_port), "claim", body)
    if json:
        _write_json(answer)
        if not answer["granted"]:
            raise typer.Exit(1)
        return
    if not answer["granted"]:
        raise _not_granted(op, key, str(body["room"]), answer["holder"])
    typer.echo(_granted(op, key, str(body["room"]), answer["holder"]))
    if answer["replaced"]:
        typer.echo(f"Replaced in the key before it was told: {answer['replaced']}.")


def _granted(op: str, key: str, room: str, holder: dict[str, Any] | None) -> str:
    import time

    from meshllm.cli.board_view import left, room_name
    from meshllm.cli.last_seen import clock_text
    from meshllm.util.format import printable

    what = f"{printable(holder['key'] if holder else key)} in {room_name(room)}"
    if op == "release" or holder is None:
        return f"Your claim of {what} has ended."
    now, until = time.time(), holder["until"]  # noqa: TID251 - for display
    return f"You hold {what} until {clock_text(now - until)} ({left(until, now)}). It is an agreement, not a lock."


def _not_granted(op: str, key: str, room: str, holder: dict[str, Any] | None) -> EnvironmentFailure:
    import time

    from meshllm.cli.board_view import age, left, room_name, writer
    from meshllm.util.format import printable, shell_word

    what = f"{printable(key)} in {room_name(room)}"
    if holder is None:
        claim_it = f"Claim it: mesh-llm blackboard claim {shell_word(printable(key))}"
        return EnvironmentFailure(
            f"You have no claim of {what}.",
            advice=claim_it
            if op == "renew"
            else "It may have ended. 'mesh-llm blackboard claims' lists who is on what.",
        )
    now = time.time()  # noqa: TID251 - for display
    question = f'mesh-llm blackboard --to {shell_word(printable(holder["name"]))} "QUESTION: ..."'
    return EnvironmentFailure(
        f"{what} is held by {writer(holder)}: claimed {age(holder['since'], now)}, "
        f"ends in {left(holder['until'], now)}.",
        advice=f"Work on something else, or ask there: {question}",
    )


def _seconds(text: str) -> int:
    """The length of a claim. Raises UsageError."""
    from meshllm.core.board.entries import MAX_CLAIM_SECONDS

    found = re.fullmatch(r"([0-9]{1,5})\s*(s|m|min|h)", text.strip().lower())
    seconds = int(found[1]) * {"s": 1, "m": MINUTE, "min": MINUTE, "h": 60 * MINUTE}[found[2]] if found else 0
    if not 1 <= seconds <= MAX_CLAIM_SECONDS:
        raise UsageError(
            f"--for {text!r} is not a length of a claim.",
            advice=f"Give a number and s, m or h, at most {MAX_CLAIM_SECONDS // 3600}h: 30m.",
        )
    return seconds
