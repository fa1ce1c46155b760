"""`scripts/bench COMMAND`: runs a measurement."""

from __future__ import annotations

import argparse
import signal
import sys
from types import FrameType

from . import (
    agents,
    beside,
    board,
    console,
    demand,
    engine,
    expel,
    gateway,
    memory,
    mesh,
    models,
    schemas,
    soak,
    speculation,
    split,
    split_engine,
    split_restarts,
    start,
    swarm,
)
from .native import BenchError

_COMMANDS = {
    "gateway": (
        gateway,
        "gateway in front of a fast fake server: added latency, requests/s, events/s, CPU; against nginx",
    ),
    "engine": (engine, "real model: tokens/s and time to first token, directly and through the gateway"),
    "agents": (agents, "three coding agents at work: time against llama-server's defaults, tokens computed again"),
    "beside": (beside, "stream beside a long prompt of another caller: tokens meanwhile, longest gap"),
    "board": (board, "blackboard at its bounds: search, random queries, kills while posting, a flood"),
    "memory": (memory, "predicted memory of models against allocated and used memory"),
    "mesh": (mesh, "model on another node: joining, added latency, tokens/s, idle nodes, loss of a host"),
    "expel": (expel, "expelled member of a mesh of real daemons: seconds until it is out of every table and link"),
    "console": (console, "console page in a browser: size, first paint, a changing mesh of 300 nodes"),
    "models": (models, "all about models in one run: downloads, memory, swarm, speculative decoding"),
    "schemas": (schemas, "public test suite of JSON Schema: every answer validates, or the request was refused"),
    "speculation": (speculation, "speculative decoding against none: repetitive and other text"),
    "swarm": (swarm, "model file from three peers against plain TLS; cost of uploading for a seeder's own replies"),
    "demand": (
        demand,
        "models that come with demand: a killed host, a first request, memory, eviction, a busy host, idle cost",
    ),
    "split": (split, "model split over daemons: speed, loading, bytes, losses; against stock RPC and the link"),
    "split-engine": (
        split_engine,
        "model split over machines, engine only: speed, loading and bytes; against stock RPC",
    ),
    "split-restarts": (
        split_restarts,
        "host and worker of a split restarted at random distances: time until it serves",
    ),
    "soak": (soak, "three daemons under steady requests: memory and file descriptors must stay flat"),
    "start": (start, "--help, start, time until a model is ready; memory and CPU of an idle daemon"),
}


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # leaves the `with` blocks, which stop the children


def main() -> int:
    """Parse the command line and run. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measurements. Each prints ratios to a baseline of the same run."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, caption) in _COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=caption, description=caption))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGHUP, _terminated)
    try:
        code: int = _COMMANDS[options.command][0].run(options)
        return code
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
