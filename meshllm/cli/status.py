"""`mesh-llm status`: asks a running node's console, and prints what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshllm.errors import NotRunning

if TYPE_CHECKING:
    from rich.table import Table

DEADLINE_SECONDS = 5.0
MAX_STATUS_BYTES = 16 << 20
STYLES = {"serving": "green", "failed": "bold red", "restarting": "yellow"}


def show(port: int | None, *, as_json: bool) -> None:
    """Print the status of the node whose console is at `port`, or of the one of MESH_LLM_HOME. Raises NotRunning."""
    import orjson
    import typer

    text = fetch(_port(port))
    if as_json:
        typer.echo(text.decode())
        return
    from rich.console import Console

    try:
        told = orjson.loads(text)
        table = _models(told)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise NotRunning(
            "What answered there is not the mesh-llm of this version.", advice="Restart it, or update this one."
        ) from error
    console = Console()
    console.print(f"[bold]mesh-llm {told['version']}[/] on {told['name']}, process {told['pid']}", highlight=False)
    console.print(f"API {told['api']}   console {told['console']}   up {_duration(told['uptime_seconds'])}")
    engine = told["engine"]
    console.print(f"engine {engine['phase']} {engine['version']} {engine['reason']} {engine['advice']}".rstrip())
    if told["models"]:
        console.print(table)
    for backend in told["backends"]:
        state = ", ".join(backend["models"]) if backend["healthy"] else f"away: {backend['reason']}"
        console.print(f"backend {backend['url']}: {state}", highlight=False)
    if not told["models"] and not told["backends"]:
        console.print("It serves nothing. Start it with --model NAME to change that.")


def _port(port: int | None) -> int:
    if port is not None:
        return port
    from meshllm import paths
    from meshllm.daemon import instance

    running = instance.read(paths.home())
    if running is None:
        raise NotRunning(
            f"No mesh-llm runs with the home {paths.home()}.",
            advice="Start one with 'mesh-llm --model NAME', or name another's console with --console PORT.",
        )
    return running.console


def fetch(port: int) -> bytes:
    """`GET /api/status` of the console at `port`. Raises NotRunning."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    try:
        connection.request("GET", "/api/status")
        response = connection.getresponse()
        text = response.read(MAX_STATUS_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise NotRunning(
            f"No mesh-llm answers on port {port}: {error or type(error).__name__}.",
            advice="Is it running? 'mesh-llm doctor' shows who uses which port.",
        ) from error
    finally:
        connection.close()
    if response.status != 200:
        raise NotRunning(f"What answers on port {port} is not a mesh-llm console (status {response.status}).")
    return text


def _models(told: dict[str, Any]) -> Table:
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
            model["name"],
            f"[{STYLES.get(model['phase'], 'dim')}]{state}[/]",
            str(engine["slots"]) if engine else "",
            str(engine["context_length"]) if engine else "",
            f"{engine['memory'] >> 20} MiB" if engine else "",
            str(model["restarts"]),
            f"{busy['active']}+{busy['waiting']}" if busy else "",
        )
        if model["reason"]:
            table.add_row("", f"[dim]{model['reason']} {model['advice']}[/]")
    return table


def _duration(seconds: float) -> str:
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
