"""The cache of serialised statuses: one dump for all viewers, redacted per audience, never old."""

from __future__ import annotations

import pytest
from web_rig import coming

from meshllm.core.snapshot import Snapshot
from meshllm.web.console.status import NodeStatus, StatusInputs, node_status
from meshllm.web.console.status_cache import MAX_AGE_SECONDS, MAX_AUDIENCES, AudienceUrls, StatusCache


class Source:
    """Counts how often a status is made."""

    def __init__(self) -> None:
        self.made = 0
        self.now = 100.0

    def status(self) -> NodeStatus:
        """A status with a path that other machines must not see."""
        self.made += 1
        inputs = StatusInputs(
            snapshot=Snapshot(models=(coming("m"),)),
            name="box",
            version="1",
            pid=4711,
            api="http://localhost:9337/v1",
            console="http://localhost:3131",
            started=0.0,
            mesh_reason="/home/SECRET",
        )
        return node_status(inputs, self.now)


@pytest.fixture
def source() -> Source:
    """A source whose clock stands still."""
    return Source()


def test_status_cache_makes_one_status_per_version(source: Source) -> None:
    cache = StatusCache(source.status, lambda: source.now)
    texts = {cache.text(1, None) for _ in range(50)}
    assert (source.made, len(texts)) == (1, 1)
    cache.text(2, None)
    assert source.made == 2


def test_status_cache_redacts_for_each_audience(source: Source) -> None:
    cache = StatusCache(source.status, lambda: source.now)
    one, other = AudienceUrls("http://a:1/v1", "http://a:2"), AudienceUrls("http://b:1/v1", "http://b:2")
    whole, first, second = cache.text(1, None), cache.text(1, one), cache.text(1, other)
    assert source.made == 1
    assert "SECRET" in whole
    assert "SECRET" not in first + second
    assert NodeStatus.model_validate_json(first).api == "http://a:1/v1"
    assert NodeStatus.model_validate_json(second).api == "http://b:1/v1"
    assert cache.text(1, one) is first


def test_status_cache_renews_a_status_that_is_too_old(source: Source) -> None:
    cache = StatusCache(source.status, lambda: source.now)
    first = NodeStatus.model_validate_json(cache.text(1, None)).uptime_seconds
    source.now += MAX_AGE_SECONDS
    assert NodeStatus.model_validate_json(cache.text(1, None)).uptime_seconds == first
    source.now += 0.1
    assert NodeStatus.model_validate_json(cache.text(1, None)).uptime_seconds > first + MAX_AGE_SECONDS


def test_status_cache_is_bounded(source: Source) -> None:
    cache = StatusCache(source.status, lambda: source.now)
    for number in range(10 * MAX_AUDIENCES):
        cache.text(1, AudienceUrls(f"http://{number}:1/v1", ""))
    assert len(cache._texts) <= MAX_AUDIENCES
