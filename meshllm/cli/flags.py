"""Typer with two changes: help shows no `<bool>` behind a flag, and old spellings of options are still accepted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from meshllm.errors import UsageError

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Accepted until the next version: old option -> its name now. For the start of a node, and for commands that ask one.
START_RENAMED = {
    "--share-rate": "--upload-limit",
    "--upload": "--share=known",
    "--no-upload": "--share=none",
    "--share-models": "--share=known",
    "--no-share-models": "--share=none",
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


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A sub-command of another module, imported when it is called or when help lists it: the start of a node then
    loads none of them. `attribute` is a function, or a `Commands` object for a command with sub-commands; with an
    `argument`, a function that makes the command's function from it."""

    module: str
    attribute: str
    asks_node: bool = False
    argument: str = ""

    def load(self, name: str) -> Any:
        """The click command."""
        target = getattr(import_module(self.module), self.attribute)
        if self.argument:
            target = target(self.argument)
        if isinstance(target, typer.Typer):
            command: Any = typer.main.get_group(target)
        else:
            single = Commands(add_completion=False)
            single.command(name, asks_node=self.asks_node)(target)
            command = typer.main.get_command(single)
        command.name = name
        return command


class _Group(TyperGroup):
    """The same for a command that has sub-commands, some of them loaded late."""

    lazy: Mapping[str, LazyCommand] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all sub-commands."""
        return [*super().list_commands(ctx), *(name for name in self.lazy if name not in self.commands)]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The sub-command that `args` begin with. For an unknown one, all are loaded: the error suggests a name."""
        if args and args[0] not in self.list_commands(ctx):
            for name in self.lazy:
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The sub-command, imported if need be; None if there is none of that name."""
        if cmd_name in self.lazy and cmd_name not in self.commands:
            self.commands[cmd_name] = self.lazy[cmd_name].load(cmd_name)
        return super().get_command(ctx, cmd_name)

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, the help option included."""
        return _without_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, with old spellings replaced."""
        return super().parse_args(ctx, replace_renamed(args, START_RENAMED))


class _TextGroup(_Group):
    """A command with sub-commands that takes one text, too: where the first word is no sub-command, the words are the
    text and options, in any order."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters; before a sub-command without the text, which would take its name."""
        found = super().get_params(ctx)
        if not ctx.meta.get(_NAMES_COMMAND):
            return found
        return [parameter for parameter in found if isinstance(parameter, TyperOption)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse. Raises UsageError for words behind the text."""
        if args and args[0] in self.list_commands(ctx):
            ctx.meta[_NAMES_COMMAND] = True
            return super().parse_args(ctx, args)
        ctx.allow_interspersed_args = True
        rest = super().parse_args(ctx, args)
        if ctx._protected_args:
            raise UsageError("The text has several words.", advice='Put it in quotes: "..."')
        return rest


# In `Context.meta` of a `_TextGroup`: the first word is the name of a sub-command.
_NAMES_COMMAND = "meshllm.names_command"


def _without_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


class Commands(typer.Typer):
    """A Typer application with such commands. `takes_text`: see `_TextGroup`."""

    def __init__(
        self, lazy: Mapping[str, LazyCommand] | None = None, *, takes_text: bool = False, **options: Any
    ) -> None:
        group = _TextGroup if takes_text else _Group
        super().__init__(cls=type("_LazyGroup", (group,), {"lazy": lazy}) if lazy else group, **options)

    def command(
        self, name: str | None = None, *, asks_node: bool = False, **options: Any
    ) -> Callable[[_Function], _Function]:
        """See typer.Typer. `asks_node`: the command takes `--node-port`, and its old spelling `--console`."""
        return super().command(name, cls=_NodeCommand if asks_node else _Command, **options)
