"""`mesh-llm ps`: the models of the running node: what each engine process takes and does, how long it is idle."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from meshllm.cli.console_client import console_port

Port = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, metavar="PORT", help="Console port of the node to ask. Default: the one of MESH_LLM_HOME."
    ),
]
HEADER = ("MODEL", "STATE", "MEMORY", "SLOTS", "WAITING", "TOK/S", "CONTEXT", "IDLE", "UNLOAD AT")


def ps(node_port: Port = None, json: Annotated[bool, typer.Option("--json", help="JSON.")] = False) -> None:
    """List the models of the running node: memory, busy slots, speed, how long each is idle and when it is unloaded."""
    from meshllm.util.format import printable

    rows = engine_rows(status_of(console_port(node_port)))
    if json:
        import orjson

        typer.echo(orjson.dumps({"models": rows}).decode())
        return
    if not rows:
        typer.echo("This node serves no model. Load one: mesh-llm load NAME")
        return
    for line in table([HEADER, *map(cells, rows)]):
        typer.echo(line)
    for row in rows:
        if row["reason"]:
            typer.echo(printable(f"{row['model']}: {row['reason']} {row['advice']}".rstrip()))


def status_of(port: int) -> dict[str, Any]:
    """The status of the node with that console port. Raises NotRunning."""
    import orjson

    from meshllm.cli.console_client import not_a_console
    from meshllm.cli.status import fetch

    try:
        found: dict[str, Any] = orjson.loads(fetch(port))
        engine_rows(found)
    except (KeyError, TypeError, ValueError) as error:
        raise not_a_console(port, 200) from error
    return found


def engine_rows(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The facts of each model in `status`."""
    loads = {load["model"]: load for load in status["load"] if load["kind"] == "engine"}
    rows = []
    for model in status["models"]:
        engine, load = model["engine"], loads.get(model["name"], {})
        rows.append(
            {
                "model": model["name"],
                "phase": model["phase"],
                "loaded": model["loaded"],
                "memory": engine["memory"] if engine else 0,
                "pid": engine["pid"] if engine else None,
                "slots": engine["slots"] if engine else 0,
                "active": load.get("active", 0),
                "waiting": load.get("waiting", 0),
                "tokens_per_second": load.get("tokens_per_second"),
                "context_length": engine["context_length"] if engine else 0,
                "idle_seconds": model["idle_seconds"],
                "unload_seconds": model["unload_seconds"],
                "progress": model["progress"],
                "reason": model["reason"],
                "advice": model["advice"],
            }
        )
    return rows


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    from meshllm.cli.last_seen import clock_text
    from meshllm.cli.model_text import context_text
    from meshllm.util.format import gigabytes, printable, whole_duration

    speed, idle, unload = row["tokens_per_second"], row["idle_seconds"], row["unload_seconds"]
    runs = row["slots"] > 0
    return (
        printable(row["model"]),
        state_text(row),
        gigabytes(row["memory"]) if runs else "-",
        f"{row['active']}/{row['slots']}" if runs else "-",
        str(row["waiting"]) if runs else "-",
        "-" if speed is None else f"{speed:.0f}",
        context_text(row["context_length"]) if runs else "-",
        whole_duration(idle) if idle is not None else "-",
        clock_text(-unload) if unload is not None else "-",
    )


def state_text(row: dict[str, Any]) -> str:
    """The state of a model, with its progress while it is being loaded."""
    progress = row["progress"]
    if progress is None or row["phase"] in ("serving", "failed"):
        return str(row["phase"])
    part = "" if progress["fraction"] is None else f" {progress['fraction'] * 100:.0f}%"
    return f"{progress['stage']}{part}"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """`rows` in columns."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
