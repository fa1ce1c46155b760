"""`mesh-llm status`: fetches the status of a running node from its console and prints it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from meshllm.cli.console_client import ask, console_port, not_a_console
from meshllm.cli.last_seen import away_text, clock_text
from meshllm.cli.split_text import split_lines, worker_lease_line
from meshllm.core.serving.demand_text import dropped_text
from meshllm.errors import NotRunning
from meshllm.util.format import counted, gigabytes, printable, printable_json, printable_message, whole_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MODEL_STYLES = {"serving": "green", "failed": "bold red", "restarting": "yellow"}
PEER_STYLES = {"alive": "green", "suspect": "yellow", "dead": "bold red", "left": "dim", "unverified": "dim"}
# Peers are listed in this order of their status; of a large mesh only the first MAX_PEERS.
PEER_ORDER = ("alive", "suspect", "unverified", "left", "dead")
MAX_PEERS = 60
# The heading of the memory that engine processes take now, and with all slots and caches full.
NOW_OF_MOST = "memory (now of max)"
# Members that are away, with a line each.
MAX_AWAY = 8
# Models of the mesh's demand, with a line each.
MAX_DEMAND = 12
# Nodes with a line about what they do next, and what is worth one.
MAX_PLANS = 12
TOLD_ACTS = ("takes", "follows", "loads", "moves", "last host")


def show(port: int | None, *, as_json: bool) -> None:
    """Print the status of the node whose console is at `port`, or of the node of MESH_LLM_HOME. Raises NotRunning."""
    import orjson
    import typer

    text = fetch(console_port(port))
    if as_json:
        typer.echo(printable_json(text.decode()))
        return
    from rich.console import Console

    try:
        status = _cleaned(orjson.loads(text))
        models, peers, memory = _model_table(status), _peer_table(status), _memory_lines(status["machine"])
        demand, outlook = _demand_table(status["mesh"]), demand_lines(status)
    except (KeyError, TypeError, ValueError) as error:
        raise NotRunning(
            "The status of the node has the format of another mesh-llm version.",
            advice="Restart the node after an update.",
        ) from error
    console = Console()
    console.print(f"[bold]mesh-llm {status['version']}[/] on {status['name']}, pid {status['pid']}", highlight=False)
    console.print(f"API {status['api']}   console {status['console']}   up {whole_duration(status['uptime_seconds'])}")
    if status["stopping"]:
        active = sum(load["active"] for load in status["load"])
        waits = f" It waits for {counted(active, 'answer')} to end, some seconds at most." if active else ""
        console.print(f"This node is stopping.{waits}", style="yellow", highlight=False)
    engine = status["engine"]
    if engine["phase"] != "unknown":  # no model has needed the engine yet
        line = f"engine {engine['phase']} {engine['version']} {engine['reason']} {engine['advice']}"
        _print_plain(console, line.rstrip())
    if status["read_only"]:
        _print_plain(console, "Only a part of the status: for all of it, set MESH_LLM_HOME to the home of that node.")
    for notice in status.get("notices", ()):
        _print_plain(console, f"Note: {notice}")
    for line in memory:
        _print_plain(console, line)
    if line := _sandbox_line(status["sandbox"]):
        _print_plain(console, line)
    if status["models"]:
        console.print(models)
    for model in status["models"]:
        _print_model(console, model)
    for line in _split_lines(status):
        _print_plain(console, line)
    for backend in status["backends"]:
        state = ", ".join(backend["models"]) if backend["healthy"] else f"unavailable: {backend['reason']}"
        _print_plain(console, f"backend {backend['url']}: {state}")
    if not (status["models"] or status["backends"] or status["worker_lease"]) and (
        status["mesh"] is None or status["mesh"]["role"] != "client"
    ):
        console.print("No model is served. Serve one: mesh-llm load NAME", highlight=False)
    if status["mesh"] is None:
        _print_plain(console, f"Running without a mesh: {status['mesh_reason']}")
        for line in outlook:
            _print_plain(console, line)
        return
    _print_mesh(console, status["mesh"], status["mesh_reason"])
    for line in _sharing_lines(status["sharing"]) if status["sharing"] is not None else []:
        _print_plain(console, line)
    if peers.row_count:
        console.print(peers)
    if demand.row_count:
        console.print(demand)
    for line in outlook:
        _print_plain(console, line)


def fetch(port: int) -> bytes:
    """`GET /api/status` of the console at `port`. Raises NotRunning."""
    status, text = ask(port, "GET", "/api/status")
    if status != 200:
        raise not_a_console(port, status)
    return text


def notices_of_running(port: int) -> list[str]:
    """What the node whose console is at `port` tells its owner; nothing where it does not answer."""
    import orjson

    try:
        return [printable_message(str(notice)) for notice in orjson.loads(fetch(port)).get("notices", ())]
    except (NotRunning, ValueError, AttributeError, TypeError):
        return []


def speculation_text(speculation: dict[str, Any]) -> str:
    """Speculative decoding of a model in one line: kind, acceptance, and why there is no draft model."""
    kind, reason = speculation["kind"], printable(speculation["reason"])
    if kind == "none":
        return f"speculative decoding: off ({reason})" if reason else "speculative decoding: off"
    source = f"draft model {printable(speculation['draft_model'])}" if kind == "draft" else "n-gram"
    if speculation["acceptance"] is None:
        result = "no drafts yet"
    else:
        result = f"{speculation['acceptance'] * 100:.0f}% of {speculation['draft_tokens']} draft tokens accepted"
    why = f"; no draft model: {reason}" if reason else ""
    return f"speculative decoding: {source}, {result}{why}"


def _cleaned(value: Any) -> Any:
    """The status with all its texts safe for a terminal: they come from peers, model files and other servers."""
    if isinstance(value, str):
        return printable_message(value)
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    return {name: _cleaned(one) for name, one in value.items()} if isinstance(value, dict) else value


def _print_plain(console: Console, line: str) -> None:
    """Print text from the node as it is, without markup."""
    console.print(line, highlight=False, markup=False)


def _sandbox_line(sandbox: dict[str, Any] | None) -> str:
    """How engine processes run; "" if this node has none."""
    if sandbox is None:
        return ""
    if sandbox["disabled"]:
        return "sandbox: off (--no-sandbox)"
    if sandbox["caged"]:
        return f"sandbox: on ({sandbox['layers']})"
    return f"sandbox: incomplete ({sandbox['layers'] or 'none'}), no leases of other nodes; see `mesh-llm doctor`"


def _print_model(console: Console, model: dict[str, Any]) -> None:
    """What the table of models has no column for."""
    name, engine = printable(model["name"]), model["engine"]
    if model["reason"]:
        reason = printable_message(f"{model['reason']} {model['advice']}".rstrip())
        style = MODEL_STYLES.get(model["phase"], "dim")
        console.print(f"{name}: {reason}", style=style, highlight=False, markup=False)
    if model.get("warning"):
        _print_plain(console, f"{name} has {printable_message(model['warning'])}")
    if engine and engine["placement_text"]:
        _print_plain(console, f"{name}: {printable(engine['placement_text'])}")
    if engine:
        _print_plain(console, f"{name}: {speculation_text(engine['speculation'])}")


def _split_lines(status: dict[str, Any]) -> list[str]:
    """The splits that this node hosts, and its part in the split of another host."""
    explained = {model["name"] for model in status["models"] if model["reason"]}
    splits = [split for split in status["splits"] if split["shares"] or split["model"] not in explained]
    lines = [line for split in splits for line in split_lines(split)]
    lease = status["worker_lease"]
    return lines if lease is None else [*lines, worker_lease_line(lease)]


def _memory_lines(machine: dict[str, Any]) -> list[str]:
    """The computer's memory, and one line for each accelerator."""
    free, total = gigabytes(machine["memory_available"]), gigabytes(machine["memory_total"])
    limit = ", limited by a cgroup" if machine["memory_limited"] else ""
    cap = "" if machine["cap"] is None else f" (--max-vram {gigabytes(machine['cap'])})"
    lines = [f"memory {free} of {total} free{limit}; {gigabytes(machine['offered'])} for models{cap}"]
    for device in machine["devices"] or ():
        free, total = gigabytes(device["memory_free"]), gigabytes(device["memory_total"])
        kind = "shared with main memory" if device["shared"] else "dedicated"
        unused = "" if device["used"] else "; not used"
        device_name = printable(f"{device['name']} ({device['description']})")
        lines.append(f"{device_name}: {free} of {total} free, {kind}{unused}")
    return lines


def _print_mesh(console: Console, mesh: dict[str, Any], no_mesh: str) -> None:
    """The mesh in one line, or `no_mesh` why there is none; who is away, and the join attempts while the node has not
    joined."""
    # A client has none.
    clients = "" if mesh["role"] == "client" else f", {counted(mesh['clients'], 'client')}"
    node = f"{mesh['role']} {mesh['node'][:10]}"
    if mesh["phase"] == "alone for now":
        # Machines that are switched off are no failure: their names say more than why a dial failed.
        away = [(printable(member["name"]) or member["id"][:10], member["seen_seconds"]) for member in mesh["away"]]
        text = f": {away_text(away)}" if away else ""
        _print_plain(console, f"mesh {mesh['mesh'][:10]} alone for now{text} (this is {node}{clients})")
    elif mesh["phase"] == "alone" and no_mesh:
        _print_plain(console, f"Running without a mesh: {printable(no_mesh)} (this is {node})")
    elif mesh["phase"] == "alone":
        alone = f"mesh {mesh['mesh'][:10]} has no other node yet: 'mesh-llm invite' prints an invite for one"
        _print_plain(console, f"{alone} (this is {node}{clients})")
    else:
        alive = sum(peer["status"] == "alive" for peer in mesh["peers"])
        reason = f": {printable(mesh['reason'])}" if mesh["reason"] else ""
        known = f"this is {node}, {counted(alive, 'other node')}{clients}"
        _print_plain(console, f"mesh {mesh['mesh'][:10]} {mesh['phase']}, {known}{reason}")
    for member in mesh["away"][:MAX_AWAY]:
        name, models = printable(member["name"]) or member["id"][:10], ", ".join(map(printable, member["models"]))
        served = f", served {models}" if models else ""
        _print_plain(console, f"away: {name}, last seen {clock_text(member['seen_seconds'])}{served}")
    if mesh["wants"]:
        _print_plain(console, f"requested from the mesh: {', '.join(printable(name) for name in mesh['wants'])}")
    for attempt in mesh["join_attempts"] if mesh["phase"] not in ("alone", "joined", "alone for now") else []:
        state = f"{attempt['state']}: {printable(attempt['reason'])}" if attempt["reason"] else attempt["state"]
        address = " or ".join(attempt["addresses"]) or attempt["peer"][:10]
        _print_plain(console, f"  {address}: {state}")


def _sharing_lines(sharing: dict[str, Any]) -> list[str]:
    """Downloads from peers, uploads to peers, banned peers, and files whose digest is checked."""
    lines = []
    for check in sharing["checks"]:
        lines.append(f"checking the digest of {printable(check['file'])} before it is offered: {check['percent']} %")
    for key, template in (("downloads", "downloading {what} from {name}"), ("uploads", "uploading {what} to {name}")):
        for transfer in sharing[key]:
            name = printable(transfer["name"]) or transfer["peer"][:10]
            speed = f"{transfer['bytes'] / 1e6:,.1f} MB so far, {transfer['rate'] / 1e6:,.1f} MB/s"
            transport = f" by {transfer['transport']}" if transfer["transport"] else ""
            lines.append(f"{template.format(what=printable(transfer['what']), name=name)}: {speed}{transport}")
    for peer in sharing["banned"]:
        lines.append(f"no downloads from {printable(peer['name'])} ({peer['peer'][:10]}): {printable(peer['reason'])}")
    return lines


def _memory(used: int | None, planned: int | None) -> str:
    """Memory of engine processes, what they take now and at most; "" if it is unknown."""
    if not planned:
        return ""
    return f"{gigabytes(used)} of {gigabytes(planned)}" if used else f"at most {gigabytes(planned)}"


def _requests(active: int, waiting: int) -> str:
    """Requests at a model or a node."""
    return f"{active}, {waiting} wait" if waiting else str(active)


def _milliseconds(rtt: float | None) -> list[str]:
    """A round trip; empty if it was never measured."""
    return [] if rtt is None else [f"{rtt * 1000:.1f} ms"]


def _labels(status: dict[str, Any]) -> dict[str, str]:
    """The names of nodes and clients by id, with the beginning of the id where two are equal."""
    mesh = status["mesh"]
    if mesh is None:
        return {}
    names = [(one["id"], printable(one["name"])) for one in (*mesh["peers"], *mesh["client_list"])]
    count = Counter([printable(status["name"]), *[name for _, name in names]])
    return {node: (f"{name} ({node[:10]})" if count[name] > 1 else name) if name else node[:10] for node, name in names}


def _peer_table(status: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    mesh, names = status["mesh"], _labels(status)
    for heading in ("node", "status", "rtt", "models", NOW_OF_MOST, "requests"):
        # What is too long for a narrow terminal is folded, not cut off; figures are not folded.
        wide, right = heading in ("node", "models"), heading in ("rtt", NOW_OF_MOST)
        least = 10 if wide else None
        table.add_column(
            heading, justify="right" if right else "left", overflow="fold", no_wrap=not wide, min_width=least
        )
    peers = sorted(mesh["peers"] if mesh else [], key=lambda peer: (PEER_ORDER.index(peer["status"]), peer["name"]))
    for peer in peers[:MAX_PEERS]:
        table.add_row(
            escape(names[peer["id"]]),
            f"[{PEER_STYLES[peer['status']]}]{peer['status']}[/]",
            " ".join([*_milliseconds(peer["rtt"]), peer["transport"] or ""]).rstrip(),
            escape(", ".join(printable(model) for model in peer["models"])),
            _memory(peer["memory_used"], peer["memory_planned"]),
            _requests(peer["active"], peer["waiting"]) if peer["models"] else "",
        )
    clients = mesh["client_list"] if mesh else []
    for client in clients[:MAX_PEERS]:
        table.add_row(escape(names[client["id"]]), "[dim]client[/]", *_milliseconds(client["rtt"]))
    if len(peers) > MAX_PEERS:
        table.add_row(f"[dim]and {len(peers) - MAX_PEERS} more[/]")
    return table


def _demand_table(mesh: dict[str, Any] | None) -> Table:
    """What callers ask for in the mesh, and how many nodes serve it. "asked lately": a lower bound."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("demand", "asked lately", "asked on", "started on", "hosts", "loading", "waiting"):
        left = heading == "demand"
        table.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    found = mesh["demand"] if mesh else []
    for entry in found[:MAX_DEMAND]:
        # Nodes publish levels (1, 4, 16 and so on), with their heartbeats: at least so many.
        lately = f"{entry['requests']:,}+" if entry["requests"] else ""
        numbers = (lately, counted(entry["nodes"], "node"), counted(entry["wishes"], "node"))
        hosts = str(entry["hosts"]) if entry["hosts"] else "[yellow]none[/]"
        coming = (str(entry["loading"] or ""), str(entry["waiting"] or ""))
        table.add_row(escape(printable(entry["model"])), *numbers, hosts, *coming)
    if len(found) > MAX_DEMAND:
        table.add_row(f"[dim]and {len(found) - MAX_DEMAND} more[/]")
    return table


def demand_lines(status: dict[str, Any]) -> list[str]:
    """Who takes a demanded model next or why none does, what each node does next, and what was dropped here."""
    mesh = status["mesh"] or {"demand": [], "plans": [], "node": ""}
    lines = [f"{entry['model']}: {entry['outlook']}" for entry in mesh["demand"][:MAX_DEMAND] if entry["outlook"]]
    if mesh["demand"]:
        told = [plan for plan in mesh["plans"] if plan["act"] in TOLD_ACTS or plan["node"] == mesh["node"]]
        for plan in told[:MAX_PLANS]:
            name = "this node" if plan["node"] == mesh["node"] else plan["name"] or plan["node"][:10]
            lines.append(f"next: {name} {plan['text']}")
    named = {entry["model"] for entry in mesh["demand"] if "dropped" in entry["obstacles"]}
    for dropped in status["dropped"]:
        if dropped["model"] not in named:
            lines.append(f"{dropped['model']}: {dropped_text(dropped['model'], dropped['seconds'])}")
    return [printable_message(line) for line in lines]


def _model_table(status: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    # Restarts are rare, and columns of a narrow terminal, too.
    restarts = ["restarts"] if any(model["restarts"] for model in status["models"]) else []
    for heading in ("model", "state", "slots", "context", NOW_OF_MOST, *restarts, "requests"):
        left = heading in ("model", "state", "requests")
        table.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=heading != "model")
    loads = {load["target"]: load for load in status["load"] if load["kind"] == "engine"}
    for model in status["models"]:
        engine, progress = model["engine"], model["progress"]
        state = model["phase"]
        if progress is not None and progress["fraction"] is not None:
            state += f" {progress['fraction'] * 100:.0f}%"
        load = loads.get(model["name"]) if engine else None
        table.add_row(
            escape(printable(model["name"])),
            f"[{MODEL_STYLES.get(model['phase'], 'dim')}]{state}[/]",
            str(engine["slots"]) if engine else "",
            str(engine["context_length"]) if engine else "",
            _memory(engine["memory_used"], engine["memory"]) if engine else "",
            *[str(model["restarts"]) for _ in restarts],
            _requests(load["active"], load["waiting"]) if load else "",
        )
    return table
