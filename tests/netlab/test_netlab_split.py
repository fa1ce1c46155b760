"""One real model split over several hosts with slow links: placement, answers, transports.

Real engine and model, one thread each. Nothing is timed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshllm import paths
from tests.daemons import MODEL
from tests.netlab.lab import Host, Lab, missing
from tests.netlab.nodes import Node, Status, start

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=f"no network lab: {missing()}"),
    pytest.mark.engine,
    pytest.mark.slow,
]
Join = Callable[..., Node]
QUESTION = "Count from one to thirty in words."
THREAD = ("--threads", "1")
WANTED = ("--model", MODEL, *THREAD, "--ctx-size", "8192", "--no-speculation")
# With 8192 tokens SmolLM2 takes 8.5 MB for each of 30 layers, and beside them 101 MB on the host and 23 MB on a worker.
LITTLE, LESS = ("--max-vram", "0.22"), ("--max-vram", "0.12")


@pytest.fixture
def join(tmp_path: Path) -> Join:
    """Starts a node on a host, in the mesh of `member` if there is one; all have the model's file, and no hub."""
    folder = tmp_path / "models"
    folder.mkdir()
    real = next(paths.models().glob(f"{MODEL}*.gguf"))
    shutil.copy(real, folder / real.name)
    environment = {"MESH_LLM_MODELS": str(folder), "HF_HOME": str(tmp_path / "no-hub-cache")}

    def joined(host: Host, member: Node | None, *arguments: str) -> Node:
        words = list(arguments)
        if member is not None:
            file = tmp_path / f"invite for {host.name}"
            file.write_text(member.invite())
            words += ["--join", f"@{file}"]
        return start(host, tmp_path / host.name, *words, environment=environment)

    return joined


def shares(node: Node, count: int) -> list[dict[str, Any]]:
    """Who carries what of the model that `node` hosts, once it is served by so many."""

    def served(status: Status) -> bool:
        committed = [split for split in status["splits"] if split["committed"]]
        return bool(committed) and len(committed[0]["shares"]) == count and status["models"][0]["phase"] == "serving"

    return list(node.until(served, f"a split over {count} nodes")["splits"][0]["shares"])


def test_split_over_two_and_three_hosts_answers_as_one_host(lab: Lab, join: Join) -> None:
    hosts = [lab.host(letter) for letter in "abc"]
    lab.link_all(delay=0.005)
    alone = join(hosts[0], None, *WANTED)
    alone.until(lambda status: status["models"] and status["models"][0]["phase"] == "serving", "the model")
    expected = alone.chat(MODEL, tokens=24, question=QUESTION).text
    assert expected
    assert alone.stop() == 0

    worker = join(hosts[1], None, "--worker", *THREAD, *LESS)
    two = join(hosts[0], worker, *WANTED, "--split")
    assert [share["transport"] for share in shares(two, 2)[1:]] == ["lane"]
    assert two.chat(MODEL, tokens=24, question=QUESTION).text == expected
    assert two.stop() == 0

    worker.until(lambda status: status["worker_lease"] is None, "the end of the lease")
    join(hosts[2], worker, *THREAD, *LESS)
    three = join(hosts[0], worker, *WANTED, *LITTLE)
    assert [share["transport"] for share in shares(three, 3)[1:]] == ["lane", "lane"]
    assert three.chat(MODEL, tokens=24, question=QUESTION).text == expected


def test_split_uses_quic_if_tcp_is_blocked(lab: Lab, join: Join) -> None:
    hosts = [lab.host(letter) for letter in "ab"]
    lab.link_all(delay=0.005, blocked=["tcp"])
    worker = join(hosts[1], None, "--worker", *THREAD)
    host = join(hosts[0], worker, *WANTED, "--split")
    assert [share["transport"] for share in shares(host, 2)[1:]] == ["quic"]
    answer = host.chat(MODEL, tokens=24, question=QUESTION, stream=True)
    assert (answer.status, answer.done, answer.pieces > 10) == (200, True, True)
    assert lab.counts("a", "b")["blocked"] > 0
