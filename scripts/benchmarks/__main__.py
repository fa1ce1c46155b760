"""`scripts/bench WHAT`: dispatches to the measurements."""

from __future__ import annotations

import argparse
import signal
import sys
from types import FrameType

from . import console, engine, gateway, memory, mesh, models, soak, speculation, split, split_engine, start, swarm
from .native import BenchError

_COMMANDS = {
    "gateway": (gateway, "the gateway before a fast fake server: added time, requests/s, events/s, CPU; against nginx"),
    "engine": (engine, "a real model: tokens/s and time to the first token, direct and through the gateway"),
    "memory": (memory, "what models were said to need, against what the engine allocates and then uses"),
    "mesh": (mesh, "what a model on another node costs: joining, added time, tokens/s, idle nodes, a host that dies"),
    "console": (console, "the console's page in a browser: size, first paint, a mesh of 300 nodes that changes"),
    "models": (models, "everything about models in one run: downloads, memory, the swarm, guessing ahead"),
    "speculation": (speculation, "tokens guessed ahead against none: text that repeats, and text that does not"),
    "swarm": (swarm, "a model file from three peers against plain TLS, and what giving costs a giver's answers"),
    "split": (split, "a model that daemons carry together: speed, load, bytes, losses; against stock RPC and the wire"),
    "split-engine": (
        split_engine,
        "a model on several machines, engine alone: speed, load and bytes; against the stock RPC",
    ),
    "soak": (soak, "three daemons under steady requests: memory and file descriptors must stay flat"),
    "start": (start, "--help, start, time to a ready model, idle memory and CPU of the daemon"),
}


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # unwinds the `with` blocks that stop the children


def main() -> int:
    """Parse and run; the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measurements that print ratios, not verdicts of tests."
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
