"""Speculative decoding in the status, the metrics and `mesh-llm status`."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families
from web_rig import READY, Bench, ask, served

from meshllm.cli.status import speculation_text as words
from meshllm.core.memory.speculation import PLAIN, DraftCounts, DraftSource, Speculation
from meshllm.core.snapshot import ModelState, Snapshot
from meshllm.web.console.status import ModelStatus, StatusInputs, node_status
from meshllm.web.gateway.gateway import Gateway
from meshllm.web.http.access_control import AccessPolicy

DRAFT = Speculation(DraftSource.DRAFT, "small")
NGRAMS = Speculation(DraftSource.NGRAMS, reason="no small model of the same vocabulary is on this disk")


def serving(speculation: Speculation) -> ModelState:
    model = served("m", "/run/m.sock")
    assert model.server_facts is not None
    return replace(model, server_facts=replace(model.server_facts, speculation=speculation))


def status(speculation: Speculation, **guesses: DraftCounts) -> ModelStatus:
    snapshot = Snapshot(engine=READY, models=(serving(speculation),))
    inputs = StatusInputs(
        snapshot=snapshot, name="n", version="1", pid=1, api="", console="", started=0.0, drafts=guesses
    )
    return node_status(inputs, 1.0).models[0]


def test_status_shows_the_acceptance_of_a_draft_model() -> None:
    engine = status(DRAFT, m=DraftCounts(30, 20)).engine
    assert engine is not None
    told = engine.speculation
    assert (told.kind, told.draft_model, told.draft_tokens) == (DraftSource.DRAFT, "small", 30)
    assert (told.accepted_tokens, told.acceptance) == (20, 0.6667)
    assert words(told.model_dump(mode="json")) == (
        "speculative decoding: draft model small, 67% of 30 draft tokens accepted"
    )


def test_status_shows_why_there_is_no_draft_model() -> None:
    engine = status(NGRAMS, other=DraftCounts(30, 20)).engine
    assert engine is not None
    told = engine.speculation
    assert (told.kind, told.draft_tokens) == (DraftSource.NGRAMS, 0)
    assert (told.acceptance, told.reason) == (None, NGRAMS.reason)
    assert words(told.model_dump(mode="json")) == (
        "speculative decoding: n-gram, no drafts yet; "
        "no draft model: no small model of the same vocabulary is on this disk"
    )


def test_status_shows_why_speculation_is_off() -> None:
    engine = status(replace(PLAIN, reason="it was switched off")).engine
    assert engine is not None
    assert words(engine.speculation.model_dump(mode="json")) == "speculative decoding: off (it was switched off)"


async def test_metrics_count_draft_tokens() -> None:
    gateway = Gateway(AccessPolicy(), draft_counts=lambda: {"m": DraftCounts(30, 20), 'o"d': DraftCounts(1, 0)})
    try:
        families = {family.name: family for family in text_string_to_metric_families(gateway.metrics.text().decode())}
    finally:
        await gateway.close()
    for what, expected in (("drafted", {"m": 30, 'o"d': 1}), ("accepted", {"m": 20, 'o"d': 0})):
        samples = families[f"mesh_llm_speculation_{what}_tokens"].samples
        assert {sample.labels["model"]: sample.value for sample in samples} == expected
        assert {sample.name for sample in samples} == {f"mesh_llm_speculation_{what}_tokens_total"}


async def test_gateway_reports_engine_work_after_each_request(table: Bench) -> None:
    engine = await table.serve()
    rested = asyncio.Event()

    def work() -> None:
        if not any(load.active for load in gateway.loads()):
            rested.set()

    gateway = Gateway(AccessPolicy(), on_work=work)
    port = await gateway.start(("127.0.0.1",), 0)
    try:
        gateway.publish(Snapshot(engine=READY, models=(served("m", engine.address),)))
        async with asyncio.timeout(30):
            await rested.wait()
            for _ in range(2):  # the second follows so soon that it changes nothing of what is told of loads
                rested.clear()
                assert (await replace(table, port=port).call(ask())).status == 200
                await rested.wait()
    finally:
        await gateway.close()
