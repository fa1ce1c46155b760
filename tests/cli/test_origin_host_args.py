"""`--allow-host` and `--allow-origin`: accepted as browsers write them, or refused."""

from __future__ import annotations

import pytest
import typer

from meshllm.cli.origin_host_args import host, node_id_start, origin


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("workbench.local", "workbench.local"),
        (" Workbench.LAN. ", "workbench.lan"),
        ("box", "box"),
        ("192.168.1.7", "192.168.1.7"),
        ("[FD00:0::7]", "fd00::7"),
        ("my_box-2.tail1234.ts.net", "my_box-2.tail1234.ts.net"),
    ],
)
def test_host_normalises_a_name_as_browsers_do(given: str, taken: str) -> None:
    assert host(given) == taken


@pytest.mark.parametrize(
    "given",
    [
        "", ".", "*", "*.lan", "http://box", "box:3131", "box/", "a b", "a..b", "-a", "a-", "b\u00f6x", "x" * 64,
        "a." * 127 + "a",
    ],
)  # fmt: skip
def test_host_refuses_what_is_no_host_name(given: str) -> None:
    with pytest.raises(typer.BadParameter, match="not a host name"):
        host(given)


def test_origin_drops_a_trailing_slash_and_refuses_a_path() -> None:
    assert origin("https://app.example/") == "https://app.example"
    for wrong in ("app.example", "https://", "https://app.example/page", "https://app.example?x"):
        with pytest.raises(typer.BadParameter, match="not an origin"):
            origin(wrong)


def test_node_ids_are_long_enough() -> None:
    assert node_id_start(" " + "AB" * 8) == "ab" * 8
    for text in ("laptop", "ab" * 7, "ab" * 33, ""):
        with pytest.raises(typer.BadParameter, match="not a node id"):
            node_id_start(text)
