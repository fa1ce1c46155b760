"""Text about splits for `mesh-llm status`."""

from __future__ import annotations

from meshllm.cli import split_text

SPLIT = {
    "model": "Qwen3-8B",
    "session": "ab",
    "generation": 2,
    "committed": True,
    "reason": "it takes 6.0 GB and this node has 4.0 GB",
    "forecast": 0.051,
    "measured": 0.0487,
    "considered": [],
    "shares": [
        {
            "node": "aa" * 32, "name": "", "first": 0, "layers": 20, "memory": 3_500_000_000, "phase": None,
            "memory_used": 3_100_000_000,
            "detail": "", "rtt": None, "transport": None, "sent": 0, "received": 0, "rate": 0,
        },
        {
            "node": "bb" * 32, "name": "attic\x1b[31m", "first": 20, "layers": 16, "memory": 2_500_000_000,
            "phase": "committed", "detail": "", "rtt": 0.0042, "transport": "lane", "sent": 1_200_000,
            "received": 900_000, "rate": 15_400,
        },
    ],
}  # fmt: skip


def test_split_lines_show_each_share_with_forecast_and_measurement() -> None:
    head, host, worker = split_text.split_lines(SPLIT)
    assert head == (
        "Qwen3-8B split over 2 nodes (forecast 51 ms per token, measured 49 ms per token): "
        "it takes 6.0 GB and this node has 4.0 GB"
    )
    assert host == "  layers 0 to 19 on this node: at most 3.5 GB, 3.1 GB now"
    assert worker.startswith("  layers 20 to 35 on attic")
    assert worker.endswith("at most 2.5 GB, serving, rtt 4.2 ms, by lane, 1.2 MB sent, 0.9 MB received, 15.4 kB/s now")
    assert "\x1b" not in worker


def test_split_lines_say_why_the_forecast_is_off_and_that_it_was_corrected() -> None:
    why = "10 times slower than forecast: both nodes share this machine's processor"
    head, deviation, *_ = split_text.split_lines({**SPLIT, "forecast": 0.005, "corrected": True, "deviation": why})
    assert "(corrected forecast 5 ms per token, measured 49 ms per token)" in head
    assert deviation == f"  {why}"


def test_split_lines_show_the_reason_without_shares() -> None:
    assert split_text.split_lines({**SPLIT, "shares": []}) == ["Qwen3-8B: it takes 6.0 GB and this node has 4.0 GB"]


def test_worker_lease_line_shows_layers_and_host() -> None:
    lease = {
        "model": "Qwen3-8B", "host": "aa" * 32, "host_name": "", "session": "ab", "generation": 1, "phase": "preparing",
        "detail": "downloading 40%", "first": 20, "layers": 16, "memory": 2_500_000_000,
    }  # fmt: skip
    assert split_text.worker_lease_line(lease) == (
        "worker for layers 20 to 35 of Qwen3-8B for aaaaaaaaaa: at most 2.5 GB, preparing, downloading 40%"
    )
    assert " for attic: at most 2.5 GB" in split_text.worker_lease_line({**lease, "host_name": "attic"})
