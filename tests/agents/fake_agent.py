"""A program in the place of an agent: it says how it was started, and does what it is told on standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.daemons import OPEN_WAIT_SECONDS, PROGRAM

WAIT_SECONDS = OPEN_WAIT_SECONDS

SCRIPT = """#!{python}
import json, os, sys
if sys.argv[1:] == ["--version"]:
    print("{name} 1.2.3 (fake)")
    raise SystemExit
print(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "pid": os.getpid()}}), flush=True)
for line in sys.stdin:
    sys.exit(int(line))
"""


def install(folder: Path, *names: str) -> dict[str, str]:
    """Put fake agents into `folder`; returns an environment that finds them and none that is really installed."""
    folder.mkdir(exist_ok=True)
    for name in names:
        program = folder / name
        program.write_text(SCRIPT.format(python=sys.executable, name=name))
        program.chmod(0o755)
    user = folder / "home"
    user.mkdir(exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "MESH_LLM_"))}
    return env | {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(user), "MESH_LLM_HOME": str(folder / "mesh")}


def run(env: dict[str, str], *words: str, stdin: str = "0\n") -> subprocess.CompletedProcess[str]:
    """`mesh-llm` with these words, to its end; an agent that it starts ends with the status in `stdin`."""
    return subprocess.run(
        [str(PROGRAM), *words], env=env, input=stdin, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )


def start(env: dict[str, str], *words: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """A launcher in a process group of its own, and what its agent says of itself."""
    process = subprocess.Popen(
        [str(PROGRAM), *words],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def finish(process: subprocess.Popen[str]) -> int:
    """Close the pipes and wait for the end."""
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        return process.wait(WAIT_SECONDS)
