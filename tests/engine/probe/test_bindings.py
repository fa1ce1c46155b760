"""Queries to libllama: its memory figures equal the allocations of llama-server; errors about files and the library."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
from pathlib import Path

import pytest

from meshllm import paths
from meshllm.engine.build import builder
from meshllm.engine.build.builder import Engine
from meshllm.engine.build.installed import EngineInfo
from meshllm.engine.probe import bindings
from meshllm.engine.probe.bindings import EngineDevice
from meshllm.errors import EngineUnavailable, InvalidModelFile

NOTHING = EngineInfo("", "", "", (), (), "", (), "", "", "", 0.0, 0)


@pytest.fixture(scope="module")
def engine() -> Engine:
    found = builder.find()
    if found is None:
        pytest.skip("the engine is not built (run mesh-llm engine build)")
    return found


@pytest.fixture(scope="module")
def model() -> Path:
    found = sorted(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    if not found:
        pytest.skip("the model is missing (run mesh-llm download SmolLM2-135M-Instruct)")
    return found[0]


def buffers_of_a_server(engine: Engine, model: Path, folder: Path, *options: str) -> dict[str, float]:
    """MiB of the buffers that a llama-server allocates, by purpose, from its log."""
    command = [engine.server, "--model", model, "--host", folder / "s.sock", "--fit", "off", "--offline", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            if "listening" in line:
                break
        server.kill()  # it ignores SIGTERM while it starts
    sizes: dict[str, float] = {"model": 0.0, "KV": 0.0, "compute": 0.0}
    for line in lines:
        if found := re.search(r"(model|KV|compute) buffer size = +([\d.]+) MiB", line):
            sizes[found[1]] += float(found[2])
    assert all(sizes.values()), "".join(lines)
    return sizes


@pytest.mark.engine
@pytest.mark.parametrize(("slots", "context"), [(1, 2048), (4, 8192)])
async def test_memory_need_equals_the_allocations_of_llama_server(
    engine: Engine, model: Path, tmp_path: Path, slots: int, context: int
) -> None:
    need = await bindings.memory_need(engine, model, context_size=context, parallel=slots)
    options = ("--ctx-size", str(context), "--parallel", str(slots), "--no-kv-unified", "--verbose")
    allocated = buffers_of_a_server(engine, model, tmp_path, *options)
    for computed, logged in (
        (need.model, allocated["model"]),
        (need.context, allocated["KV"]),
        (need.compute, allocated["compute"]),
    ):
        assert computed / 2**20 == pytest.approx(logged, rel=0.03)
    assert need.total == sum(need.by_device().values()) == need.model + need.context + need.compute
    assert need.context_size == context
    assert (need.layers, need.trained_context) == (30, 8192)


@pytest.mark.engine
async def test_memory_need_depends_on_the_options(engine: Engine, model: Path) -> None:
    small = await bindings.memory_need(engine, model, context_size=1024)
    large = await bindings.memory_need(engine, model, context_size=4096)
    assert large.context == 4 * small.context
    assert large.model == small.model
    quantized = await bindings.memory_need(engine, model, context_size=4096, cache_type_k="q8_0")
    assert quantized.context < large.context


@pytest.mark.engine
async def test_vocabulary_of_a_model(engine: Engine, model: Path, tmp_path: Path) -> None:
    found = await bindings.vocabulary(engine, model)
    assert (found.type, found.size) == ("bpe", 49152)
    assert found.special["eos"] == 2
    assert 2 in found.end
    link = tmp_path / "other name.gguf"
    link.symlink_to(model)
    assert await bindings.vocabulary(engine, link) == found


@pytest.mark.engine
async def test_invalid_files_raise_invalid_model_file(engine: Engine, model: Path, tmp_path: Path) -> None:
    with model.open("rb") as file:
        head = file.read(2_000_000)
    bad = tmp_path / "bad.gguf"
    count = 16  # offset of the number of keys: after magic, version and number of tensors
    damaged = [
        b"",
        b"GGUF",
        b"GGUF\x03\0\0\0" + b"\xff" * 64,
        head[:100_000],
        head,
        head[:count] + b"\xff\xff\xff\x7f\0\0\0\0" + head[count + 8 :],
        head[:300] + bytes(200) + head[500:],
    ]
    for data in damaged:
        bad.write_bytes(data)
        with pytest.raises(InvalidModelFile, match=r"bad\.gguf") as caught:
            await bindings.memory_need(engine, bad, context_size=512)
        assert caught.value.advice
    with pytest.raises(InvalidModelFile):
        await bindings.vocabulary(engine, tmp_path / "gone.gguf")


@pytest.mark.engine
async def test_probe_is_killed_after_its_deadline(engine: Engine, tmp_path: Path) -> None:
    import os

    endless = tmp_path / "endless.gguf"
    os.mkfifo(endless)
    with pytest.raises(InvalidModelFile, match="too long"):
        await bindings.vocabulary(engine, endless, seconds=1)


async def test_missing_library_raises_engine_unavailable(tmp_path: Path) -> None:
    broken = Engine("0" * 16, tmp_path, tmp_path, tmp_path, tmp_path, tmp_path, NOTHING)
    with pytest.raises(EngineUnavailable, match="llama") as caught:
        await bindings.vocabulary(broken, tmp_path / "x.gguf")
    assert "rebuild" in caught.value.advice
    (tmp_path / "libllama.so").write_bytes(b"not a library")
    with pytest.raises(EngineUnavailable):
        await bindings.vocabulary(dataclasses.replace(broken, key="1" * 16), tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("code", "output", "error", "words"),
    [
        (-signal.SIGSEGV, b"", InvalidModelFile, "crashed"),
        (-signal.SIGABRT, b'{"half', InvalidModelFile, "crashed"),
        (-signal.SIGALRM, b"", InvalidModelFile, "too long"),
        (-signal.SIGKILL, b"", InvalidModelFile, "too long"),
        (0, b"not JSON", EngineUnavailable, "library"),
        (0, b"[1]", EngineUnavailable, "library"),
        (1, b"", EngineUnavailable, "the log"),
        (0, b'{"error": "no magic"}', InvalidModelFile, "no magic"),
        (0, b'{"broken": "no symbol"}', EngineUnavailable, "no symbol"),
    ],
)
def test_every_end_of_a_probe_is_a_typed_error(code: int, output: bytes, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bindings._parse_reply("m.gguf", code, output, b"the log")


def test_free_memory_is_merged_by_pci_address() -> None:
    cpu = EngineDevice("CPU", "", "CPU", False, False, "", 1, 2)
    first = EngineDevice("CUDA0", "", "CUDA", True, False, "0000:01:00.0", 5, 100)
    second = EngineDevice("CUDA1", "", "CUDA", True, False, "0000:C1:00.0", 5, 100)
    shared = EngineDevice("Vulkan0", "", "Vulkan", True, True, "0000:03:00.0", 5, 100)
    found = bindings.with_free_memory(
        [cpu, first, second, shared], {"00000000:01:00.0": 70, "c1:00.0": 700, "0000:03:00.0": 9}
    )
    assert [device.free for device in found] == [1, 70, 100, 5]
    assert bindings.pci_address("not an address") == ""


@pytest.mark.engine
async def test_memory_need_lists_every_buffer_type_once(engine: Engine, model: Path) -> None:
    need = await bindings.memory_need(engine, model, context_size=2048)
    kinds = [(buffer.kind, buffer.device) for buffer in need.buffers]
    assert len(set(kinds)) == len(kinds)
    assert ("CPU", "CPU") in kinds
    assert all(buffer.host for buffer in need.buffers if buffer.device == "CPU")
    assert all(size >= 0 for buffer in need.buffers for size in (buffer.model, buffer.context, buffer.compute))
    assert need.mapped > 0


@pytest.mark.engine
async def test_probe_runs_no_module_of_the_working_directory(
    engine: Engine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not json')")
    monkeypatch.chdir(tmp_path)
    assert (await bindings.vocabulary(engine, model)).size == 49152
