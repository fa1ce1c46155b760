"""Requests of callers are counted once, in batches, by the node whose API got them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from web_rig import ask, bench, host, node_id, town

from meshllm.web.gateway.request_counts import MAX_NAMES, RequestCounts
from meshllm.web.http.access_control import AccessPolicy

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


async def test_forwarded_request_is_counted_where_its_api_got_it(folder: Path) -> None:
    async with town(folder) as place:
        counted: dict[int, list[Mapping[str, int]]] = {0: [], 1: []}
        for number in counted:
            place.benches[number].gateway._counts._on_requests = counted[number].append
        await place.serve(1)
        place.here.meet(host(node_id(1), "m"))
        for _ in range(3):
            assert (await place.here.call(ask("/v1/chat/completions"))).status == 200
        for number in counted:
            place.benches[number].gateway._counts._report()
        assert counted[0] == [{"m": 3}]
        assert counted[1] == [{}], "it came from a peer"


async def test_request_for_a_model_that_nobody_serves_is_counted(folder: Path) -> None:
    seen: list[Mapping[str, int]] = []
    async with bench(folder, AccessPolicy(None), on_requests=seen.append) as table:
        assert (await table.call(ask("/v1/chat/completions", model="absent"))).status == 404
        assert (
            await table.call(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}")
        ).status == 400
        table.gateway._counts._report()
    assert seen == [{"absent": 1}]


async def test_batches_are_few_and_bounded() -> None:
    seen: list[Mapping[str, int]] = []
    timers: list[object] = []
    loop = asyncio.get_running_loop()

    class Loop:
        def call_later(self, delay: float, call: object) -> asyncio.TimerHandle:
            timers.append(call)
            return loop.call_later(3600, lambda: None)

    counts = RequestCounts(Loop(), seen.append)  # type: ignore[arg-type]
    for number in range(10_000):
        counts.count(f"name {number}")
        counts.count("m")
        counts.count("x" * 300)
    assert len(timers) == 1, "one event for all of them"
    counts._report()
    (batch,) = seen
    assert len(batch) == MAX_NAMES
    assert batch["m"] == 10_000
    counts.close()
