"""Queries to libllama: devices, the memory that a model needs, the vocabulary of a model file.

Invariant: libllama is loaded only into a child process per query (libllama_probe.py), bounded in time and memory,
because it aborts on invalid files. A crash of that process is reported as an error about the file.

Cost of a query: a process of 0.1 to 0.2 s and 50 MB (measured, CPU only). With GPU drivers, their start comes on top
(CUDA: seconds of time, and hundreds of MB of GPU memory while the process lives): do not poll. To refresh free memory
alone, use `with_free_memory`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meshllm.engine.build.installed import Engine
from meshllm.engine.sandbox import environment
from meshllm.engine.sandbox.policy import NO_SANDBOX, Sandboxing, SandboxPolicy, accelerator_nodes
from meshllm.errors import EngineUnavailable, InvalidModelFile
from meshllm.util.format import printable, printable_message

SECONDS = 60
MEMORY = 4 * 1024**3
"""Bytes of private memory for a query; a vocabulary of 256k tokens takes 0.1 GB, the graph of a large model as much."""
MAX_REPLY = 1024 * 1024

CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
"""Values of llama-server's --cache-type-k/-v, as numbers of `enum ggml_type`."""

# The name of the first file of a model in several.
_FIRST_PART = re.compile(r"(.+)-00001-of-(\d{5})\.gguf")
MAX_PARTS = 500
_PCI_ADDRESS = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")

POOLINGS = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
"""Values of llama-server's --pooling, as numbers of `enum llama_pooling_type`."""


@dataclass(frozen=True, slots=True)
class EngineDevice:
    """A device that the engine computes on: `name` for --device ("CUDA0", "CPU"), `backend` ("CUDA", ...).

    `accelerator`: a GPU, of this machine or of an RPC server. `shared`: it uses the computer's memory. `id`: its PCI
    address ("0000:01:00.0"), "" if unknown; two backends may list the same device. `free` and `total`: bytes, 0 if
    unknown.
    """

    name: str
    description: str
    backend: str
    accelerator: bool
    shared: bool
    id: str
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class BufferNeed:
    """Bytes in buffers of one type (`CPU`, `CPU_REPACK`, `CUDA0`, ...). `host`: in the computer's own memory."""

    kind: str
    device: str
    host: bool
    model: int
    context: int
    compute: int

    @property
    def total(self) -> int:
        return self.model + self.context + self.compute


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that a model and its context will allocate, as computed by the engine.

    Exact for buffers. Not included: the program and its libraries (about 50 MB), the output buffer (size of the
    vocabulary times 4 bytes per slot, or per token of a batch for embeddings), the prompt cache, and the memory of a
    GPU driver.
    """

    buffers: tuple[BufferNeed, ...]
    context_size: int
    trained_context: int
    layers: int
    parameters: int

    @property
    def model(self) -> int:
        return sum(buffer.model for buffer in self.buffers)

    @property
    def context(self) -> int:
        return sum(buffer.context for buffer in self.buffers)

    @property
    def compute(self) -> int:
        return sum(buffer.compute for buffer in self.buffers)

    @property
    def total(self) -> int:
        return self.model + self.context + self.compute

    @property
    def mapped(self) -> int:
        """Bytes of weights that are mapped from the file: the system can drop them and read them again."""
        return sum(buffer.model for buffer in self.buffers if buffer.host and buffer.kind == "CPU")

    def by_device(self) -> dict[str, int]:
        """Bytes by device; buffers in the computer's own memory count as CPU, whichever device uses them."""
        totals: dict[str, int] = {}
        for buffer in self.buffers:
            name = "CPU" if buffer.host else buffer.device
            totals[name] = totals.get(name, 0) + buffer.total
        return totals


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A model's vocabulary. Two models with equal `digest` have the same tokens, so one can draft for the other.

    `special` maps names such as `bos` and `eos` to token ids; `end`: the ids that end a generation.
    """

    type: str
    size: int
    special: Mapping[str, int]
    end: tuple[int, ...]
    digest: str


async def devices(engine: Engine, *, rpc: Sequence[str] = (), seconds: int = SECONDS) -> tuple[EngineDevice, ...]:
    """All devices of this engine, and of the RPC servers at the endpoints `rpc` (host:port).

    Cost: see the module. Raises EngineUnavailable if the engine does not work on this machine.
    """
    reply = await _query(engine, {"task": "devices", "rpc": list(rpc)}, seconds)
    return tuple(EngineDevice(**device) for device in reply["devices"])


def with_free_memory(devices: Sequence[EngineDevice], free: Mapping[str, int]) -> tuple[EngineDevice, ...]:
    """`devices` with `free` bytes by PCI address (`machine.device_memory.free_memory`); others are unchanged.

    Starts no process. A device never has more free memory than its total.
    """
    found = {pci_address(address): amount for address, amount in free.items()}
    return tuple(
        replace(device, free=min(found[key], device.total or found[key]))
        if (key := pci_address(device.id)) and key in found and not device.shared
        else device
        for device in devices
    )


def pci_address(text: str) -> str:
    """A PCI address in one spelling ("0000:01:00.0"); tools differ in the digits of the domain. "" for other text."""
    match = _PCI_ADDRESS.fullmatch(text.strip().lower())
    return f"{int(match[1] or '0', 16):04x}:{match[2]}:{match[3]}.{match[4]}" if match else ""


async def memory_need(
    engine: Engine,
    model_path: Path,
    *,
    context_size: int,
    parallel: int = 1,
    unified: bool = False,
    gpu_layers: int = -1,
    devices: Sequence[str] | None = None,
    split: Sequence[int] = (),
    experts_aside: int = 0,
    rpc: Sequence[str] = (),
    batch: int = 2048,
    micro_batch: int = 512,
    embeddings: bool = False,
    pooling: str | None = None,
    draft_tokens: int = 0,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    seconds: int = SECONDS,
    sandboxing: Sandboxing = NO_SANDBOX,
) -> MemoryNeed:
    """The memory that llama-server will allocate with these options.

    --ctx-size (for all slots together), --parallel, --kv-unified, --gpu-layers (-1: all), --device (None: the engine's
    choice), --tensor-split, --n-cpu-moe (`experts_aside`), --rpc, --batch-size, --ubatch-size, --embeddings, --pooling
    (None: the model's own), --cache-type-k/-v. With --embeddings, llama-server uses --ubatch-size for both batch sizes.
    `draft_tokens`: the maximum number of draft tokens per slot; each needs an output row.

    Takes up to a second for large models. Raises InvalidModelFile if the engine rejects the file or crashes on it,
    EngineUnavailable if the engine does not work.
    """
    reply = await _query(
        engine,
        {
            "task": "memory",
            "path": str(model_path),
            "context_size": context_size,
            "parallel": parallel,
            "unified": unified,
            "gpu_layers": gpu_layers,
            "devices": None if devices is None else list(devices),
            "split": list(split),
            "experts_aside": experts_aside,
            "rpc": list(rpc),
            "batch": min(batch, micro_batch) if embeddings else batch,
            "micro_batch": micro_batch,
            "embeddings": embeddings,
            "pooling": -1 if pooling is None else POOLINGS[pooling],
            "draft_tokens": draft_tokens,
            "type_k": CACHE_TYPES[cache_type_k],
            "type_v": CACHE_TYPES[cache_type_v],
        },
        seconds,
        sandboxing,
    )
    buffers = tuple(BufferNeed(**buffer) for buffer in reply.pop("buffers"))
    return MemoryNeed(buffers, **reply)


async def vocabulary(
    engine: Engine, model_path: Path, *, seconds: int = SECONDS, sandboxing: Sandboxing = NO_SANDBOX
) -> Vocabulary:
    """The vocabulary of a model file, without reading weights. Cost and errors as for `memory_need`."""
    reply = await _query(engine, {"task": "vocabulary", "path": str(model_path)}, seconds, sandboxing)
    return Vocabulary(reply["type"], reply["size"], reply["special"], tuple(reply["end"]), reply["digest"])


async def _query(
    engine: Engine, request: dict[str, Any], seconds: int, sandboxing: Sandboxing = NO_SANDBOX
) -> dict[str, Any]:
    name = Path(request["path"]).name if "path" in request else ""
    command = [sys.executable, "-P", "-m", "meshllm.engine.probe.libllama_probe"]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**_environment(), "LLAMA_CPP_LIB_PATH": str(engine.library_dir)},
        start_new_session=True,
    )
    plan = None if not name or request.get("rpc") else sandboxing.apply(_policy(engine, Path(request["path"]))).plan()
    line = json.dumps({**request, "seconds": seconds, "memory": MEMORY, "sandbox": plan}).encode() + b"\n"
    try:
        async with asyncio.timeout(seconds + 5):  # the probe ends itself earlier
            output, log = await process.communicate(line)
    except TimeoutError:
        output, log = b"", b""
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return _parse_reply(name, process.returncode or 0, output, log)


def _environment() -> dict[str, str]:
    """The probe's environment: what engine processes inherit, and where Python finds its packages."""
    python = {name: os.environ[name] for name in ("PYTHONPATH", "PYTHONHOME") if name in os.environ}
    return {**environment.filtered(), **python, "PYTHONWARNINGS": "ignore"}


def _policy(engine: Engine, model: Path) -> SandboxPolicy:
    """What a probe of `model` needs: its parts, the library, Python with its packages; it writes nothing.

    The devices are listed without a sandbox: NVIDIA's driver may have to be loaded by its setuid program.
    """
    python = [sys.prefix, sys.base_prefix, *sys.path, str(Path(environment.__file__).parents[3])]
    return SandboxPolicy(
        engine.server,
        reads=(*_parts(model), *(Path(folder) for folder in python if folder.startswith("/"))),
        accelerators=bool(accelerator_nodes()),
    )


def _parts(model: Path) -> list[Path]:
    """The files of a model whose first file is `model`, which the library finds by their names."""
    found = _FIRST_PART.fullmatch(model.name)
    if found is None:
        return [model]
    return [
        model.with_name(f"{found[1]}-{part:05d}-of-{found[2]}.gguf")
        for part in range(1, min(int(found[2]), MAX_PARTS) + 1)
    ]


def _parse_reply(name: str, code: int, output: bytes, log: bytes) -> dict[str, Any]:
    """The reply in the probe's output. Raises the error that its output or its end means."""
    try:
        reply = json.loads(output) if code == 0 and len(output) <= MAX_REPLY else None
    except ValueError:
        reply = None
    if isinstance(reply, dict) and "broken" in reply:
        raise _broken(str(reply["broken"]))
    if isinstance(reply, dict) and "error" in reply:
        if not name:
            raise _broken(str(reply["error"]))
        raise _invalid(name, f"the engine rejects it: {reply['error']}")
    if isinstance(reply, dict):
        return reply
    if not name:  # the query was not about a file
        raise _broken(log.decode("utf-8", "replace").strip()[-500:] or f"the probe ended with status {code}")
    if code in (-signal.SIGALRM, -signal.SIGKILL):
        raise _invalid(name, "reading it took too long or too much memory")
    if code < 0:
        lines = log.decode("utf-8", "replace").strip().splitlines()[-1:] or [""]
        raise _invalid(name, f"the engine crashed while reading it (signal {-code}) {lines[0][:300]}".rstrip())
    raise _broken(log.decode("utf-8", "replace").strip()[-500:])


def _invalid(name: str, cause: str) -> InvalidModelFile:
    return InvalidModelFile(
        f"Cannot use {printable(name)}: {printable_message(cause)}.",
        advice="Download the file again if it may be damaged; otherwise choose another model.",
    )


def _broken(cause: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"Cannot use the engine's library: {printable_message(cause)}",
        advice="Run `mesh-llm engine rebuild`.",
    )
