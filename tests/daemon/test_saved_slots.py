"""Which slots are saved and restored, told by an engine that is a script."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshllm.core.memory.model_shape import LayerShape, ModelShape
from meshllm.core.memory.speculation import DraftSource, Speculation
from meshllm.core.snapshot import Purpose
from meshllm.daemon.drains import Drains
from meshllm.daemon.prompt_store import PromptStore
from meshllm.daemon.saved_slots import LEAST_TOKENS, SavedModel, SavedSlots, unsupported
from meshllm.engine.processes.llama_server import Projector, ServerPlan
from meshllm.tasks import Owner


class Engine:
    """Answers /slots; its files hold the numbers of their tokens. `slots`: (task, tokens, busy) of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "slots"
        self.folder.mkdir()
        self.socket = folder / "s.sock"
        self.slots: list[tuple[int | None, int, bool]] = [(None, 0, False)] * 4
        self.restored: dict[int, str] = {}
        self.saves: list[int] = []
        self.refuses = False
        self.erased: list[int] = []
        # Called before a slot is saved or restored.
        self.meanwhile: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Engine:
        self._server = await asyncio.start_unix_server(self._serve, self.socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        body = b""
        for line in head.splitlines():
            if line.lower().startswith("content-length:"):
                body = await reader.readexactly(int(line.partition(":")[2]))
        try:
            status, reply = self._answer(head.split(" ")[1], json.loads(body or b"{}"))
        except EOFError:
            writer.close()
            return
        text = json.dumps(reply).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
        writer.close()

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/slots":
            return 200, [
                {"id": number, "is_processing": busy, **({"id_task": task, "n_prompt_tokens": n} if task else {})}
                for number, (task, n, busy) in enumerate(self.slots)
            ]
        if self.refuses:
            return 400, {"error": {"message": "Unable to restore slot"}}
        number, action = int(path.split("/")[2].split("?")[0]), path.partition("=")[2]
        if action == "erase":
            self.erased.append(number)
            return 200, {"n_erased": 1}
        self.meanwhile()
        file = self.folder / body["filename"]
        if action == "save":
            self.saves.append(number)
            tokens = range(number * 100_000, number * 100_000 + self.slots[number][1])
            packed = struct.pack(f"<iII{len(tokens)}iI", -1, 1, len(tokens), *tokens, 0)
            file.write_bytes(struct.pack("<III", 1, 2, len(packed) // 4) + packed)
            return 200, {"n_saved": len(tokens)}
        self.restored[number] = body["filename"]
        assert file.stat().st_size > 0
        return 200, {"n_restored": 1}


class Kept:
    """The slots of a process, what is used of it, and the store."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.guests = False
        self.store = PromptStore(folder, lambda: 1e9)
        self.model = SavedModel("m", 1, folder / "m.gguf", "k" * 32, 10)
        self.model.path.write_bytes(b"weights")
        uses = Drains(lambda *it: False, lambda *it: self.guests)
        self.slots = SavedSlots(self.store, uses, self.model, engine.socket, engine.folder)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with Engine(tmp_path) as made:
        yield made


@pytest.fixture
def kept(tmp_path: Path, engine: Engine) -> Kept:
    return Kept(tmp_path, engine)


async def test_used_slots_are_saved_once_the_latest_first(kept: Kept, engine: Engine) -> None:
    engine.slots = [(3, 500, False), (9, 700, False), (5, LEAST_TOKENS - 1, False), (8, 900, True)]
    assert await kept.slots.save(20) == 2
    assert engine.saves == [1, 0]
    assert await kept.slots.save(20) == 0
    engine.slots[0] = (12, 600, False)
    assert await kept.slots.save(20) == 1
    assert engine.saves == [1, 0, 0]
    assert sorted(one.tokens for one in kept.store.find(kept.model.key)) == [600, 700]
    assert list(engine.folder.iterdir()) == []


async def test_nothing_is_saved_of_a_process_that_guests_have_used(kept: Kept, engine: Engine) -> None:
    engine.slots[0] = (3, 500, False)
    kept.guests = True
    assert await kept.slots.save(20) == 0
    assert engine.saves == []
    assert kept.store.find(kept.model.key) == []


async def test_prompt_of_a_guest_who_comes_while_a_slot_is_saved_is_not_kept(kept: Kept, engine: Engine) -> None:
    engine.slots[0] = (3, 500, False)
    engine.meanwhile = lambda: setattr(kept, "guests", True)
    assert await kept.slots.save(20) == 0
    assert engine.saves == [0]
    assert kept.store.find(kept.model.key) == []
    assert list(engine.folder.iterdir()) == []


@pytest.mark.parametrize("used", [True, False])
async def test_slot_that_a_guest_has_used_before_it_is_restored_is_erased(
    kept: Kept, engine: Engine, used: bool
) -> None:
    engine.slots[0] = (3, 500, False)
    await kept.slots.save(20)
    engine.slots = [(None, 0, False)] * 4

    def come() -> None:
        kept.guests = True
        if used:
            engine.slots[0] = (1, 40, False)

    engine.meanwhile = come
    assert await kept.slots.restore() == (not used)
    assert engine.erased == ([0] if used else [])
    assert len(kept.store.find(kept.model.key)) == 1


async def test_restored_into_empty_slots_only(kept: Kept, engine: Engine, tmp_path: Path) -> None:
    engine.slots = [(3, 500, False), (9, 700, False), (None, 0, False), (None, 0, False)]
    await kept.slots.save(20)
    engine.slots = [(1, 50, False), (None, 0, False), (None, 0, False), (2, 50, True)]
    assert await kept.slots.restore() == 1
    assert list(engine.restored) == [1]
    assert list(engine.folder.iterdir()) == []
    engine.slots, engine.refuses = [(None, 0, False)] * 4, True
    assert await kept.slots.restore() == 0
    assert kept.store.find(kept.model.key) == [], "what the engine refuses is removed"


async def test_file_during_whose_restore_the_engine_ends_is_removed(kept: Kept, engine: Engine) -> None:
    """Else it would end each engine that follows."""
    engine.slots[:2] = [(3, 500, False), (4, 600, False)]
    await kept.slots.save(20)
    engine.slots = [(None, 0, False)] * 4
    last = kept.store.find(kept.model.key)[0]

    def end() -> None:
        raise EOFError

    engine.meanwhile = end
    assert await kept.slots.restore() == 0
    assert last not in kept.store.find(kept.model.key)
    assert len(kept.store.find(kept.model.key)) == 1
    assert list(engine.folder.iterdir()) == []


async def test_process_is_ready_when_its_prompts_are_restored(kept: Kept, engine: Engine) -> None:
    engine.slots[2] = (3, 500, False)
    await kept.slots.save(20)
    engine.slots = [(None, 0, False)] * 4
    await kept.slots.ahead(0.01)
    assert not engine.restored
    owner = Owner("test")
    owner.start(kept.slots.run(), "slots")
    await kept.slots.ahead(20)
    assert list(engine.restored) == [0]
    await owner.close()


async def test_engine_that_does_not_answer_costs_nothing_else(kept: Kept, engine: Engine) -> None:
    engine.socket.unlink()
    assert await kept.slots.save(20) == 0
    assert await kept.slots.restore() == 0


def test_models_whose_slots_cannot_be_saved() -> None:
    plan = ServerPlan("m", Path("m"), 4096, 4)
    shape = ModelShape((LayerShape(keys=8, values=8),))
    assert unsupported(shape, plan) == ""
    assert unsupported(ModelShape((LayerShape(keys=8, values=8, window=512),)), plan)
    assert unsupported(ModelShape((LayerShape(state=64),)), plan)
    for other in (
        replace(plan, purpose=Purpose.EMBED),
        replace(plan, workers=(Path("w"),)),
        replace(plan, projector=Projector(Path("p"))),
        replace(plan, speculation=Speculation(DraftSource.DRAFT)),
    ):
        assert unsupported(shape, other)
