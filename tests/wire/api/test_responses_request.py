"""Requests of `/v1/responses` as the engine gets them."""

from __future__ import annotations

from typing import Any

import pytest

from meshllm.wire.api.engine_request import prepare
from meshllm.wire.api.prepared import UNCHANGED, Prepared
from meshllm.wire.api.routes import Api

SAID = {"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}
ASKED = {"role": "user", "content": "a"}
TEXT = {"type": "reasoning_text", "text": "hm"}


@pytest.mark.parametrize(
    ("given_items", "wanted"),
    [
        ([SAID], [{**SAID, "type": "message"}]),
        ([{"role": "user", "content": "a"}, SAID], [{"role": "user", "content": "a"}, {**SAID, "type": "message"}]),
        ([{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}, ASKED], [ASKED]),
        (
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}],
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "content": [TEXT]}],
        ),
    ],
)
def test_items_that_the_engine_refuses_are_rewritten(given_items: list[Any], wanted: list[Any]) -> None:
    body = {"model": "m", "input": given_items}
    assert prepare(Api.RESPONSES, body) == Prepared({"model": "m", "input": wanted})
    assert prepare(Api.RESPONSES, {"input": wanted}) is UNCHANGED
