"""A child process that calls libllama for bindings.py: `python -m meshllm.engine.probe.libllama_probe`.

Reads one JSON request from standard input, writes one JSON reply to standard output and exits. libllama can crash, hang
or use much memory on a hostile file; therefore only this process loads it, with limits on time and memory.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import platform
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from meshllm.engine.sandbox import cage

CORE_BYTES = cage.CORE_BYTES
MAX_TOKENS = 4_000_000
MAX_LOG_LINES = 40
MAX_BUFFER_TYPES = 64


class _InvalidInput(Exception):
    """The engine rejects the file or an option."""


def main() -> None:
    """Reply to the request: the result, or `error` (the file is rejected) or `broken` (the library does not work)."""
    request = json.loads(sys.stdin.buffer.readline(1 << 20))
    _limit(int(request["seconds"]), int(request["memory"]))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the reply
    try:
        if request.get("sandbox"):
            cage.apply(request["sandbox"])
        engine = _Engine()
        answer = _TASKS[request["task"]](engine, request)
    except _InvalidInput as error:
        answer = {"error": str(error)}
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        answer = {"broken": f"{type(error).__name__}: {error}"}
    replies.write(json.dumps(answer))
    replies.flush()
    os._exit(0)  # skips the library's destructors, which can crash


def _limit(seconds: int, memory: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process inside C++ code too
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (CORE_BYTES, CORE_BYTES))
    if sys.platform.startswith("linux"):  # private memory; drivers of GPUs reserve much more address space
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _bindings() -> Any:
    """The ctypes bindings of llama-cpp-python (module llama_cpp.llama_cpp), loaded from the engine's library.

    The package's `__init__` is skipped: it imports numpy and chat formats, 0.32 s instead of 0.09 s for each probe.
    """
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("llama_cpp is not installed")
    sys.modules["llama_cpp"] = importlib.util.module_from_spec(found)  # created, not executed
    return importlib.import_module("llama_cpp.llama_cpp")


class _Engine:
    """libllama; its warnings and errors are collected instead of printed."""

    def __init__(self) -> None:
        api = _bindings()
        self.api = api
        self.log_lines: list[str] = []
        self._callback = api.llama_log_callback(self._on_log)
        api.llama_log_set(self._callback, ctypes.c_void_p(0))
        api.llama_backend_init()

    def _on_log(self, level: int, text: bytes, _: object) -> None:
        if level >= 3 and text.strip() and len(self.log_lines) < MAX_LOG_LINES:  # warnings and errors
            self.log_lines.append(text.decode("utf-8", "replace").strip()[:300])

    def load(self, request: dict[str, Any], **options: Any) -> Any:
        """Load the model. Raises _InvalidInput with the engine's errors."""
        parameters = self.api.llama_model_default_params()
        for name, value in options.items():
            setattr(parameters, name, value)
        kept = _set_placement(self.api, parameters, request)
        model = self.api.llama_model_load_from_file(os.fsencode(request["path"]), parameters)
        del kept  # the engine has copied it
        if not model:
            raise _InvalidInput(self._error("the engine cannot load it"))
        return model

    def _error(self, default: str) -> str:
        return "; ".join(self.log_lines[:3]) or default

    def context(self, model: Any, request: dict[str, Any]) -> Any:
        """A context with the parameters that llama-server would use."""
        parameters = self.api.llama_context_default_params()
        parallel = int(request["parallel"])
        parameters.n_ctx = int(request["context_size"])
        parameters.n_seq_max = parallel
        parameters.n_batch, parameters.n_ubatch = int(request["batch"]), int(request["micro_batch"])
        parameters.kv_unified = bool(request["unified"])
        parameters.swa_full = False
        parameters.embeddings = bool(request["embeddings"])
        parameters.pooling_type = int(request["pooling"])
        outputs = 1 + int(request["draft_tokens"])  # per slot: the sampled token and the draft tokens to verify
        parameters.n_outputs_max = (
            parameters.n_batch if parameters.embeddings else min(parameters.n_batch, parallel * outputs)
        )
        parameters.n_outputs_max_per_seq = min(parameters.n_batch, outputs)
        parameters.type_k = int(request["type_k"])
        parameters.type_v = int(request["type_v"])
        context = self.api.llama_init_from_model(model, parameters)
        if not context:
            raise _InvalidInput(self._error("the engine cannot create a context for it"))
        return context


# -- devices

_CPU, _GPU, _INTEGRATED = 0, 1, 2
"""Values of `enum ggml_backend_dev_type`."""


class _Capabilities(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_bool) for name in ("asynchronous", "host_buffer", "from_host", "events", "mmap_support")
    )


class _Properties(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("description", ctypes.c_char_p), ("free", ctypes.c_size_t),
        ("total", ctypes.c_size_t), ("type", ctypes.c_int), ("id", ctypes.c_char_p), ("can", _Capabilities),
    )  # fmt: skip


def _devices(engine: _Engine, request: dict[str, Any]) -> dict[str, Any]:
    """The devices of all backends."""
    library = engine.api._lib
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    describe = _function(library, "ggml_backend_dev_get_props", [pointer, ctypes.POINTER(_Properties)], None)
    backend_of = _function(library, "ggml_backend_dev_backend_reg", [pointer], pointer)
    backend_name = _function(library, "ggml_backend_reg_name", [pointer], text)
    found = []
    for device in _all_devices(library, request):
        properties = _Properties()
        describe(device, ctypes.byref(properties))
        backend = (backend_name(backend_of(device)) or b"").decode("utf-8", "replace")
        found.append(
            {
                "name": (properties.name or b"").decode("utf-8", "replace"),
                "description": (properties.description or b"").decode("utf-8", "replace").strip(),
                "backend": backend,
                "accelerator": properties.type in (_GPU, _INTEGRATED),
                # Apple silicon shares all memory, although the engine reports a dedicated GPU.
                "shared": properties.type == _INTEGRATED
                or (backend in ("Metal", "MTL") and platform.machine() == "arm64"),
                "id": (properties.id or b"").decode("utf-8", "replace"),
                "free": properties.free,
                "total": properties.total,
            }
        )
    return {"devices": found}


def _all_devices(library: ctypes.CDLL, request: dict[str, Any]) -> list[Any]:
    """Handles of the engine's devices, after registering the RPC servers at the endpoints in `rpc`."""
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    endpoints = request.get("rpc") or []
    if endpoints:
        rpc = _function(library, "ggml_backend_reg_by_name", [text], pointer)(b"RPC")
        if not rpc:
            raise _InvalidInput("the engine was built without RPC")
        address = _function(library, "ggml_backend_reg_get_proc_address", [pointer, text], pointer)
        add = ctypes.CFUNCTYPE(pointer, text)(address(rpc, b"ggml_backend_rpc_add_server"))
        register = _function(library, "ggml_backend_register", [pointer], None)
        for endpoint in endpoints:
            server = add(str(endpoint).encode())
            if not server:
                raise _InvalidInput(f"no RPC server at {endpoint}")
            register(server)
    count = _function(library, "ggml_backend_dev_count", [], size)()
    get = _function(library, "ggml_backend_dev_get", [size], pointer)
    return [get(index) for index in range(min(count, 256))]


class _TensorOverride(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffers", ctypes.c_void_p))


def _set_placement(api: Any, parameters: Any, request: dict[str, Any]) -> list[Any]:
    """Set `parameters` as llama-server's --device, --tensor-split and --n-cpu-moe do.

    The returned objects must stay referenced until the model is loaded.
    """
    library = api._lib
    kept: list[Any] = []
    known = _all_devices(library, request)
    if (names := request.get("devices")) is not None:
        name_of = _function(library, "ggml_backend_dev_name", [ctypes.c_void_p], ctypes.c_char_p)
        by_name = {name_of(device).decode("utf-8", "replace"): device for device in known}
        if missing := [name for name in names if name not in by_name]:
            raise _InvalidInput(f"unknown device {missing[0]}")
        devices = (ctypes.c_void_p * (len(names) + 1))(*(by_name[name] for name in names), None)
        parameters.devices = ctypes.cast(devices, ctypes.c_void_p)
        kept.append(devices)
    if split := request.get("split"):
        max_devices = int(_function(library, "llama_max_devices", [], ctypes.c_size_t)())
        shares = (ctypes.c_float * max(max_devices, len(split)))(*map(float, split))
        parameters.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
        kept.append(shares)
    if layers := int(request.get("experts_aside") or 0):
        memory = _function(library, "ggml_backend_cpu_buffer_type", [], ctypes.c_void_p)()
        patterns = [rf"blk\.{layer}\.ffn_(up|down|gate_up|gate)_(ch|)exps".encode() for layer in range(layers)]
        overrides = (_TensorOverride * (layers + 1))(
            *(_TensorOverride(pattern, memory) for pattern in patterns), _TensorOverride()
        )
        parameters.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        kept += [overrides, patterns]
    return kept


# -- memory


def _memory(engine: _Engine, request: dict[str, Any]) -> dict[str, Any]:
    """The sizes of all buffers, computed by the engine without loading weights or allocating them (`no_alloc`)."""
    api = engine.api
    model = engine.load(
        request, no_alloc=True, load_mode=api.LLAMA_LOAD_MODE_NONE, n_gpu_layers=int(request["gpu_layers"])
    )
    context = engine.context(model, request)
    return {
        "buffers": _breakdown(api, context),
        "context_size": api.llama_n_ctx(context),
        "trained_context": api.llama_model_n_ctx_train(model),
        "layers": api.llama_model_n_layer(model),
        "parameters": api.llama_model_n_params(model),
    }


class _BreakdownEntry(ctypes.Structure):
    """`struct llama_memory_breakdown_entry` of llama.cpp/patches/12-memory-breakdown-c-api.patch."""

    _fields_ = (
        ("buffer_type", ctypes.c_char_p), ("device", ctypes.c_char_p), ("model", ctypes.c_size_t),
        ("context", ctypes.c_size_t), ("compute", ctypes.c_size_t), ("host", ctypes.c_bool),
    )  # fmt: skip


def _breakdown(api: Any, context: Any) -> list[dict[str, Any]]:
    """Bytes per buffer type."""
    ask = _function(
        api._lib,
        "llama_memory_breakdown_entries",
        [ctypes.c_void_p, ctypes.POINTER(_BreakdownEntry), ctypes.c_size_t],
        ctypes.c_size_t,
    )
    entries = (_BreakdownEntry * MAX_BUFFER_TYPES)()
    count = ask(ctypes.cast(context, ctypes.c_void_p), entries, MAX_BUFFER_TYPES)
    if count > MAX_BUFFER_TYPES:
        raise RuntimeError(f"the engine uses {count} buffer types, more than {MAX_BUFFER_TYPES}")
    return [
        {
            "kind": entry.buffer_type.decode(),
            "device": entry.device.decode() if entry.device else "CPU",
            "host": entry.host,
            "model": entry.model,
            "context": entry.context,
            "compute": entry.compute,
        }
        for entry in entries[:count]
    ]


def _function(library: ctypes.CDLL, name: str, arguments: list[Any], result: Any) -> Callable[..., Any]:
    function = library[name]
    function.argtypes, function.restype = arguments, result
    return function


# -- vocabulary

_TYPES = {0: "none", 1: "spm", 2: "bpe", 3: "wpm", 4: "ugm", 5: "rwkv", 6: "plamo2"}
_SPECIAL = ("bos", "eos", "eot", "sep", "nl", "pad", "mask", "fim_pre", "fim_suf", "fim_mid")


def _vocabulary(engine: _Engine, request: dict[str, Any]) -> dict[str, Any]:
    api = engine.api
    vocabulary = api.llama_model_get_vocab(engine.load(request, vocab_only=True))
    size = api.llama_vocab_n_tokens(vocabulary)
    if not 0 <= size <= MAX_TOKENS:
        raise _InvalidInput(f"its vocabulary has {size} tokens")
    special = {name: int(getattr(api, f"llama_vocab_{name}")(vocabulary)) for name in _SPECIAL}
    special = {name: token for name, token in special.items() if token >= 0}
    kind = _TYPES.get(api.llama_vocab_type(vocabulary), "unknown")
    adds = [bool(getattr(api, f"llama_vocab_get_add_{name}")(vocabulary)) for name in ("bos", "eos")]
    digest = hashlib.sha256(json.dumps([kind, size, special, adds]).encode())
    for token in range(size):
        text = api.llama_vocab_get_text(vocabulary, token) or b""
        digest.update(len(text).to_bytes(4, "little"))
        digest.update(text)
    end = [token for token in range(size) if api.llama_vocab_is_eog(vocabulary, token)][:64]
    return {"type": kind, "size": size, "special": special, "end": end, "digest": digest.hexdigest()}


_TASKS: dict[str, Callable[[_Engine, dict[str, Any]], dict[str, Any]]] = {
    "devices": _devices,
    "memory": _memory,
    "vocabulary": _vocabulary,
}

if __name__ == "__main__":
    main()
