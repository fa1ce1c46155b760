"""The metrics: names as documented, labels bounded and stable."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families
from web_rig import Bench, ask, host, node_id, served, well

from meshllm.web.gateway.metrics import DESCRIPTIONS, Metrics, NodeCounters
from meshllm.web.gateway.request_log import Outcome, RequestTrace


def families(table: Bench) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The samples by name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(table.gateway.metrics.text().decode()):
        for sample in family.samples:
            key = tuple(sorted(sample.labels.items()))
            assert key not in found.setdefault(sample.name, {}), f"{sample.name}{key} twice"
            found[sample.name][key] = sample.value
    return found


async def test_metrics_are_exactly_those_described(table: Bench) -> None:
    await table.serve()
    await table.call(ask())
    table.meet(host(node_id(1), "m"))
    text = table.gateway.metrics.text().decode()
    described = {
        (f"{name}_total" if each.kind == "counter" else name, each.kind) for name, each in DESCRIPTIONS.items()
    }
    shown = set(re.findall(r"^# TYPE (mesh_llm_\S+) (\S+)$", text, re.MULTILINE))
    assert shown == described
    for name, each in DESCRIPTIONS.items():
        for labels in re.findall(rf"^{name}(?:_total|_bucket)?{{([^}}]*)}}", text, re.MULTILINE):
            names = {label.partition("=")[0] for label in labels.split('",')}
            assert names - {"le"} == set(each.labels), name


async def test_metrics_label_of_an_engine_is_its_model_in_every_generation(table: Bench) -> None:
    """Not its socket's path, which is another one after each restart."""
    first, second = await table.engine(well), await table.engine(well)
    for generation, engine in enumerate((first, second), 1):
        table.publish(served("m", engine.address, generation=generation))
        assert (await table.call(ask())).status == 200
        found = families(table)["mesh_llm_requests_active"]
        assert set(found) == {(("target", "engine:m"),)}
    assert first.address.encode() not in table.gateway.metrics.text()


async def test_metrics_refusals_are_counted_and_not_in_the_latency_histogram(table: Bench) -> None:
    await table.serve()
    for _ in range(3):
        await table.get("/nothing")
    await table.call(ask(model="unknown"))
    found = families(table)
    refused = {labels: n for labels, n in found["mesh_llm_requests_total"].items() if ("outcome", "refused") in labels}
    assert sum(refused.values()) == 4
    await table.call(ask())
    counts = families(table)["mesh_llm_request_seconds_count"]
    assert set(counts) == {(("api", "chat"), ("model", "m"), ("outcome", "answered"))}


def test_metrics_models_beyond_the_limit_are_other() -> None:
    from meshllm.core.snapshot import Snapshot
    from meshllm.web.gateway import metrics as module

    metrics = Metrics(Snapshot, tuple, counters=lambda: NodeCounters(lanes=2, uploaded_bytes=7))
    for number in range(module.MAX_TALLIES + 50):
        trace = RequestTrace("id", "chat", "/x", "local", 0.0)
        trace.outcome, trace.ended, trace.prompt_tokens = Outcome.ANSWERED, 1.0, 1
        metrics.count_request(f"m{number}", None, trace)
    text = metrics.text().decode()
    assert text.count("mesh_llm_requests_total{") == module.MAX_TALLIES + 1
    assert 'mesh_llm_requests_total{api="chat",model="other",outcome="answered"} 50.0' in text
    assert "mesh_llm_lanes 2.0" in text
    assert 'mesh_llm_transfer_bytes_total{direction="upload"} 7.0' in text
