"""Attacks from within the sandbox, by a program that runs under the reaper as the engine does. Audit: C1.3, L10."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from meshllm.engine.processes import llama_server
from meshllm.engine.processes.child import Child, ChildSpec
from meshllm.engine.processes.child_registry import ChildRegistry
from meshllm.engine.sandbox import environment
from meshllm.engine.sandbox.availability import available
from meshllm.engine.sandbox.policy import Sandbox, SandboxLayers, SandboxPolicy, memory_limit

ATTACKS = Path(__file__).with_name("cage_attacks.py")
PYTHON = (Path(sys.prefix), Path(sys.base_prefix), ATTACKS)
WORKS = {
    "read the model", "make a socket in its own folder", "connect to the allowed socket", "signal itself",
    "private memory", "start a thread", "own priority",
}  # fmt: skip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox of Linux")


@cache
def layers() -> SandboxLayers:
    """What this machine enforces."""
    return available()


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[tuple[int, Path, Path]]:
    """A TCP port, and two Unix sockets, that greet whoever comes."""
    made = [socket.create_server(("127.0.0.1", 0)), *(socket.socket(socket.AF_UNIX) for _ in range(2))]
    paths = tmp_path / "a.sock", tmp_path / "b.sock"
    for listener, path in zip(made[1:], paths, strict=True):
        listener.bind(str(path))
        listener.listen()

    def greet(listener: socket.socket) -> None:
        try:
            while True:
                connection, _ = listener.accept()
                connection.send(b"hello")
                connection.close()
        except OSError:
            return

    threads = [Thread(target=greet, args=(listener,), daemon=True) for listener in made]
    for thread in threads:
        thread.start()
    yield made[0].getsockname()[1], *paths
    for listener in made:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)


async def attack(folder: Path, found: tuple[int, Path, Path], enforced: SandboxLayers, victim: int) -> dict[str, Any]:
    """The results of the attacks in a sandbox of the layers `enforced`."""
    model, home = folder / "models" / "m.gguf", folder / "home"
    for made in (model.parent, home, folder / "run"):
        made.mkdir()
    model.write_bytes(b"GGUF")
    secret = home / "node-key"
    secret.write_bytes(b"secret")
    port, allowed, other = found
    lines: list[str] = []

    async def probe() -> bool:
        return False

    def on_line(line: str) -> bool:
        lines.append(line)
        return False

    with llama_server.private_directory(folder / "run") as own:
        policy = SandboxPolicy(
            Path(sys.executable), (*PYTHON, model), own, connects=(allowed,), memory=memory_limit(0, 100 << 20)
        )
        policy = replace(policy, memory=min(policy.memory or 0, 900 << 20))
        around = {**os.environ, "HF_TOKEN": "hf_x", "MESH_LLM_API_KEY": "k", "LC_ALL": "C.UTF-8"}
        arguments = (own, model, secret, folder / "outside", port, allowed, other, victim)
        spec = ChildSpec(
            name="attack",
            argv=(sys.executable, "-I", str(ATTACKS), *map(str, arguments)),
            environment=environment.filtered(around) | policy.variables,
            log=folder / "log",
            probe=probe,
            on_line=on_line,
            sandbox=Sandbox(policy, enforced),
        )
        async with asyncio.timeout(60):
            ending = await Child(spec, ChildRegistry(folder / "children"), lambda pid: None).run()
    assert ending.status == 0, ending.tail
    assert lines[0] == f"sandbox: {Sandbox(policy, enforced).label()}"
    if enforced.landlock:
        assert model.read_bytes() == b"GGUF"
    return dict(json.loads(next(line for line in lines if line.startswith("facts "))[len("facts ") :]))


@pytest.fixture
def victim() -> Iterator[int]:
    """Another process of the same user."""
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait(10)


async def test_sandboxed_process_reaches_nothing_but_its_own(
    tmp_path: Path, listeners: tuple[int, Path, Path], victim: int
) -> None:
    if not (layers().cage and layers().broker):
        pytest.skip(f"no sandbox here: {layers().problems}")
    facts = await attack(tmp_path, listeners, layers(), victim)
    assert {name for name, error in facts["results"].items() if not error} == WORKS, facts["results"]
    assert facts["status"]["NoNewPrivs"] == "1"
    assert facts["status"]["Seccomp"] == "2"
    assert int(facts["status"]["CapEff"], 16) == int(facts["status"]["CapBnd"], 16) == 0
    assert facts["core"] == [1, 1]
    assert facts["umask"] == 0o077
    assert not {"HF_TOKEN", "MESH_LLM_API_KEY"} & set(facts["environment"])
    assert {"LC_ALL", "TMPDIR"} <= set(facts["environment"])


@pytest.mark.parametrize("abi", range(1, 8))
async def test_older_landlock_confines_files_too(
    tmp_path: Path, listeners: tuple[int, Path, Path], victim: int, abi: int
) -> None:
    if layers().landlock < abi or not layers().filter:
        pytest.skip(f"Landlock ABI {layers().landlock} here")
    facts = await attack(tmp_path, listeners, replace(layers(), landlock=abi), victim)
    failed = {name for name, error in facts["results"].items() if not error}
    assert failed == WORKS, facts["results"]


async def test_filter_alone_confines_the_network(
    tmp_path: Path, listeners: tuple[int, Path, Path], victim: int
) -> None:
    if not layers().filter:
        pytest.skip(f"no seccomp here: {layers().problems}")
    enforced = replace(layers(), landlock=0)
    assert not enforced.cage
    facts = await attack(tmp_path, listeners, enforced, victim)
    for name in ("AF_INET", "connect by TCP", "ptrace", "signal another process", "connect to another socket"):
        assert facts["results"][name], name
    assert not facts["results"]["read a secret"]


async def test_sandbox_that_cannot_be_applied_starts_no_program(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    async def probe() -> bool:
        return False

    # A filter without an instruction is refused by the kernel.
    class Broken(Sandbox):
        __slots__ = ()

        def plan(self) -> dict[str, Any]:
            return {**super().plan(), "filter": "00"}

    spec = ChildSpec(
        "broken", ("/bin/touch", str(ran)), {}, tmp_path / "log", probe,
        sandbox=Broken(SandboxPolicy(Path("/bin/touch")), SandboxLayers(filter=platform.machine() == "x86_64")),
    )  # fmt: skip
    async with asyncio.timeout(60):
        ending = await Child(spec, ChildRegistry(tmp_path / "children"), lambda pid: None).run()
    assert ending.status == 126
    assert "cannot apply the sandbox" in "\n".join(ending.tail)
    assert not ran.exists()
