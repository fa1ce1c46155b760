"""What the engine knows before it serves a model: what it can compute on, exact memory need, the vocabulary.

Law: libllama is never loaded into this process (it aborts on bad input, and weighs more than the whole daemon). Each
question is a process of its own (probe.py), bounded in time and memory; its crash is an answer about the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshllm.engine.build.installed import Engine
from meshllm.errors import EngineUnavailable, InvalidModelFile

SECONDS = 60
MEMORY = 4 * 1024**3
"""Bytes of private memory for a probe; vocabularies of 256k tokens take 0.1 GB, graphs of large models as much."""
MAX_ANSWER = 1024 * 1024

CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
"""Names of llama-server's --cache-type-k/-v, as ggml's numbers."""

POOLINGS = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
"""Names of llama-server's --pooling, as the engine's numbers."""


@dataclass(frozen=True, slots=True)
class EngineDevice:
    """Something the engine computes on: `name` as its --device takes it ("CUDA0", "CPU"), `backend` "CUDA", ...

    `accelerator`: a graphics processor, of this machine or behind RPC. `shared`: its memory is the computer's own.
    `id`: where it is plugged in, "" if that is not told; two backends may show one device. `free` and `total` in bytes,
    0 where it does not say.
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
    """Bytes in one kind of buffer (`CPU`, `CPU_REPACK`, `CUDA0`, ...). `host`: in the computer's own memory."""

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
    """What a model and its context will allocate, as the engine itself adds it up; bytes.

    Exact for buffers. Not in it: the program itself and its libraries (some 50 MB), the output buffer (size of the
    vocabulary times 4 bytes for every slot, or for every token of a batch when it gives embeddings: it is there for
    scores of all words even then), the prompt cache, and a GPU driver's own use.
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
        """Bytes of weights that lie in the file, mapped, and not in memory of their own: they can be read again."""
        return sum(buffer.model for buffer in self.buffers if buffer.host and buffer.kind == "CPU")

    def by_device(self) -> dict[str, int]:
        """Bytes by device; what lies in the computer's own memory counts as CPU, whichever device it serves."""
        found: dict[str, int] = {}
        for buffer in self.buffers:
            name = "CPU" if buffer.host else buffer.device
            found[name] = found.get(name, 0) + buffer.total
        return found


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A model's vocabulary. Two models of equal `digest` agree on every token and may pair for speculation.

    `special` maps names such as `bos` and `eos` to token ids; `end` holds the ids that end a generation.
    """

    type: str
    size: int
    special: Mapping[str, int]
    end: tuple[int, ...]
    digest: str


async def devices(engine: Engine, *, rpc: Sequence[str] = (), seconds: int = SECONDS) -> tuple[EngineDevice, ...]:
    """Everything this engine can compute on; `rpc` are endpoints (host:port) of RPC servers to ask too.

    Takes as long as the drivers need to start. Raises EngineUnavailable if the engine does not work here.
    """
    answer = await _ask(engine, {"task": "devices", "rpc": list(rpc)}, seconds)
    return tuple(EngineDevice(**device) for device in answer["devices"])


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
    guessed: int = 0,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    seconds: int = SECONDS,
) -> MemoryNeed:
    """What llama-server will allocate with these values of --ctx-size (of all slots together), --parallel,
    --kv-unified, --gpu-layers (-1: all), --device (None: what the engine chooses), --tensor-split, --n-cpu-moe, --rpc,
    --batch-size, --ubatch-size, --embeddings, --pooling (None: the model's own) and --cache-type-k/-v. llama-server
    takes the --ubatch-size for both of them when it gives embeddings. `guessed`: the most tokens that are guessed ahead
    for a request at a time, each of which has scores of its own.

    Takes about a second. Raises InvalidModelFile if the engine refuses the file or breaks on it, EngineUnavailable if
    the engine itself does not work.
    """
    answer = await _ask(
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
            "guessed": guessed,
            "type_k": CACHE_TYPES[cache_type_k],
            "type_v": CACHE_TYPES[cache_type_v],
        },
        seconds,
    )
    buffers = tuple(BufferNeed(**buffer) for buffer in answer.pop("buffers"))
    return MemoryNeed(buffers, **answer)


async def vocabulary(engine: Engine, model_path: Path, *, seconds: int = SECONDS) -> Vocabulary:
    """The vocabulary of a model file; reads no weights. Takes about a second. Raises as `memory_need` does."""
    answer = await _ask(engine, {"task": "vocabulary", "path": str(model_path)}, seconds)
    return Vocabulary(answer["type"], answer["size"], answer["special"], tuple(answer["end"]), answer["digest"])


async def _ask(engine: Engine, request: dict[str, Any], seconds: int) -> dict[str, Any]:
    name = Path(request["path"]).name if "path" in request else ""
    words = [sys.executable, "-m", "meshllm.engine.probe.libllama_probe"]
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "LLAMA_CPP_LIB_PATH": str(engine.library_dir), "PYTHONWARNINGS": "ignore"},
        start_new_session=True,
    )
    line = json.dumps({**request, "seconds": seconds, "memory": MEMORY}).encode() + b"\n"
    try:
        async with asyncio.timeout(seconds + 5):  # the probe ends itself before that
            output, noise = await process.communicate(line)
    except TimeoutError:
        output, noise = b"", b""
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return _judge(name, process.returncode or 0, output, noise)


def _judge(name: str, code: int, output: bytes, noise: bytes) -> dict[str, Any]:
    """The answer, or the typed error for what became of the probe."""
    try:
        answer = json.loads(output) if code == 0 and len(output) <= MAX_ANSWER else None
    except ValueError:
        answer = None
    if isinstance(answer, dict) and "broken" in answer:
        raise _broken(str(answer["broken"]))
    if isinstance(answer, dict) and "error" in answer:
        if not name:
            raise _broken(str(answer["error"]))
        raise _invalid(name, f"the engine refuses it: {answer['error']}")
    if isinstance(answer, dict):
        return answer
    if not name:  # nothing but the engine was asked
        raise _broken(noise.decode("utf-8", "replace").strip()[-500:] or f"it ended with {code}")
    if code in (-signal.SIGALRM, -signal.SIGKILL):
        raise _invalid(name, "reading it took too long, or too much memory")
    if code < 0:
        said = noise.decode("utf-8", "replace").strip().splitlines()[-1:] or [""]
        raise _invalid(name, f"the engine crashed on it (signal {-code}) {said[0][:300]}".rstrip())
    raise _broken(noise.decode("utf-8", "replace").strip()[-500:])


def _invalid(name: str, what: str) -> InvalidModelFile:
    return InvalidModelFile(
        f"{name} cannot be used: {what}.",
        advice="If the file may be damaged, fetch it again; if it is sound, choose another model.",
    )


def _broken(what: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"The engine's library cannot be used from Python: {what}",
        advice="Run `mesh-llm engine rebuild`.",
    )
