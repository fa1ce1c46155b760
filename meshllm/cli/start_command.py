"""The command that started this node, for a shell: what the page and the terminal offer for copying runs as it stands.

Invariants: no invite is in it (a node remembers its mesh). File names are absolute, so that it runs in any folder; the
folders of `MESH_LLM_HOME` and its like are set in front of it, so that it means the same node in any terminal.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from meshllm.daemon.settings import StartCommand

# `scripts/mesh-llm` sets it to its own path; what it starts is a program of the virtual environment.
PROGRAM_VARIABLE = "MESH_LLM_PROGRAM"
SCRIPT = Path("scripts", "mesh-llm")
FOLDERS = ("MESH_LLM_HOME", "MESH_LLM_MODELS", "MESH_LLM_CACHE")
SCRIPT_FOLDERS = ("MESH_LLM_VENV",)
JOIN = "--join"
# Options whose value may be the name of a file.
FILES = ("--model", "--draft", "--chat-template")


def start_command(argv: Sequence[str], environment: Mapping[str, str]) -> StartCommand:
    """The command of a process with these arguments (`sys.argv`) in the current folder."""
    script = Path(environment.get(PROGRAM_VARIABLE, ""))
    by_script = script.is_absolute() and os.access(script, os.X_OK)
    words = (str(script),) if by_script else _program(argv[0])
    names = (*FOLDERS, *SCRIPT_FOLDERS) if by_script else FOLDERS
    folders = [f"{name}={shlex.quote(_absolute(environment[name]))}" for name in names if environment.get(name)]
    program = " ".join([*folders, shlex.join(words)])
    return StartCommand(
        program=program,
        arguments=tuple(_arguments(argv[1:])),
        elsewhere=str(SCRIPT) if by_script and script.parts[-2:] == SCRIPT.parts else "mesh-llm",
    )


def _program(started: str) -> tuple[str, ...]:
    """The words that run the program: its name if a shell finds it, else its path."""
    path = Path(started).absolute()
    if path.suffix == ".py":  # python -m
        return (sys.executable, "-P", "-m", "meshllm.cli.program")
    found = shutil.which("mesh-llm")
    return ("mesh-llm",) if found is not None and Path(found).absolute() == path else (str(path),)


def _arguments(given: Sequence[str]) -> Iterator[str]:
    """The arguments without invites, and with absolute file names."""
    rest = iter(given)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option == JOIN:
            if not equals:
                next(rest, None)
        elif option in FILES and equals:
            yield f"{option}={absolute_file(value)}"
        elif option in FILES:
            yield option
            yield from map(absolute_file, islice(rest, 1))
        else:
            yield argument


def absolute_file(value: str) -> str:
    """An existing file by its absolute name; anything else is the name of a model."""
    try:
        return _absolute(value) if Path(value).expanduser().is_file() else value
    except (OSError, ValueError):
        return value


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
