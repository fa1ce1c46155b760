"""A command line whose help says of a flag what it does, and not that it is a `<bool>`.

Law: only what help shows is changed; what is understood stays Typer's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Command(TyperCommand):
    """A command whose flags have no type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, that of the help with them."""
        return _without_types(super().get_params(ctx))


class _Group(TyperGroup):
    """The same for a command that has others."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, that of the help with them."""
        return _without_types(super().get_params(ctx))


def _without_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


class Commands(typer.Typer):
    """Typer, with such commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[_Function], _Function]:
        """See Typer."""
        return super().command(name, cls=_Command, **options)
