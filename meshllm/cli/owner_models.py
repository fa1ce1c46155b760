"""`mesh-llm load` and `mesh-llm drop`: the owner changes what a running node serves."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from meshllm.cli.console_client import console_port
from meshllm.cli.engines import Port, cells, engine_rows, state_text, status_of
from meshllm.cli.start_command import absolute_file
from meshllm.errors import EnvironmentFailure
from meshllm.util.format import counted

ModelName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="As --model takes it: a name, org/repo:QUANT, or the path of a GGUF file."),
]
# How often the node is asked for the progress. A name may have to be looked up at the hub.
ASK_SECONDS = 0.5
LOOK_UP_SECONDS = 60.0


def load(
    model: ModelName,
    node_port: Port = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until the model answers.")] = False,
) -> None:
    """Serve a further model on the running node. It is downloaded if missing; Ctrl-C leaves the node loading it."""
    from meshllm.cli.members import call

    port = console_port(node_port)
    begun = call(port, "POST", "/api/models/load", {"model": absolute_file(model)}, within=LOOK_UP_SECONDS)
    if begun["serves"]:
        typer.echo(f"{begun['model']} is served already.")
    elif no_wait:
        typer.echo(f"{begun['model']} is being loaded. 'mesh-llm ps' shows the progress.")
    else:
        _follow(port, begun)


def drop(model: ModelName, node_port: Port = None) -> None:
    """Stop serving a model on the running node, once its answers have ended.

    The node does not take it again for the mesh for 24 hours; 'mesh-llm load' brings it back.
    """
    from meshllm.cli.members import call

    port = console_port(node_port)
    name = call(port, "POST", "/api/models/drop", {"model": absolute_file(model)}, within=LOOK_UP_SECONDS)["model"]
    typer.echo(f"{name} is dropped: answers in progress end, new requests go to other nodes.")


def _has_failed(row: dict[str, Any]) -> bool:
    """Whether a model failed, or its download did: the node tries that again, but at first it is for the owner."""
    return row["phase"] == "failed" or (row["phase"] == "fetching" and bool(row["reason"]))


def _follow(port: int, begun: dict[str, Any]) -> None:
    """Show the progress until the model answers. Raises EnvironmentFailure if it cannot be served."""
    shown, rewrite = "", sys.stdout.isatty()
    while True:
        status = status_of(port)
        row = next((row for row in engine_rows(status) if row["model"] == begun["model"]), None)
        if row is None and status["snapshot"] > begun["snapshot"]:
            raise EnvironmentFailure(f"{begun['model']} was dropped meanwhile.")
        if row is not None and row["loaded"]:
            break
        if row is not None and _has_failed(row) and status["snapshot"] > begun["snapshot"]:
            if rewrite and shown:
                typer.echo()
            retried = f" 'mesh-llm drop {begun['model']}' ends that." if row["phase"] != "failed" else ""
            raise EnvironmentFailure(
                f"{begun['model']} cannot be served: {row['reason'] or 'see mesh-llm logs'}",
                advice=f"{row['advice']}{retried}",
            )
        text = state_text(row) if row is not None else "waiting"
        stage = text if rewrite else text.rstrip("0123456789% ")
        if stage != shown:
            typer.echo(f"\r\033[K{begun['model']}: {text}" if rewrite else f"{begun['model']}: {text}", nl=not rewrite)
            shown = stage
        time.sleep(ASK_SECONDS)
    typer.echo("\r\033[K" if rewrite else "", nl=False)
    _, _, memory, slots, _, _, context, *_ = cells(row)
    count = counted(int(slots.partition("/")[2] or 0), "slot")
    typer.echo(f"{begun['model']} is served: {memory}, {count}, context {context}.")
