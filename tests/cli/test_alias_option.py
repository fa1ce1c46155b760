"""`--alias NAME=MODEL`: read as pairs, or refused."""

from __future__ import annotations

import pytest
import typer

from meshllm.cli.start import aliases


def test_aliases_are_pairs_of_names() -> None:
    assert aliases(["gpt-4o=Qwen3-8B", " small = org/Model:Q4_K_M "]) == (
        ("gpt-4o", "Qwen3-8B"),
        ("small", "org/Model:Q4_K_M"),
    )
    for given in ("gpt-4o", "=x", "x=", "", "a=b\x1b[2J", "a=" + "b" * 600):
        with pytest.raises(typer.BadParameter, match="is not an alias"):
            aliases([given])
    assert aliases(["a=b", "a=b"]) == (("a", "b"),)
    with pytest.raises(typer.BadParameter, match="is given for b and for c"):
        aliases(["a=b", "a=c"])
