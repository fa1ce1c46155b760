"""`mesh-llm members`, `expel` and `rotate-key`: who is in the mesh, and who is not any more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from meshllm.cli.confirm import confirm
from meshllm.cli.console_client import DEADLINE_SECONDS, ask, console_port, not_a_console
from meshllm.errors import EnvironmentFailure, NodeRefused, UsageError

Port = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, metavar="PORT", help="Console port of the node to ask. Default: the one of MESH_LLM_HOME."
    ),
]
# A request that another member signs; the daemon waits less.
SIGNED_SECONDS = 30.0
# Members that an expelled one invited: their names in the output.
SHOWN_INVITED = 8
ROTATE_NODE = (
    "Give this node a new key? It gets another id and starts again, and invites that were made on it are void for ever."
)
ROTATE_MESH = "Give the mesh a new key? All invites that were made before are void for ever."
UPGRADED = (
    "This mesh was upgraded from a shared secret: a holder of any old invite can still join. "
    "Run 'mesh-llm rotate-key --mesh' once all your machines are upgraded."
)


def members(
    node_port: Port = None, json: Annotated[bool, typer.Option("--json", help="JSON, with whole ids.")] = False
) -> None:
    """List the members of the mesh: name, id, rights, since and until when, who invited them, last seen."""
    answer = call(console_port(node_port), "GET", "/api/members")
    if json:
        import orjson

        typer.echo(orjson.dumps(answer).decode())
        return
    rows = [("NAME", "ID", "RIGHTS", "SINCE", "UNTIL", "INVITED BY", "SEEN")]
    names = {row["node"]: row["name"] for row in answer["members"]}
    for row in answer["members"]:
        seen = "this node" if row["here"] else "now" if row["alive"] else _day(row["seen"])
        by = "-" if row["inviter"] == row["node"] else names.get(row["inviter"]) or row["inviter"][:10]
        rights = "all" if len(row["rights"]) == 6 else ",".join(row["rights"])
        rows.append((row["name"] or "?", row["node"][:10], rights, _day(row["since"]), _day(row["expires"]), by, seen))
    widths = [max(len(row[at]) for row in rows) for at in range(7)]
    for line in rows:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    if answer["upgraded"]:
        typer.echo(f"\n{UPGRADED}")


def expel(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name or id (8 digits or more), as in 'members'.")],
    node_port: Port = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Expel a member for ever: out of every table and link at once, and the invite that let it in is void."""
    port = console_port(node_port)
    from meshllm.core.membership.node_names import named_node

    known = {row["node"]: row for row in call(port, "GET", "/api/members")["members"]}
    row = known[named_node(node, {each: row["name"] for each, row in known.items()})]
    confirm(f"Expel {row['name'] or 'the node'} ({row['node'][:10]}) for ever?", yes=yes)
    answer = call(port, "POST", "/api/members/expel", {"node": row["node"]})
    typer.echo(f"{row['name'] or 'The node'} ({row['node'][:10]}) is expelled.")
    invited = [each for each in known.values() if each["inviter"] == row["node"] != each["node"]]
    if invited:
        named = ", ".join(f"{each['name'] or '?'} ({each['node'][:10]})" for each in invited[:SHOWN_INVITED])
        more = f" and {len(invited) - SHOWN_INVITED} more" if len(invited) > SHOWN_INVITED else ""
        typer.echo(f"Still members, invited by it: {named}{more}. Expel those that you do not know.")
    if answer["rotated"]:
        typer.echo("It held the mesh key, so the mesh has a new one: all invites that were made before are void.")


def rotate_key(
    mesh: Annotated[bool, typer.Option("--mesh", help="The key of the mesh: all invites are void.")] = False,
    node_port: Port = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give this node a new key, and so a new id; it stays the member that it is, and its old key is void everywhere.

    With --mesh: change the key of the mesh. Members get new certificates by themselves, also those that are off now.
    """
    port = console_port(node_port)
    confirm(ROTATE_MESH if mesh else ROTATE_NODE, yes=yes)
    if not mesh:
        node = call(port, "POST", "/api/node/rotate-key", within=SIGNED_SECONDS)["node"]
        typer.echo(f"This node has a new key and the id {node[:10]}; its old id is void everywhere.")
        typer.echo("It starts again with it now. Invites that were made on this node are void: make new ones.")
        return
    call(port, "POST", "/api/mesh/rotate-key")
    typer.echo("The mesh has a new key. All invites that were made before are void.")


def call(
    port: int, method: str, path: str, body: dict[str, Any] | None = None, *, within: float = DEADLINE_SECONDS
) -> Any:
    """The answer of an owner's endpoint, `within` seconds. Raises UsageError or NodeRefused with what the node says,
    EnvironmentFailure for one who is not the owner, NotRunning."""
    import orjson

    headers = {"content-type": "application/json"}
    status, text = ask(port, method, path, body=orjson.dumps(body or {}), headers=headers, within=within)
    if status == 403:
        raise EnvironmentFailure(
            f"The node with console port {port} does this for its owner only.",
            advice="Run this as the user who runs the node, with the same MESH_LLM_HOME.",
        )
    try:
        answer = orjson.loads(text)
        if status == 200:
            return answer
        message, code = str(answer["error"]["message"]), str(answer["error"]["code"])
    except (KeyError, TypeError, ValueError) as error:
        raise not_a_console(port, status) from error
    raise UsageError(message) if code == UsageError.code else NodeRefused(message)


def _day(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d")
