"""Which node an owner means by a name or the beginning of an id."""

from __future__ import annotations

from collections.abc import Mapping

from meshllm.errors import UsageError

# So many hexadecimal digits are the beginning of an id and no name: a node that is called so would take the place of
# the one that is meant. Fewer are a name and no id: the ids of a few nodes begin with most short words of such digits.
ID_DIGITS = 8


def named_node(wanted: str, names: Mapping[str, str]) -> str:
    """The one id (hexadecimal) of `names` (names by id) that `wanted` means: a name, an id or the beginning of one.

    Raises UsageError. A member chooses its name, so that no name counts where `wanted` looks like an id.
    """
    is_id = len(wanted) >= ID_DIGITS and not set(wanted.lower()) - set("0123456789abcdef")
    if is_id:
        found = [node for node in names if node.startswith(wanted.lower())]
    else:
        found = [node for node, name in names.items() if wanted and name == wanted]
    if len(found) == 1:
        return found[0]
    ids = ", ".join(node[:10] for node in found[:4])
    raise UsageError(
        f"{len(found)} members have {'an id that begins with' if is_id else 'the name'} {wanted!r}"
        f"{': ' if ids else ''}{ids}.",
        advice=f"'mesh-llm members' lists the ids. Give the first 10 digits of one ({ID_DIGITS} at least).",
    )
