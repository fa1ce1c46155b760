"""`--alias NAME=MODEL` and `--tools MODEL=yes|no`: read as pairs, or refused."""

from __future__ import annotations

import pytest
import typer

from meshllm.cli.start import aliases, declared_tools


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


def test_tools_are_declared_by_model() -> None:
    assert declared_tools(["Qwen3-8B=yes", " a=b = no ", "Qwen3-8B=yes"]) == (("Qwen3-8B", True), ("a=b", False))
    for given in ("m", "m=", "=yes", "m=true", "", "m\x1b[2J=yes", "m" * 600 + "=no"):
        with pytest.raises(typer.BadParameter, match="MODEL=yes or MODEL=no"):
            declared_tools([given])
    with pytest.raises(typer.BadParameter, match="both yes and no of m"):
        declared_tools(["m=yes", "m=no"])
