"""Models are asked for one tool call, once, while no engine of the node works."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshllm.daemon.drains import Drains
from meshllm.daemon.tool_call_tests import CACHE_NAME, MAX_CACHE_BYTES, ToolCallTests
from meshllm.models.library.local_model import LocalModel, from_path
from meshllm.models.library.store import Store
from meshllm.tasks import Owner
from tests import engine_samples

CALL = {"type": "function", "function": {"name": "read_file", "arguments": '{"path": "notes.txt"}'}}
CALLED: dict[str, Any] = {"choices": [{"message": {"tool_calls": [CALL]}}]}
TALKED: dict[str, Any] = {"choices": [{"message": {"content": "I cannot."}}]}
ENGINE = Path("/engines/one/llama-server")


class FakeEngine:
    """An engine's socket. `replies`: (status, body) in turn, the last one again; None: no answer at all."""

    def __init__(self, *replies: tuple[int, dict[str, Any]] | None) -> None:
        self.replies = list(replies)
        self.asked: list[dict[str, Any]] = []
        self.arrived, self.left = asyncio.Event(), asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        self.asked.append(json.loads(await reader.readexactly(length)))
        self.arrived.set()
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if reply is None:
            await reader.read()
            self.left.set()
        else:
            body = json.dumps(reply[1]).encode()
            writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n" % (reply[0], len(body)) + body)
        writer.close()


@asynccontextmanager
async def engine(path: Path, *replies: tuple[int, dict[str, Any]] | None) -> AsyncIterator[FakeEngine]:
    fake = FakeEngine(*replies)
    server = await asyncio.start_unix_server(fake.answer, path)
    async with server:
        yield fake


class Node:
    """A node whose engines have requests or not."""

    def __init__(self) -> None:
        self.works = False
        self.drains = Drains(lambda *process: self.works, works=lambda: self.works)

    def set(self, works: bool) -> None:
        self.works = works
        self.drains.changed()


@pytest.fixture
def model(tmp_path: Path) -> LocalModel:
    found = from_path(engine_samples.model_without_needed_tensors(tmp_path / "m.gguf"), Store(tmp_path / "models"))
    template = tmp_path / "chat.jinja"
    template.write_text("{{ tools }}")
    return replace(found, digest="d" * 64, chat_template=template)


def started(home: Path, node: Node, **options: Any) -> ToolCallTests:
    return ToolCallTests(home, node.drains, options.pop("declared", {}), **{"quiet": 0.0, "retry": 0.0, **options})


@pytest.mark.parametrize(("reply", "calls"), [((200, CALLED), True), ((200, TALKED), False)])
async def test_model_is_asked_once_also_over_restarts(
    tmp_path: Path, model: LocalModel, reply: tuple[int, dict[str, Any]], calls: bool
) -> None:
    node = Node()
    async with engine(tmp_path / "s", reply) as fake:
        first = started(tmp_path, node)
        assert await first.known("m", model, ENGINE) is None
        assert await first.test("m", model, ENGINE, str(tmp_path / "s")) is calls
        assert await first.known("m", model, ENGINE) is calls
    again = started(tmp_path, node)
    assert await again.known("other name", model, ENGINE) is calls
    assert len(fake.asked) == 1
    assert fake.asked[0]["tool_choice"] == "required"
    # Another engine, file or template may do otherwise.
    assert await again.known("m", model, Path("/engines/two/llama-server")) is None
    assert await again.known("m", replace(model, digest="e" * 64), ENGINE) is None
    assert model.chat_template is not None
    model.chat_template.write_text("{{ tools }} other")
    assert await again.known("m", model, ENGINE) is None


async def test_request_comes_before_the_test_and_ends_it(tmp_path: Path, model: LocalModel) -> None:
    node, owner = Node(), Owner("test")
    node.works = True
    async with engine(tmp_path / "s", None, (200, CALLED)) as fake:
        tests = started(tmp_path, node)
        testing = owner.start(tests.test("m", model, ENGINE, str(tmp_path / "s")), "test")
        await asyncio.sleep(0.05)
        assert not fake.asked, "it waits for the request"
        node.set(False)
        async with asyncio.timeout(20):
            await fake.arrived.wait()
            node.set(True)
            await fake.left.wait()  # the engine sees that nobody waits for the answer
            assert not testing.done()
            node.set(False)
            assert await testing
        assert len(fake.asked) == 2
    await owner.close()
    await tests.close()


async def test_request_that_comes_soon_after_the_load_goes_first(tmp_path: Path, model: LocalModel) -> None:
    node, owner = Node(), Owner("test")
    async with engine(tmp_path / "s", (200, CALLED)) as fake:
        tests = started(tmp_path, node, quiet=30.0)
        testing = owner.start(tests.test("m", model, ENGINE, str(tmp_path / "s")), "test")
        await asyncio.sleep(0.05)
        node.set(True)
        await asyncio.sleep(0.05)
        assert not fake.asked
        assert not testing.done()
    await owner.close()


async def test_failure_of_the_engine_is_no_answer_and_tries_are_bounded(tmp_path: Path, model: LocalModel) -> None:
    node = Node()
    async with engine(tmp_path / "s", (503, {}), (200, {"choices": []}), (200, CALLED)) as fake:
        assert await started(tmp_path, node).test("m", model, ENGINE, str(tmp_path / "s"))
        assert len(fake.asked) == 3
    async with engine(tmp_path / "s", (500, {"error": {"message": "Failed to parse input at pos 3"}})) as fake:
        assert await started(tmp_path / "other", node).test("m", model, ENGINE, str(tmp_path / "s")) is False
    tests = started(tmp_path / "third", node, within=0.05)
    async with engine(tmp_path / "s", None) as fake:
        async with asyncio.timeout(60):
            assert await tests.test("m", model, ENGINE, str(tmp_path / "s")) is None
        assert 1 < len(fake.asked) <= 20
        assert await tests.known("m", model, ENGINE) is None


async def test_declared_models_and_those_without_chats_are_not_tested(tmp_path: Path, model: LocalModel) -> None:
    tests = started(tmp_path, Node(), declared={"yes": True, "no": False})
    assert await tests.known("yes", model, ENGINE) is True
    assert await tests.known("no", model, ENGINE) is False
    assert await tests.known("base", replace(model, chat_template=None), ENGINE) is False
    embedder = from_path(engine_samples.embedder(tmp_path / "e.gguf"), Store(tmp_path / "models"))
    assert await tests.known("e", embedder, ENGINE) is False


@pytest.mark.parametrize("damaged", [b"{", b"[]", b'{"a": 3}', b" " * (MAX_CACHE_BYTES + 1)])
async def test_damaged_cache_is_made_again(tmp_path: Path, model: LocalModel, damaged: bytes) -> None:
    (tmp_path / CACHE_NAME).write_bytes(damaged)
    tests = started(tmp_path, Node())
    assert await tests.known("m", model, ENGINE) is None
    async with engine(tmp_path / "s", (200, CALLED)):
        assert await tests.test("m", model, ENGINE, str(tmp_path / "s"))
    assert list(json.loads((tmp_path / CACHE_NAME).read_text()).values()) == [True]
