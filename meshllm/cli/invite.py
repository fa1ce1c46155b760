"""`mesh-llm invite`: asks the running node for an invite, and prints it alone on a line."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from meshllm.cli.console_client import ask, console_port, not_a_console
from meshllm.errors import EnvironmentFailure, NotRunning

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
# What should be good for longer should be good for ever; the console refuses more, too.
MAX_SECONDS = 10 * 366 * 86_400


def invite(
    console: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="PORT", help="Console port of the node to ask.")
    ] = None,
    expires: Annotated[
        str, typer.Option(metavar="TIME", help="How long it is good for: 30m, 2h, 7d. Without it, for ever.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="As JSON, with the time it expires.")] = False,
) -> None:
    """Print an invite into the mesh of the node that runs here. Who has it can join: hand it on in private."""
    told = fetch(console_port(console), seconds(expires))
    if json:
        import orjson

        typer.echo(orjson.dumps(told).decode())
    else:
        typer.echo(told["invite"])


def seconds(text: str) -> int:
    """A duration in words of the command line, in seconds; 0 for an empty text. Raises typer.BadParameter."""
    if not text:
        return 0
    found = re.fullmatch(r"([0-9]{1,9})\s*([smhdw])", text.strip().lower())
    length = int(found[1]) * UNIT_SECONDS[found[2]] if found else 0
    if not 0 < length <= MAX_SECONDS:
        raise typer.BadParameter(f"{text!r} is no length of time. Give a number and s, m, h, d or w: 30m, 2h, 7d.")
    return length


def fetch(port: int, length: int) -> dict[str, str | int]:
    """An invite that is good for `length` seconds (0: for ever), from the console at `port`: `invite` and `expires`.

    Raises NotRunning if no console answers, EnvironmentFailure if the node has no invite to give (a client, say).
    """
    import orjson

    body = orjson.dumps({"expires": length})
    # The header keeps web pages away: a page cannot send it to another origin.
    headers = {"x-mesh-llm": "invite", "content-type": "application/json"}
    status, text = ask(port, "POST", "/api/invite", body=body, headers=headers)
    try:
        told = orjson.loads(text)
        if status == 200:
            return {"invite": str(told["invite"]), "expires": int(told["expires"])}
        words = str(told["error"]["message"])
    except (KeyError, TypeError, ValueError) as error:
        # The answer is not repeated: it may hold half an invite.
        raise not_a_console(port, status) from error
    if status == 409:
        raise EnvironmentFailure(f"The node gives no invite: {words}")
    raise NotRunning(f"The console on port {port} did not answer as it should (status {status}): {words}")
