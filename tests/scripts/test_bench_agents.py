"""`scripts/bench agents` and `beside`: requests grow as those of agents do, tokens are read by each API's names, and
what passes beside a prompt is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event
from typing import Any

import psutil
import pytest

from scripts.benchmarks import agents, beside
from scripts.benchmarks.agent_shapes import Session, Sizes
from scripts.benchmarks.agents import AGENTS, QUICK, Turn, again, ask, counts
from scripts.benchmarks.native import BenchError

CHAT = [
    {"choices": [{"delta": {"content": "He"}}]},
    {"choices": [{"delta": {"content": "y"}}]},
    {
        "choices": [],
        "usage": {"prompt_tokens": 90, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 60}},
    },
]
MESSAGES = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 30, "cache_read_input_tokens": 60}}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hey"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
]
RESPONSES = [
    {"type": "response.created", "response": {"status": "in_progress", "usage": None, "error": None}},
    {"type": "response.output_text.delta", "delta": "Hey"},
    {
        "type": "response.completed",
        "response": {"usage": {"input_tokens": 90, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 60}}},
    },
]
EVENTS = {"/v1/chat/completions": CHAT, "/v1/messages": MESSAGES, "/v1/responses": RESPONSES}


class Handler(BaseHTTPRequestHandler):
    """Streams the events of an API; a stream of completions ends when the prompt beside it has its answer."""

    asked: list[dict[str, Any]]
    passed = 5
    some, answered = Event(), Event()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        self.send_response(200)
        self.end_headers()
        if self.path == "/v1/completions":
            self._completion(body)
            return
        for event in EVENTS[self.path]:
            self._event(event)

    def _completion(self, body: dict[str, Any]) -> None:
        if not body.get("stream"):
            self.begun.set()
            self.some.wait(20)
            self.wfile.write(json.dumps({"usage": {"prompt_tokens": 70}}).encode())
            self.wfile.flush()
            self.answered.set()
            return
        self._event({"choices": [{"text": "Once"}]})
        self.begun.wait(20)
        for _ in range(self.passed):
            self._event({"choices": [{"text": "word"}]})
        self.some.set()
        self.answered.wait(20)
        while True:
            try:
                self._event({"choices": [{"text": "word"}]})
            except OSError:
                return

    begun = Event()

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that answers as `Handler` says."""
    Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.01)
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize("agent", AGENTS)
def test_agent_reads_tokens_and_text_of_its_api(agent: str, port: int) -> None:
    session = Session(agent, 0, 0, QUICK)
    turn, said = ask(port, session, "m", 7)
    assert (turn.prompt, turn.cached, turn.answer, said) == (90, 60, 2, "Hey")
    session.answered(said)
    ask(port, session, "m", 7)
    first, second = Handler.asked
    assert (second["model"], second["stream"]) == ("m", True)
    # What was sent stays as it was, and the answer, the call and its result follow.
    of = "input" if agent == "codex" else "messages"
    assert second[of][: len(first[of])] == first[of]
    assert "Hey" in json.dumps(second[of][len(first[of])])
    assert {key: second[key] for key in second if key != of} == {key: first[key] for key in first if key != of}


@pytest.mark.parametrize("agent", AGENTS)
def test_second_session_has_other_words_and_the_same_tools_and_rules(agent: str) -> None:
    sizes = Sizes(system=800, tools=800, result=100)
    one, two = (Session(agent, "s", number, sizes).next_body("m", 7) for number in (0, 1))
    assert one["tools"] == two["tools"]
    assert len(json.dumps(one["tools"])) >= 800
    of = "input" if agent == "codex" else "messages"
    assert one[of][-1] != two[of][-1]
    assert one[of][:-1] == two[of][:-1]
    assert one != Session(agent, "another", 0, sizes).next_body("m", 7)


def test_computed_again_leaves_out_what_is_new() -> None:
    turns = [Turn(1, 1000, 0, 10), Turn(1, 1200, 1000, 10), Turn(1, 1500, 1050, 10), Turn(1, 9000, 0, 1)]
    assert again(turns) == [0.0, 0.1]


def test_counts_need_no_details() -> None:
    assert counts({"prompt_tokens": 5}) == (5, 0, 0)
    assert counts({"input_tokens": 5, "output_tokens": 1}) == (5, 0, 1)
    with pytest.raises(BenchError, match="overloaded"):
        agents._take({"error": {"message": "overloaded"}}, {}, [])


def test_what_passes_beside_a_prompt_is_counted(port: int) -> None:
    found = beside.beside(port, psutil.Process(), "m", 70, 3)
    assert found.passed >= Handler.passed  # some more while the answer is read
    assert found.tokens == 70
    assert 0 <= found.gap <= found.prompt
    prompt = next(body["prompt"] for body in Handler.asked if not body.get("stream"))
    assert prompt.count(beside.WORD) == 62
