"""Which node an owner means by a name or the beginning of an id."""

from __future__ import annotations

from collections.abc import Mapping

from meshllm.errors import UsageError

# So many hexadecimal digits are the beginning of an id and no name: a node that is called so would take the place of
# the one that is meant.
ID_DIGITS = 8


def named_node(wanted: str, names: Mapping[str, str]) -> str:
    """The one id (hexadecimal) of `names` (names by id) that `wanted` means: a name, an id or the beginning of one.

    Raises UsageError. A member chooses its name, so that no name counts where `wanted` looks like an id, and a name
    that is the beginning of the id of another is refused.
    """
    begins = [node for node in names if wanted and node.startswith(wanted.lower())]
    is_id = len(wanted) >= ID_DIGITS and not set(wanted.lower()) - set("0123456789abcdef")
    called = [] if is_id or not wanted else [node for node, name in names.items() if name == wanted]
    found = list(dict.fromkeys(begins + called))
    if len(found) == 1:
        return found[0]
    ids = ", ".join(node[:10] for node in found[:4])
    raise UsageError(
        f"{len(found)} members have the name {wanted!r}, or an id that begins so{': ' if ids else ''}{ids}.",
        advice="'mesh-llm members' lists the ids. Give the first 10 digits of one.",
    )
