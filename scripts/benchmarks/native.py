"""Compiles the C programs (fake upstream, load generator) into the user's cache, and runs the load generator.

Invariant: a binary's name contains the digest of its source and options, so an outdated binary never runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from meshllm import paths

HERE = Path(__file__).parent
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")


class BenchError(Exception):
    """The measurement could not be made; the message says why and what to do."""


def compiled(name: str) -> Path:
    """The program made from `name.c`: built at its first use, found in the cache after that."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchError("No C compiler. On Debian or Ubuntu: apt install gcc; on macOS: xcode-select --install")
    sources = [HERE / f"{name}.c", HERE / "ready.h"]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources) + " ".join(FLAGS).encode())
    program = paths.cache() / "bench" / f"{name}-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        made = Path(scratch) / name
        result = subprocess.run(
            [compiler, *FLAGS, "-o", str(made), str(sources[0])], capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise BenchError(f"{compiler} could not compile {sources[0].name}:\n{result.stderr}")
        made.replace(program)
    return program


def load(
    to: int | Path,
    bodies: list[Path],
    *,
    connections: int = 1,
    requests: int = 0,
    seconds: float = 0.0,
    stream: bool = False,
    events: int | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """One run of load.c against a loopback port or a Unix socket; its report (times in microseconds)."""
    command = [str(compiled("load")), *(("--unix", str(to)) if isinstance(to, Path) else ("--tcp", str(to)))]
    for body in bodies:
        command += ["--body", str(body)]
    command += ["--connections", str(connections)]
    command += ["--requests", str(requests)] if requests else ["--seconds", str(seconds)]
    command += ["--stream"] if stream else []
    command += ["--fresh"] if fresh else []
    command += ["--events", str(events)] if events is not None else []
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"the load generator failed: {result.stderr.strip() or result.returncode}")
    report: dict[str, Any] = json.loads(result.stdout)
    return report
