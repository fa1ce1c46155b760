"""`mesh-llm status`: asks a running node's console, and prints what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshllm.cli.console_client import ask, console_port, not_a_console
from meshllm.cli.split_text import carried, hosted
from meshllm.errors import NotRunning
from meshllm.util.format import counted, gigabytes, printable, printable_message, whole_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STYLES = {"serving": "green", "failed": "bold red", "restarting": "yellow"}
PEER_STYLES = {"alive": "green", "suspect": "yellow", "dead": "bold red", "left": "dim", "unverified": "dim"}
# Of a large mesh, the first so many are shown: the living ones before the others.
MOST_PEERS = 60
ORDER = ("alive", "suspect", "unverified", "left", "dead")


def show(port: int | None, *, as_json: bool) -> None:
    """Print the status of the node whose console is at `port`, or of the one of MESH_LLM_HOME. Raises NotRunning."""
    import orjson
    import typer

    text = fetch(console_port(port))
    if as_json:
        typer.echo(text.decode())
        return
    from rich.console import Console

    try:
        told = orjson.loads(text)
        table, peers, memory = _models(told), _peers(told["mesh"]), _memory(told["machine"])
    except (KeyError, TypeError, ValueError) as error:
        raise NotRunning(
            "What answered there is not the mesh-llm of this version.", advice="Restart it, or update this one."
        ) from error
    console = Console()
    console.print(f"[bold]mesh-llm {told['version']}[/] on {told['name']}, process {told['pid']}", highlight=False)
    console.print(f"API {told['api']}   console {told['console']}   up {whole_duration(told['uptime_seconds'])}")
    engine = told["engine"]
    if engine["phase"] != "unknown":  # nothing has needed one yet
        words = f"engine {engine['phase']} {engine['version']} {engine['reason']} {engine['advice']}"
        console.print(words.rstrip(), highlight=False, markup=False)
    for line in memory:
        console.print(line, highlight=False, markup=False)
    if told["models"]:
        console.print(table)
    for model in told["models"]:
        name, running = printable(model["name"]), model["engine"]
        if model["reason"]:
            reason = printable_message(f"{model['reason']} {model['advice']}".rstrip())
            console.print(f"{name}: {reason}", style=STYLES.get(model["phase"], "dim"), highlight=False, markup=False)
        if running and running["fit"]:
            console.print(f"{name}: {printable(running['fit'])}", highlight=False, markup=False)
        if running:
            console.print(f"{name}: {speculation_words(running['speculation'])}", highlight=False, markup=False)
    for line in _carrying(told):
        console.print(line, highlight=False, markup=False)
    for backend in told["backends"]:
        state = ", ".join(backend["models"]) if backend["healthy"] else f"away: {backend['reason']}"
        console.print(f"backend {backend['url']}: {state}", highlight=False)
    if not (told["models"] or told["backends"] or told["lent"]) and (
        told["mesh"] is None or told["mesh"]["role"] != "client"
    ):
        console.print("It serves nothing. Start it with --model NAME to change that.")
    if told["mesh"] is None:
        console.print(f"It is in no mesh: {told['mesh_reason']}", highlight=False, markup=False)
        return
    _print_mesh(console, told["mesh"])
    for line in _sharing(told["sharing"]) if told["sharing"] is not None else []:
        console.print(line, highlight=False, markup=False)
    if peers.row_count:
        console.print(peers)


def _carrying(told: dict[str, Any]) -> list[str]:
    """What is carried with others."""
    explained = {model["name"] for model in told["models"] if model["reason"]}
    splits = [split for split in told["splits"] if split["shares"] or split["model"] not in explained]
    lines = [line for split in splits for line in hosted(split)]
    return [*lines, carried(told["lent"])] if told["lent"] is not None else lines


def _memory(machine: dict[str, Any]) -> list[str]:
    """The computer's memory, and each accelerator's."""
    free, total = gigabytes(machine["memory_available"]), gigabytes(machine["memory_total"])
    limit = ", limited by a cgroup" if machine["memory_limited"] else ""
    cap = "" if machine["cap"] is None else f" (--max-vram {gigabytes(machine['cap'])})"
    lines = [f"memory {free} of {total} free{limit}; {gigabytes(machine['offered'])} for models{cap}"]
    for device in machine["devices"] or ():
        free, total = gigabytes(device["memory_free"]), gigabytes(device["memory_total"])
        kind = "shared with the computer" if device["shared"] else "its own"
        unused = "" if device["used"] else "; not used"
        about = printable(f"{device['name']} ({device['description']})")
        lines.append(f"{about}: {free} of {total} free, {kind}{unused}")
    return lines


def _print_mesh(console: Console, mesh: dict[str, Any]) -> None:
    """The mesh in a line, and what became of each way in while it is not joined."""
    alive = sum(peer["status"] == "alive" for peer in mesh["peers"])
    words = f"mesh {mesh['mesh'][:10]} {mesh['phase']}, this is {mesh['role']} {mesh['node'][:10]}"
    reason = f": {printable(mesh['reason'])}" if mesh["reason"] else ""
    counts = f"{counted(alive, 'other node')}, {counted(mesh['clients'], 'client')}"
    console.print(f"{words}, {counts}{reason}", highlight=False, markup=False)
    if mesh["wants"]:
        wants = ", ".join(printable(name) for name in mesh["wants"])
        console.print(f"wanted of the mesh: {wants}", highlight=False, markup=False)
    for step in mesh["steps"] if mesh["phase"] not in ("alone", "joined") else []:
        told = f"{step['state']}: {printable(step['reason'])}" if step["reason"] else step["state"]
        where = " or ".join(step["addresses"]) or step["peer"][:10]
        console.print(f"  {where}: {told}", highlight=False, markup=False)


def _sharing(sharing: dict[str, Any]) -> list[str]:
    """Model files on their way, and from whom nothing is taken any more."""
    lines = []
    for key, words in (("taking", "takes {what} from {name}"), ("giving", "gives {what} to {name}")):
        for one in sharing[key]:
            name = printable(one["name"]) or one["peer"][:10]
            speed = f"{one['bytes'] / 1e6:,.1f} MB so far, {one['rate'] / 1e6:,.1f} MB/s by {one['via']}"
            lines.append(f"{words.format(what=printable(one['what']), name=name)}: {speed}")
    for one in sharing["banned"]:
        lines.append(f"takes nothing from {printable(one['name'])} ({one['peer'][:10]}): {printable(one['reason'])}")
    return lines


def _peers(mesh: dict[str, Any] | None) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("node", "id", "status", "rtt", "by", "models", "busy"):
        table.add_column(heading, justify="right" if heading in ("rtt", "busy") else "left")
    peers = sorted(mesh["peers"] if mesh else [], key=lambda peer: (ORDER.index(peer["status"]), peer["name"]))
    for peer in peers[:MOST_PEERS]:
        table.add_row(
            escape(printable(peer["name"])),
            peer["id"][:10],
            f"[{PEER_STYLES[peer['status']]}]{peer['status']}[/]",
            "" if peer["rtt"] is None else f"{peer['rtt'] * 1000:.1f} ms",
            peer["via"],
            escape(", ".join(printable(model) for model in peer["models"])),
            f"{peer['active']}+{peer['waiting']}" if peer["models"] else "",
        )
    if len(peers) > MOST_PEERS:
        table.add_row(f"[dim]and {len(peers) - MOST_PEERS} more[/]")
    return table


def fetch(port: int) -> bytes:
    """`GET /api/status` of the console at `port`. Raises NotRunning."""
    status, text = ask(port, "GET", "/api/status")
    if status != 200:
        raise not_a_console(port, status)
    return text


def _models(told: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("model", "state", "slots", "context", "memory", "restarts", "busy"):
        table.add_column(heading, justify="left" if heading in ("model", "state") else "right")
    load = {entry["target"]: entry for entry in told["load"]}
    for model in told["models"]:
        engine, progress = model["engine"], model["progress"]
        state = model["phase"]
        if progress is not None and progress["fraction"] is not None:
            state += f" {progress['fraction'] * 100:.0f}%"
        busy = load.get(engine["socket"]) if engine else None
        table.add_row(
            escape(printable(model["name"])),
            f"[{STYLES.get(model['phase'], 'dim')}]{state}[/]",
            str(engine["slots"]) if engine else "",
            str(engine["context_length"]) if engine else "",
            gigabytes(engine["memory"]) if engine else "",
            str(model["restarts"]),
            f"{busy['active']}+{busy['waiting']}" if busy else "",
        )
    return table


def speculation_words(told: dict[str, Any]) -> str:
    """How the engine guesses ahead, and how well."""
    if told["kind"] == "none":
        return f"guesses nothing ahead: {printable(told['reason'])}"
    with_what = f"with {printable(told['draft'])}" if told["draft"] else f"from the text ({told['kind']})"
    share = "none yet" if told["acceptance"] is None else f"{told['acceptance'] * 100:.0f}% of {told['drafted']} right"
    why = f"; no draft: {printable(told['reason'])}" if told["reason"] else ""
    return f"guesses ahead {with_what}, {share}{why}"
