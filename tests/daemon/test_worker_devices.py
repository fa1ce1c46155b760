"""Several devices of each worker, with the real programs: what is planned, lent and started answers as one node would.

There is no accelerator here: a worker's devices are all its processor, which the engine takes for as many as it is
named.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest

from meshllm import paths
from meshllm.core import events as e
from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.speculation import PLAIN
from meshllm.core.split.lease import Lease, LeasedFile
from meshllm.core.split.planner import SplitPlan, WorkerOffer, need_of, plan
from meshllm.daemon.start_planner import StartPlanner
from meshllm.engine.build import builder
from meshllm.engine.processes import rpc_server
from meshllm.engine.processes.llama_server import ServerPlan
from meshllm.models.gguf.purpose import usage
from meshllm.models.hub.manifest import Manifest
from meshllm.models.library.local_model import LocalModel, from_path
from meshllm.models.library.store import Store
from meshllm.net.tunnels.rpc_tunnels import TunnelUse
from meshllm.util.progress import Progress
from scripts.benchmarks.speculation import Engine
from tests.daemon.test_worker_process import FIRST, HOST, LAST, Bench, bench

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SIZE = ContextSize(1024, 1)
ASKED: dict[str, Any] = {"prompt": "The planets of the solar system are", "n_predict": 24, "temperature": 0}


@pytest.fixture
def model(tmp_path: Path) -> LocalModel:
    if builder.find() is None:
        pytest.skip("the engine is not built (mesh-llm engine build)")
    found = sorted(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    if not found:
        pytest.skip("the model is not here (mesh-llm download SmolLM2-135M-Instruct)")
    return from_path(found[0], Store(tmp_path / "models"))


def agreed(model: LocalModel) -> Lease:
    """What a host plans with two workers, of which one has two devices and the other three, one too small."""
    need = need_of(model.header.shape, SIZE)
    each, rest = max(need.layers), need.ends + need.buffers
    rooms = [each * 7 + need.buffers, each * 9 + need.buffers], [each * 6 + need.buffers] * 2 + [need.buffers]
    workers = [
        WorkerOffer(node, sum(pieces), 0.001 * number, devices=tuple(pieces))
        for number, (node, pieces) in enumerate(zip((FIRST, LAST), rooms, strict=True), 1)
    ]
    found = plan(need, WorkerOffer(HOST, each * 8 + rest), workers, model.name)
    assert isinstance(found, SplitPlan)
    return Lease(b"s" * 16, 1, model.name, (LeasedFile(model.path.name, model.size, "ab" * 32),), found.shares)


def answer(stack: ExitStack, folder: Path, name: str, plan: ServerPlan) -> str:
    """What an engine writes that is started so."""
    engine = Engine(stack, folder, name, plan)
    engine.wait()
    return str(engine.ask("/completion", ASKED)["content"])


async def ready_sockets(it: Bench, lease: Lease) -> Path:
    """The socket of a worker's rpc-server, once it listens."""
    it.threads = 1
    it.carrying.start(lease)
    await it.until(e.WorkerReady)
    return it.tunnels.admitted[TunnelUse.COMMANDS][1]


def lent_by(it: Bench) -> int:
    """How many devices a worker's rpc-server says it has."""
    return (it.sockets.parent / "logs" / "rpc-server.log").read_text().count("  CPU: ")


async def test_workers_with_several_devices_answer_as_one_node(
    model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = agreed(model)
    assert [len(share.runs) for share in lease.shares] == [1, 2, 2]
    assert sum(share.layers for share in lease.shares) == model.header.layers

    async def files(manifest: Manifest, tell: Any) -> tuple[Path, ...]:
        tell(Progress("here"))
        return (model.path,)

    def devices_of(it: Bench, share: Any) -> tuple[str, ...]:
        return ("CPU",) * len(share.runs)

    monkeypatch.setattr(Bench, "worker_devices", devices_of)
    fit = StartPlanner(threads=1).plan_split(model, usage(model.header), lease, SIZE, PLAIN, None)
    assert fit.devices == ("RPC0", "RPC1", "RPC2", "RPC3")
    async with AsyncExitStack() as nodes:
        workers = [await nodes.enter_async_context(bench(tmp_path / n.hex()[:2], files, n)) for n in (FIRST, LAST)]
        sockets = [await ready_sockets(it, lease) for it in workers]
        shared = tmp_path / "files"
        rpc_server.write_files(shared, [rpc_server.SharedFile("ab" * 32, model.size, model.path)])
        with ExitStack() as stack:
            monkeypatch.setenv(rpc_server.FILES_VARIABLE, str(shared))
            split = ServerPlan(
                "m", model.path, SIZE.context_length, SIZE.slots, devices=fit.devices, layers=fit.layers,
                workers=tuple(sockets), threads=1,
            )  # fmt: skip
            told = await asyncio.to_thread(answer, stack, tmp_path, "split", split)
            alone = ServerPlan("m", model.path, SIZE.context_length, SIZE.slots, threads=1)
            assert told == await asyncio.to_thread(answer, stack, tmp_path, "alone", alone)
            # The engine starts with no device that it does not find, so that all four are there.
            assert [lent_by(it) for it in workers] == [2, 2]
        for it in workers:
            it.carrying.stop((lease.session, lease.generation))
            await it.until(e.WorkerGone)
