"""Typer with two changes: help shows no `<bool>` behind a flag, and old spellings of options are still accepted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Accepted until the next version: old option -> its name now. For the start of a node, and for commands that ask one.
START_RENAMED = {
    "--share-rate": "--upload-limit",
    "--share-models": "--upload",
    "--no-share-models": "--no-upload",
}
NODE_RENAMED = {"--console": "--node-port"}


def replace_renamed(arguments: list[str], renamed: Mapping[str, str]) -> list[str]:
    """`arguments` with the options in `renamed` spelled as now; each old spelling is reported once on stderr."""
    found: list[str] = []
    reported: set[str] = set()
    for index, argument in enumerate(arguments):
        if argument == "--":
            return found + arguments[index:]
        name, equals, value = argument.partition("=")
        new = renamed.get(name)
        if new is not None and name not in reported:
            reported.add(name)
            print(f"mesh-llm: {name} is now {new}; the old name will be removed.", file=sys.stderr)  # noqa: T201
        found.append(argument if new is None else f"{new}{equals}{value}")
    return found


class _Command(TyperCommand):
    """A command whose flags have no type in help. `renamed` is set by `Commands.command`."""

    renamed: Mapping[str, str] = {}

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, the help option included."""
        return _without_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, with old spellings replaced."""
        return super().parse_args(ctx, replace_renamed(args, self.renamed))


class _NodeCommand(_Command):
    """A command that asks a running node."""

    renamed = NODE_RENAMED


class _Group(TyperGroup):
    """The same for a command that has sub-commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, the help option included."""
        return _without_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, with old spellings replaced."""
        return super().parse_args(ctx, replace_renamed(args, START_RENAMED))


def _without_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


class Commands(typer.Typer):
    """A Typer application with such commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, **options)

    def command(
        self, name: str | None = None, *, asks_node: bool = False, **options: Any
    ) -> Callable[[_Function], _Function]:
        """See typer.Typer. `asks_node`: the command takes `--node-port`, and its old spelling `--console`."""
        return super().command(name, cls=_NodeCommand if asks_node else _Command, **options)
