"""`mesh-llm invite`: asks the running node for an invite and prints it alone on a line."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from meshllm.cli.console_client import ask, console_port, not_a_console
from meshllm.errors import EnvironmentFailure, NotRunning, UsageError

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
ALL_RIGHTS = 6
# Another member may have to make the invite; the daemon waits less.
INVITE_SECONDS = 20.0
# The console refuses more, too.
MAX_SECONDS = 30 * 86_400


def invite(
    context: typer.Context,
    node_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="PORT",
            help="Console port of the node to ask. Default: the one of MESH_LLM_HOME.",
        ),
    ] = None,
    expires: Annotated[str, typer.Option(metavar="TIME", help="Validity: 30m, 2h, 7d. Default: a day.")] = "",
    guest: Annotated[
        bool, typer.Option("--guest", help="For another person: may send requests, nothing more.")
    ] = False,
    rights: Annotated[
        str, typer.Option(metavar="LIST", help="Rights: use, serve, work, host, invite, admit. Default: all.")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="For one node only; this node must be on then.")] = False,
    for_days: Annotated[
        int, typer.Option(min=0, max=3650, metavar="DAYS", help="Length of the membership. Default: 365, guests 30.")
    ] = 0,
    label: Annotated[str, typer.Option(metavar="TEXT", help="What --list calls it.")] = "",
    listing: Annotated[bool, typer.Option("--list", help="List the open invites of this node.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="With --list: also used, expired, revoked and void ones.")
    ] = False,
    revoke: Annotated[str, typer.Option(metavar="SERIAL", help="Revoke an invite.")] = "",
    json: Annotated[bool, typer.Option("--json", help="JSON, with the time of expiry (unix seconds).")] = False,
) -> None:
    """Print an invite to the mesh of the running node. It is a secret: it admits anyone who has it, for a day.

    Without --guest or --rights it is for your own machines, which may do everything, also admit others.
    """
    for name, value in (("rights", rights), ("revoke", revoke), ("expires", expires)):
        source = context.get_parameter_source(name)
        if not value.strip() and source is not None and source.name == "COMMANDLINE":
            # An unset variable of a shell must not make an invite of all rights.
            raise UsageError(f"--{name} has no value.", advice="Give a value, or leave the option out.")
    port = console_port(node_port)
    if everything and not listing:
        raise UsageError("--all has no effect without --list.", advice="Say 'mesh-llm invite --list --all'.")
    if guest and rights:
        raise typer.BadParameter("--guest and --rights exclude each other.")
    if listing or revoke:
        _manage(port, revoke, everything=everything, json=json)
        return
    names = ["use"] if guest else [name.strip() for name in rights.split(",") if name.strip()]
    wish = {"rights": names, "once": once, "days": for_days, "label": label}
    answer = fetch(port, seconds(expires), wish)
    if json:
        import orjson

        typer.echo(orjson.dumps(answer).decode())
    else:
        typer.echo(answer["invite"])
        if not names and answer["rights"] and str(answer["rights"]).count(",") < ALL_RIGHTS - 1:
            typer.echo(f"It carries only the rights that this node may give: {answer['rights']}.", err=True)


def _manage(port: int, revoke: str, *, everything: bool, json: bool) -> None:
    """List or revoke invites. `everything`: list also those that are good for nothing any more."""
    from meshllm.cli.members import call

    if revoke:
        typer.echo(f"Revoked: {call(port, 'POST', '/api/invites/revoke', {'serial': revoke})['serial']}")
        return
    known = call(port, "GET", "/api/invites")["invites"]
    shown = [row for row in known if everything or row["state"] == "open"]
    if json:
        import orjson

        typer.echo(orjson.dumps({"invites": shown}).decode())
        return
    if not shown:
        typer.echo("No invite of this node is open." if known else "This node has made no invite.")
    for row in shown:
        typer.echo(_line(row))
    if len(shown) < len(known):
        typer.echo(f"{len(known) - len(shown)} more are used, expired, revoked or void: --all lists them.", err=True)


def _line(row: dict[str, Any]) -> str:
    """An invite of the list: serial, rights, what it is good for, users, label."""
    time = datetime.fromtimestamp(row["expires"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    states = {
        "open": f"open until {time}",
        "used": f"used up, was open until {time}",
        "expired": f"expired {time}",
        "void": "void: the mesh has a new key",
    }
    rights = "all rights" if len(row["rights"]) == ALL_RIGHTS else ",".join(row["rights"])
    once = ", for one node" if row["once"] else ""
    label = f"  {row['label']}" if row["label"] else ""
    state = states.get(row["state"], row["state"])
    return f"{row['serial']}  {rights}{once}, {state}, used by {len(row['nodes'])}{label}"


def seconds(text: str) -> int:
    """Parse a duration such as `2h` into seconds; 0 for an empty text. Raises typer.BadParameter."""
    if not text:
        return 0
    found = re.fullmatch(r"([0-9]{1,9})\s*([smhdw])", text.strip().lower())
    length = int(found[1]) * UNIT_SECONDS[found[2]] if found else 0
    if not 0 < length <= MAX_SECONDS:
        raise typer.BadParameter(
            f"{text!r} is not a duration of at most 30 days. Give a number and s, m, h, d or w: 30m, 2h, 7d."
        )
    return length


def fetch(port: int, length: int, wish: dict[str, Any] | None = None) -> dict[str, str | int]:
    """An invite valid for `length` seconds (0: a day) from the console at `port`, as `invite`, `expires` and `serial`.

    `wish`: more fields of the request.

    Raises NotRunning if no console answers, EnvironmentFailure if the node cannot make invites (a client).
    """
    import orjson

    body = orjson.dumps({"expires": length, **(wish or {})})
    headers = {"content-type": "application/json"}
    status, text = ask(port, "POST", "/api/invite", body=body, headers=headers, within=INVITE_SECONDS)
    try:
        answer = orjson.loads(text)
        if status == 200:
            return {
                "invite": str(answer["invite"]),
                "expires": int(answer["expires"]),
                "serial": str(answer.get("serial", "")),
                "rights": ",".join(answer.get("rights", ())),
            }
        message = str(answer["error"]["message"])
    except (KeyError, TypeError, ValueError) as error:
        # The answer is not quoted: it may hold a part of an invite.
        raise not_a_console(port, status) from error
    if status == 409:
        raise EnvironmentFailure(
            f"No invite from the node with console port {port}: {message}",
            advice=f"'mesh-llm status --node-port {port}' shows the node's part in its mesh.",
        )
    if status == 403:
        raise EnvironmentFailure(
            f"The node with console port {port} makes invites for its owner only.",
            advice="Run this as the user who runs the node, with the same MESH_LLM_HOME.",
        )
    raise NotRunning(f"The console on port {port} answered with status {status}: {message}")
