"""A node chooses its own name: none takes the place of another node's id."""

from __future__ import annotations

import pytest

from meshllm.core.membership.node_names import named_node
from meshllm.errors import UsageError

ONE, TWO, THREE = "a1b2c3d4" + "0" * 56, "ffff0000" + "1" * 56, "cafe0000" + "2" * 56


def test_name_or_beginning_of_an_id_means_one_node() -> None:
    names = {ONE: "cellar", TWO: "", THREE: "attic"}
    assert named_node("cellar", names) == ONE
    assert named_node("A1B2C3D4", names) == ONE
    assert named_node(ONE, names) == ONE
    for wanted in ("", "nobody", "cella"):
        with pytest.raises(UsageError, match=f"0 members have the name '{wanted}'"):
            named_node(wanted, names)
    with pytest.raises(UsageError, match="0 members have an id that begins with"):
        named_node(ONE + "0", names)


def test_name_never_takes_the_place_of_an_id() -> None:
    # The second node is named as the first one's id, or its beginning.
    for name in (ONE, ONE[:10], ONE[:8]):
        assert named_node(name, {ONE: "cellar", TWO: name}) == ONE
        # The meant node is not known any more: nobody else is meant.
        with pytest.raises(UsageError, match="0 members"):
            named_node(name, {TWO: name})
    same = ONE[:9] + "f" * 55
    with pytest.raises(UsageError, match=r"2 members have an id .*: a1b2c3d400, a1b2c3d40f"):
        named_node(ONE[:8], {ONE: "cellar", same: "attic"})
    with pytest.raises(UsageError, match="2 members have the name 'cellar': a1b2c3d400, ffff000011"):
        named_node("cellar", {ONE: "cellar", TWO: "cellar"})


def test_few_digits_are_a_name_also_where_an_id_begins_with_them() -> None:
    for name in ("a", "a1b", "a1b2c3d", "2"):
        assert named_node(name, {ONE: "cellar", TWO: name}) == TWO
        with pytest.raises(UsageError, match="0 members have the name"):
            named_node(name, {ONE: "cellar"})
