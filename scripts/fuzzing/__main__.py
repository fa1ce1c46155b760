"""`scripts/fuzz COMMAND`: runs a fuzzer."""

from __future__ import annotations

import argparse
import signal
import sys
from types import FrameType

from . import bodies, decoders, rpc

_COMMANDS = {
    "bodies": (bodies, "the APIs of a real node, with the real engine and a small model"),
    "decoders": (decoders, "the Python decoders of bytes that peers, callers, servers, hubs and model files write"),
    "rpc": (rpc, "the patched rpc-server, native, under sanitizers"),
}


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # leaves the `with` blocks, which stop the children


def main() -> int:
    """Parse the command line and run. Returns the exit code: 0 if nothing was found."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Fuzzers. New inputs are added to the kept corpora."
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
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
