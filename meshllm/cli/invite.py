"""`mesh-llm invite`: asks the running node for an invite and prints it alone on a line."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from meshllm.cli.console_client import ask, console_port, not_a_console
from meshllm.errors import EnvironmentFailure, NotRunning

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
# The console refuses more, too; an invite that should last longer needs no expiry.
MAX_SECONDS = 10 * 366 * 86_400


def invite(
    node_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="PORT",
            help="Console port of the node to ask. Default: the one of MESH_LLM_HOME.",
        ),
    ] = None,
    expires: Annotated[str, typer.Option(metavar="TIME", help="Validity: 30m, 2h, 7d. Default: no expiry.")] = "",
    json: Annotated[bool, typer.Option("--json", help="JSON, with the time of expiry (unix seconds).")] = False,
) -> None:
    """Print an invite to the mesh of the running node. The invite is a secret: it admits anyone who has it."""
    answer = fetch(console_port(node_port), seconds(expires))
    if json:
        import orjson

        typer.echo(orjson.dumps(answer).decode())
    else:
        typer.echo(answer["invite"])


def seconds(text: str) -> int:
    """Parse a duration such as `2h` into seconds; 0 for an empty text. Raises typer.BadParameter."""
    if not text:
        return 0
    found = re.fullmatch(r"([0-9]{1,9})\s*([smhdw])", text.strip().lower())
    length = int(found[1]) * UNIT_SECONDS[found[2]] if found else 0
    if not 0 < length <= MAX_SECONDS:
        raise typer.BadParameter(f"{text!r} is not a duration. Give a number and s, m, h, d or w: 30m, 2h, 7d.")
    return length


def fetch(port: int, length: int) -> dict[str, str | int]:
    """An invite valid for `length` seconds (0: no expiry) from the console at `port`, as `invite` and `expires`.

    Raises NotRunning if no console answers, EnvironmentFailure if the node cannot make invites (a client).
    """
    import orjson

    body = orjson.dumps({"expires": length})
    headers = {"content-type": "application/json"}
    status, text = ask(port, "POST", "/api/invite", body=body, headers=headers)
    try:
        answer = orjson.loads(text)
        if status == 200:
            return {"invite": str(answer["invite"]), "expires": int(answer["expires"])}
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
