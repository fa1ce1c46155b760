"""A node that downloads a file from the mesh on command, for `scripts/bench swarm`; it serves no model.

It is a daemon without gateway, console and engine. It reads commands from standard input, one per line, and answers
each with one line of JSON on standard output:

    swarm            download the whole file from the mesh, verified, to the disk
    plain PORT...    receive as many bytes from plain TLS servers, one connection per port
    keep             download the file again and again
    rest             stop that
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

import uvloop

from meshllm.cli.join import read
from meshllm.core.node import NodeCore
from meshllm.core.snapshot import Snapshot
from meshllm.daemon.file_sharing import FileSharing
from meshllm.daemon.member_management import load_home_state
from meshllm.daemon.mesh_session import MeshSession
from meshllm.daemon.node_loop import NodeLoop
from meshllm.daemon.settings import Settings
from meshllm.models.hub.hub import Hub
from meshllm.models.hub.manifest import ModelFile
from meshllm.models.library.store import Store
from meshllm.models.transfer.fetcher import Fetcher
from meshllm.net.identity import Identity
from meshllm.tasks import Owner


class Sink(asyncio.Protocol):
    """Receives until the other end closes."""

    def __init__(self) -> None:
        self.received = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Count."""
        self.received += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """All has come."""
        self.over.set_result(None)


class Taker:
    """Takes `file` into `folder`."""

    def __init__(self, membership: MeshSession, folder: Path, file: ModelFile, givers: int) -> None:
        self._store = Store(folder)
        self._store.prepare()
        self._sharing = FileSharing(membership, self._store, lambda: False)
        self._context = Identity.load_or_create(folder / "plain").client_context()
        self._file = file
        self._givers = givers
        self._changed = asyncio.Event()

    def publish(self, snapshot: Snapshot) -> None:
        """What the core knows now."""
        self._sharing.publish(snapshot.mesh)
        self._changed.set()

    async def ready(self) -> None:
        """Until all givers are known."""
        while len(self._sharing.holders(self._file.name)) < self._givers:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Hang up."""
        await self._sharing.close()

    async def swarm(self) -> dict[str, Any]:
        """Take the file once: seconds, from whom and how."""
        vias: set[str] = set()
        source = self._sharing.source(self._file.name)

        def seen(step: object) -> None:
            if not vias:  # once: it takes a tenth of a millisecond
                vias.update(one.transport.value for one in self._sharing.status().downloads if one.transport)

        fetcher = Fetcher(self._store, seen, None, Hub(), source)
        begun, busy = time.perf_counter(), time.process_time()
        path = await fetcher.fetch(self._file)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - busy
        size = path.stat().st_size
        self._store.discard(self._file)
        banned = len(self._sharing.status().banned)
        return {"seconds": seconds, "cpu": cpu, "bytes": size, "vias": sorted(vias), "banned": banned}

    async def plain(self, ports: list[int]) -> dict[str, Any]:
        """The same number of bytes from servers that do nothing else: seconds."""
        loop = asyncio.get_running_loop()
        begun, busy = time.perf_counter(), time.process_time()
        sinks = []
        for port in ports:
            _, sink = await loop.create_connection(Sink, "127.0.0.1", port, ssl=self._context)
            sinks.append(sink)
        for sink in sinks:
            await sink.over
        return {
            "seconds": time.perf_counter() - begun,
            "cpu": time.process_time() - busy,
            "bytes": sum(sink.received for sink in sinks),
        }

    async def keep(self) -> None:
        """Take the file over and over."""
        while True:
            await self.swarm()


async def obey(taker: Taker, owner: Owner, read_line: Callable[[], Any]) -> None:
    """Carry out commands until there are no more."""
    kept: asyncio.Task[None] | None = None
    while line := (await read_line()).decode().split():
        match line:
            case ["swarm"]:
                answer = await taker.swarm()
            case ["plain", *ports]:
                answer = await taker.plain([int(port) for port in ports])
            case ["keep"]:
                kept, answer = owner.start(taker.keep(), "keep"), {}
            case ["rest"]:
                if kept is not None:
                    kept.cancel()
                    await asyncio.wait([kept])
                answer = {}
            case _:
                raise SystemExit(f"not understood: {line}")
        print(json.dumps(answer), flush=True)


async def main(options: argparse.Namespace) -> None:
    """Join, and obey."""
    settings = Settings(home=options.folder / "home", invites=read([f"@{options.invite}"]), node_name="taker")
    settings.home.mkdir(parents=True)
    mailbox: asyncio.Queue[Any] = asyncio.Queue()
    membership = MeshSession(settings, load_home_state(settings), mailbox.put_nowait)
    owner = Owner("taker")
    await membership.begin(lambda peer: asyncio.Protocol())
    file = ModelFile(options.name, options.size, options.sha256)
    taker = Taker(membership, options.folder, file, options.givers)

    def publish(snapshot: Snapshot) -> None:
        membership.publish(snapshot.mesh)
        taker.publish(snapshot)

    try:
        node = NodeLoop(NodeCore(membership.config, Random()), publish, mailbox)
        owner.start(node.run(lambda command: cast(None, membership.carry_out(command))), "node")
        async with asyncio.timeout(60):
            await taker.ready()
        print(json.dumps({"ready": True}), flush=True)
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        await obey(taker, owner, lines.readline)
    finally:
        await owner.close()
        await taker.close()
        await membership.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--invite", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--sha256", required=True)
    parser.add_argument("--givers", type=int, required=True)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    uvloop.run(main(parser.parse_args()))
