"""The real engine exits on request, before the grace period ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meshllm import paths
from meshllm.engine.build import builder
from meshllm.engine.processes import llama_server
from meshllm.engine.processes.child import Child
from meshllm.engine.processes.child_registry import ChildRegistry
from meshllm.engine.processes.llama_server import ServerPlan
from meshllm.tasks import Owner


@pytest.mark.engine
async def test_llama_server_exits_on_the_stop_line(tmp_path: Path) -> None:
    engine = builder.find()
    assert engine is not None
    model = next(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    plan = ServerPlan("m", model, context_length=256, slots=1)
    spec = llama_server.child_spec(engine.server, plan, tmp_path / "s.sock", tmp_path / "log", lambda fraction: None)
    ready = asyncio.Event()
    child = Child(spec, ChildRegistry(tmp_path / "ledger"), lambda pid: ready.set())
    owner = Owner("test")
    running = owner.start(child.run(), "engine")
    await ready.wait()
    child.stop()
    ending = await running
    await owner.close()
    assert ending.requested
    assert ending.status == 0, "it was not killed"
