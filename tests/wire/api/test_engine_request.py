"""Every body is prepared or refused, and a plain one is not touched."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.wire.api.engine_request import prepare
from meshllm.wire.api.prepared import UNCHANGED, Prepared
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "role", "content", "summary", "text", "input", "function", "name", "arguments"]),
            inner,
            max_size=4,
        ),
    ),
)
FIELDS = ["input", "messages", "tools", "tool_choice", "response_format", "stop", "logit_bias", "text", "prompt", "n"]


@given(st.sampled_from(Api), st.dictionaries(st.sampled_from(FIELDS), values))
def test_any_body_is_prepared_or_refused(api: Api, body: dict[str, Any]) -> None:
    prepared = prepare(api, body)
    assert isinstance(prepared, Prepared | Refusal)
    if isinstance(prepared, Refusal):
        assert prepared.message
        assert 400 <= prepared.status < 500


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (Api.CHAT, {"messages": [{"role": "user", "content": "a"}], "temperature": 0, "max_tokens": 5}),
        (Api.COMPLETIONS, {"prompt": "a", "max_tokens": 5, "stop": ["b"]}),
        (Api.RESPONSES, {"input": "a"}),
        (Api.MESSAGES, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 5}),
        (Api.EMBEDDINGS, {"input": "a"}),
    ],
)
def test_a_plain_body_is_unchanged(api: Api, body: dict[str, Any]) -> None:
    assert prepare(api, {"model": "m", **body}) is UNCHANGED
