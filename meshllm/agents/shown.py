"""A setup as text, for `--print` and for docs/agents.md. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence

from meshllm.agents.description import FileStep, Setup
from meshllm.agents.filling import AGENT_KEY_VARIABLE, Values, fill, written


def variables(setup: Setup, values: Values) -> dict[str, str]:
    """The variables that a start sets; a table becomes JSON."""
    filled = {name: fill(value, values) for name, value in setup.env.items()}
    known = {name: value for name, value in filled.items() if value is not None}
    key = {AGENT_KEY_VARIABLE: values.key} if values.key else {}
    return {name: json.dumps(one) if isinstance(one, dict) else str(one) for name, one in known.items()} | key


def arguments(setup: Setup, values: Values, more: Sequence[str]) -> list[str]:
    """The arguments that a start gives to the agent; `more` are those of the user."""
    given = list(more or setup.command)
    last = setup.last if given and given[0] in setup.last_for else ()
    return [*map(str, fill(list(setup.argv), values)), *given, *map(str, fill(list(last), values))]


def start_lines(setup: Setup, values: Values, unset: Iterable[str], program: str, more: Sequence[str]) -> list[str]:
    """What a start does to the environment, and the command, for a shell."""
    lines = [f"unset {name}" for name in unset]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables(setup, values).items()]
    return [*lines, shlex.join([program, *arguments(setup, values, more)])]


def file_lines(step: FileStep, values: Values, path: Callable[[FileStep], str]) -> list[str]:
    """A file and its content, or what is added to it."""
    if step.content is not None:
        return [f"# {path(step)}", *written(fill(step.content, values), step.format).splitlines()]
    lines = [f"# added to {path(step)}"]
    for merge in step.merges:
        at = ".".join(fill(list(merge.at), values))
        lines += f"{at}: {written(fill(merge.value, values), 'json')}".splitlines()
    return lines
