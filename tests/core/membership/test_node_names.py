"""A node chooses its own name: none takes the place of another node's id."""

from __future__ import annotations

import pytest

from meshllm.core.membership.node_names import named_node
from meshllm.errors import UsageError

ONE, TWO, THREE = "a1b2c3d4" + "0" * 56, "ffff0000" + "1" * 56, "cafe0000" + "2" * 56


def test_name_or_beginning_of_an_id_means_one_node() -> None:
    names = {ONE: "cellar", TWO: "", THREE: "attic"}
    assert named_node("cellar", names) == ONE
    assert named_node("A1B2", names) == ONE
    assert named_node(ONE, names) == ONE
    assert named_node("f", names) == TWO
    for wanted in ("", "nobody", "cella", ONE + "0"):
        with pytest.raises(UsageError, match=f"0 members have the name '{wanted}'"):
            named_node(wanted, names)


def test_name_never_takes_the_place_of_an_id() -> None:
    # The second node is named as the first one's id, or its beginning.
    for name in (ONE, ONE[:10], ONE[:8]):
        assert named_node(name, {ONE: "cellar", TWO: name}) == ONE
        # The meant node is not known any more: nobody else is meant.
        with pytest.raises(UsageError, match="0 members"):
            named_node(name, {TWO: name})
    with pytest.raises(UsageError, match=r"2 members .*: a1b2c3d400, ffff000011"):
        named_node("a1b", {ONE: "cellar", TWO: "a1b"})
    with pytest.raises(UsageError, match="2 members"):
        named_node("cellar", {ONE: "cellar", TWO: "cellar"})
    # Few digits can be a name.
    assert named_node("ada", {ONE: "cellar", TWO: "ada"}) == TWO
    assert named_node("cafe", {TWO: "x", THREE: "cafe"}) == THREE
