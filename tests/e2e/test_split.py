"""Real daemons carry one model together, with the real engine: agreed on, answered from, lost and found again."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
from here import Site, client, joined, serves, site

from meshllm import paths
from meshllm.core.split.measurement import MISS_FACTOR
from meshllm.daemon import forecast_file
from meshllm.models.gguf.projector import projector_bytes
from tests import engine_samples
from tests.daemons import MODEL, OPEN_WAIT_SECONDS
from tests.netlab.nodes import Node, Status

pytestmark = pytest.mark.engine

COUNT = [{"role": "user", "content": "Count from one to thirty in words."}]
FORCED = ("--model", MODEL, "--split", "--ctx-size", "1024", "--threads", "1", "--no-speculation")
# No hub, and no packages: what does not come from a peer does not come.
ALONE = {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nowhere"}
HIDDEN = 576  # numbers that SmolLM2-135M has for a token between two layers
WEIGHTS = 98_362_432


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def environment(folder: Path, *, model: bool = True) -> dict[str, str]:
    """For a node with a model folder of its own, the model's file in it or not."""
    folder.mkdir(parents=True, exist_ok=True)
    if model:
        real = next(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
        shutil.copy(real, folder / real.name)
    return {"MESH_LLM_MODELS": str(folder), "HF_HOME": str(folder / "no-hub-cache"), **ALONE}


def node(here: Site, name: str, *arguments: str, join: Node | None = None, model: bool = True) -> Node:
    """A node with a model folder of its own."""
    around = environment(here.folder / f"{name}-models", model=model)
    return here.node(name, *arguments, join=join, environment=around)


def split_of(status: Status) -> dict[str, Any]:
    """The one split that a node hosts."""
    (found,) = status["splits"]
    return dict(found)


def committed(status: Status) -> bool:
    """Whether the node hosts a split that is served."""
    return any(split["committed"] for split in status["splits"]) and status["models"][0]["phase"] == "serving"


def said(node: Node, tokens: int = 40) -> str:
    """A greedy answer."""
    reply: Any = client(node).chat.completions.create(
        model=MODEL, messages=COUNT, max_tokens=tokens, temperature=0.0  # type: ignore[arg-type]
    )  # fmt: skip
    return str(reply.choices[0].message.content)


def gone(process: psutil.Process) -> bool:
    """Whether a process ends."""
    _, alive = psutil.wait_procs([process], timeout=OPEN_WAIT_SECONDS)
    return not alive


def rpc_servers(*nodes: Node) -> list[psutil.Process]:
    """The rpc-servers that nodes run."""
    return [child for one in nodes for child in one.children() if child.name() == "ggml-rpc-server"]


def test_split_answers_as_one_node_does(here: Site) -> None:
    alone = node(here, "alone", *(word for word in FORCED if word != "--split"))
    alone.wait_until_serving()
    expected = said(alone)
    assert alone.stop() == 0

    host = node(here, "host", *FORCED)
    refused = host.until(lambda s: s["models"] and s["models"][0]["reason"], "that it cannot be split alone")
    assert "a split was requested" in refused["models"][0]["reason"]
    worker = node(here, "worker", join=host)
    status = host.until(committed, "a split that is served")
    split = split_of(status)
    assert [share["phase"] for share in split["shares"]] == [None, "committed"]
    assert sum(share["layers"] for share in split["shares"]) == 30
    assert split["forecast"] > 0
    loaded = split["shares"][1]
    assert loaded["sent"] + loaded["received"] < 2_000_000 < WEIGHTS / 20, "the weights came from the worker's disk"
    assert worker.status()["worker_lease"]["phase"] == "committed"

    assert said(host) == expected
    # Any node answers, the one that carries layers too.
    worker.until(serves(MODEL), "the host's model")
    assert said(worker) == expected
    before = split_of(host.status())["shares"][1]["received"]
    said(host, tokens=40)
    after = split_of(host.status())["shares"][1]["received"]
    assert (after - before) / 40 <= 4 * HIDDEN + 1000 + 200, "hidden states come back, not scores"

    # What a token took is compared with the forecast, and kept for the next one.
    measured = split_of(host.until(lambda s: split_of(s)["measured"], "a measured time per token"))
    ratio = measured["measured"] / measured["forecast"]
    assert ("forecast: " in measured["deviation"]) == (not 1 / MISS_FACTOR < ratio < MISS_FACTOR)
    host.until(lambda s: (host.home / forecast_file.FILE).exists(), "a saved correction")
    # Planned and used memory of each node are the same quantities, seen from either.
    used = host.until(lambda s: (s["mesh"]["peers"][0]["memory_used"] or 0) > WEIGHTS / 4, "the worker's used memory")
    peer, lease = used["mesh"]["peers"][0], worker.status()["worker_lease"]
    assert peer["memory_planned"] == lease["memory"]
    assert used["models"][0]["engine"]["memory_used"] <= 1.1 * used["models"][0]["engine"]["memory"]
    assert peer["memory_used"] <= 1.1 * peer["memory_planned"]

    (process,) = rpc_servers(worker)
    assert host.stop() == 0
    worker.until(lambda s: s["worker_lease"] is None, "the end of the lease")
    assert gone(process)


def test_model_too_large_for_each_node_is_split(here: Site) -> None:
    little = ("--ctx-size", "4096", "--max-vram", "0.2", "--threads", "1")
    host = node(here, "host", "--model", MODEL, *little)
    refused = host.until(lambda s: s["models"] and s["models"][0]["phase"] == "failed", "the refusal")
    assert "needs" in refused["models"][0]["reason"]
    assert "0.20 GB" in refused["models"][0]["reason"]
    assert "--join" in refused["models"][0]["advice"]
    worker = node(here, "worker", "--max-vram", "0.2", "--threads", "1", join=host, model=False)
    host.until(committed, "a split that is served")
    assert said(host, tokens=5)
    # It had no copy of the file: it got one from the host, into a place that is no folder of models.
    assert WEIGHTS in [path.stat().st_size for path in (here.folder / "worker" / "lease-cache").iterdir()]
    assert list((here.folder / "worker-models").rglob("*.gguf")) == []
    assert worker.status()["worker_lease"]["layers"] > 0


def kill_rpc_server(host: Node, worker: Node) -> None:
    (process,) = rpc_servers(worker)
    process.kill()


def kill_worker(host: Node, worker: Node) -> None:
    worker.process.kill()
    worker.process.wait(30)


ASKED = {
    "chat/completions": {"messages": COUNT, "max_tokens": 900},
    "messages": {"messages": COUNT, "max_tokens": 900},
    "responses": {"input": COUNT[0]["content"], "max_output_tokens": 900},
}


def events(node: Node, path: str) -> Iterator[dict[str, Any]]:
    """A long answer, as its events come in."""
    body = json.dumps({"model": MODEL, "stream": True, **ASKED[path]}).encode()
    request = Request(f"{node.base_url}/{path}", body, {"content-type": "application/json"})
    with urlopen(request, timeout=OPEN_WAIT_SECONDS) as response:
        for line in response:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


@pytest.mark.parametrize(
    ("how", "path"), [(kill_rpc_server, "chat/completions"), (kill_worker, "messages"), (kill_worker, "responses")]
)
def test_lost_worker_ends_the_stream_with_an_error_and_the_split_recovers(here: Site, how: Any, path: str) -> None:
    host = node(here, "host", *FORCED)
    worker = node(here, "worker", join=host)
    spare = node(here, "spare", join=host)
    host.until(committed, "a split that is served")
    carrying = {one: one.status()["mesh"]["node"] for one in (worker, spare)}
    first = next(one for one, name in carrying.items() if name == split_of(host.status())["shares"][1]["node"])
    generation = split_of(host.status())["generation"]
    stream = events(host, path)
    next(event for event in stream if event.get("choices") or "delta" in event)
    how(host, first)
    told = [found for event in stream if "message" in (found := event.get("error") or event)]
    assert [(error["code"], "was lost during the answer" in error["message"]) for error in told] == [
        ("upstream_lost", True)
    ]
    assert "Retry" in told[0]["message"]
    host.until(lambda s: committed(s) and split_of(s)["generation"] > generation, "the split without it")
    assert said(host, tokens=3)


def test_worker_that_is_stopped_lets_the_answer_of_its_host_end(here: Site) -> None:
    host = node(here, "host", *FORCED)
    worker = node(here, "worker", join=host)
    spare = node(here, "spare", join=host)
    host.until(committed, "a split that is served")
    nodes = {one.status()["mesh"]["node"]: one for one in (worker, spare)}
    first = nodes[split_of(host.status())["shares"][1]["node"]]
    begun = Event()
    answer = host.ask(MODEL, tokens=30, stream=True, each=lambda pieces: begun.set())
    assert begun.wait(OPEN_WAIT_SECONDS)
    assert first.stop() == 0
    told = answer.result()
    assert (told.status, told.done, "error" in told.body) == (200, True, False)
    host.until(lambda s: committed(s) and split_of(s)["generation"] > 1, "the split without it")
    assert said(host, tokens=3)


def test_split_supports_images(here: Site) -> None:
    """A tiny projector of random weights beside the model: what it makes of a picture goes through all layers."""
    folder = here.folder / "sees"
    folder.mkdir()
    real = next(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    shutil.copy(real, folder / real.name)
    projector = engine_samples.projector(folder / "mmproj.gguf")
    words = ("--split", "--ctx-size", "1024", "--threads", "1", "--no-speculation")
    host = node(here, "host", "--model", str(folder / real.name), *words)
    worker = node(here, "worker", join=host)
    status = host.until(committed, "a split that is served")
    (model,) = status["models"]
    assert model["input_modalities"] == ["text", "image"]
    assert "vision" in model["engine"]["placement_text"]
    blind, seeing = sorted(share["memory"] for share in split_of(status)["shares"])
    assert seeing - blind > projector_bytes(projector) / 2, "the host's share"
    assert split_of(status)["shares"][0]["memory"] == seeing
    known = worker.until(serves(model["name"]), "the host's model")
    (told,) = [served for peer in known["mesh"]["peers"] for served in peer["serves"]]
    assert told["input_modalities"] == ["text", "image"]
    question = {"type": "text", "text": "What is this?"}
    counted = []
    for content in ([question], [question, engine_samples.picture(200)]):
        messages: Any = [{"role": "user", "content": content}]
        reply = client(worker).chat.completions.create(model=model["name"], messages=messages, max_tokens=2)
        assert reply.usage is not None
        counted.append(reply.usage.prompt_tokens)
    assert counted[1] >= counted[0] + 4


def test_workers_send_tensors_to_each_other_directly(here: Site) -> None:
    little, less = ("--max-vram", "0.22"), ("--max-vram", "0.12")  # no two of them hold it
    thread = ("--threads", "1")
    worker = node(here, "worker", "--worker", *thread, *less)
    node(here, "other", *thread, *less, join=worker)
    host = node(here, "host", "--model", MODEL, *thread, *little, "--ctx-size", "8192", "--no-speculation", join=worker)
    host.until(lambda s: committed(s) and len(split_of(s)["shares"]) == 3, "a split over three nodes")
    said(host, tokens=2)  # has the graphs sent
    before = split_of(host.status())["shares"][1:]
    said(host, tokens=40)
    after = split_of(host.status())["shares"][1:]
    from_first, from_last = ((a["received"] - b["received"]) / 40 for a, b in zip(after, before, strict=True))
    state = 4 * HIDDEN
    assert from_last >= state, "the last one gives the hidden state back"
    assert from_first < state / 4, "what the first one computes goes on to the last one"


def test_better_worker_disturbs_no_answer(here: Site) -> None:
    little = ("--max-vram", "0.2", "--threads", "1")
    worker = node(here, "worker", "--worker", *little)
    host = node(here, "host", "--model", MODEL, *little, "--ctx-size", "4096", "--no-speculation", join=worker)
    host.until(committed, "a split that is served")
    begun, go_on = Event(), Event()

    def each(pieces: int) -> None:
        begun.set()
        assert go_on.wait(OPEN_WAIT_SECONDS)

    answer = host.ask(MODEL, tokens=300, stream=True, each=each)
    assert begun.wait(OPEN_WAIT_SECONDS)
    better = node(here, "better", "--threads", "1", join=worker)
    name = better.status()["mesh"]["node"]
    host.until(lambda s: any(p["id"] == name and p["status"] == "alive" for p in s["mesh"]["peers"]), "the newcomer")
    go_on.set()
    told = answer.result()
    assert (told.status, told.done, "error" in told.body) == (200, True, False)
    assert split_of(host.status())["generation"] == 1


def test_request_without_answer_is_retried_after_a_worker_is_lost(here: Site) -> None:
    worker = node(here, "worker", "--worker")
    host = node(here, "host", *FORCED[:3], "--ctx-size", "4096", "--threads", "1", "--no-speculation", join=worker)
    host.until(committed, "a split that is served")
    long = "The quick brown fox jumps over the lazy dog. " * 120
    answers = [host.ask(MODEL, tokens=3, stream=stream, question=long) for stream in (False, True)]
    host.until(lambda s: any(load["active"] == 2 for load in s["load"]), "two prompts that are read")
    kill_rpc_server(host, worker)
    whole, streamed = (answer.result() for answer in answers)
    assert (whole.status, whole.done) == (200, True)
    assert (streamed.status, streamed.done, "error" in streamed.body) == (200, True, False)
    assert streamed.comments, "who waits is told so"
    assert split_of(host.status())["generation"] > 1


@pytest.mark.parametrize("killed", [False, True])
def test_split_is_served_again_when_its_host_starts_before_its_worker(here: Site, killed: bool) -> None:
    """As after a power cut: both end, and are started again without an invite. `scripts/bench split-restarts` has all
    distances."""
    worker = node(here, "worker", "--worker", "--threads", "1")
    host = node(here, "host", *FORCED, join=worker)
    host.until(committed, "a split that is served")
    worker.until(joined, "its mesh")
    for one in (host, worker):
        if killed:
            one.kill()
        else:
            assert one.stop() == 0
    host = node(here, "host", *FORCED)
    host.until(lambda s: s["models"] and s["models"][0]["file"] is not None and s["splits"], "a host that waits")
    node(here, "worker", "--worker", "--threads", "1")
    host.until(committed, "the split")
    assert said(host, tokens=3)


def test_killed_host_leaves_nothing_behind(here: Site) -> None:
    host = node(here, "host", *FORCED)
    worker = node(here, "worker", join=host)
    host.until(committed, "a split that is served")
    worker.until(joined, "its mesh")
    (process,) = rpc_servers(worker)
    os.kill(host.process.pid, signal.SIGKILL)
    host.process.wait(30)
    worker.until(lambda s: s["worker_lease"] is None, "the end of the lease")
    assert gone(process)
