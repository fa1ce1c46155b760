"""Asks libllama about a model file or devices: `python -m meshllm.engine.probe.libllama_probe`.

Reads one JSON request from stdin, writes one JSON answer to stdout, ends. Law: this process may crash, hang or eat
memory on a hostile file, and nothing else may: limits are set before the file is opened, and the parent (bindings.py)
takes whatever happens here for an answer. libllama is loaded nowhere else.
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
import types
from collections.abc import Callable, Iterator
from typing import Any

MAX_TOKENS = 4_000_000
MAX_LOG_LINES = 40


class _Refused(Exception):
    """The engine does not want the file."""


def main() -> None:
    """Answer the request on stdin; a JSON object with `error` where the engine refuses."""
    request = json.loads(sys.stdin.buffer.readline(65536))
    _limit(int(request["seconds"]), int(request["memory"]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the answer
    try:
        engine = _Engine()
        answer = _TASKS[request["task"]](engine, request)
    except _Refused as refusal:
        answer = {"error": str(refusal)}
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        answer = {"broken": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(answer))
    answers.flush()
    os._exit(0)  # nothing to tidy up, and no destructor of the library shall spoil it


def _limit(seconds: int, memory: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends us in the middle of C++ too
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform.startswith("linux"):  # private memory; address space would be of no use, GPUs reserve it lavishly
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _bindings() -> Any:
    """llama_cpp's plain bindings, without its package's own start: that imports numpy and more, 0.5 s of 0.65."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("llama_cpp is not installed")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


class _Engine:
    """libllama, quiet, with its complaints kept."""

    def __init__(self) -> None:
        api = _bindings()
        self.api = api
        self.complaints: list[str] = []
        self._callback = api.llama_log_callback(self._on_log)
        api.llama_log_set(self._callback, ctypes.c_void_p(0))
        api.llama_backend_init()

    def _on_log(self, level: int, text: bytes, _: object) -> None:
        if level >= 3 and text.strip() and len(self.complaints) < MAX_LOG_LINES:  # warnings and errors
            self.complaints.append(text.decode("utf-8", "replace").strip()[:300])

    def load(self, request: dict[str, Any], **chosen: Any) -> Any:
        """The model, or _Refused with what the engine said about it."""
        parameters = self.api.llama_model_default_params()
        for name, value in chosen.items():
            setattr(parameters, name, value)
        kept = _place(self.api, parameters, request)
        model = self.api.llama_model_load_from_file(os.fsencode(request["path"]), parameters)
        del kept  # the engine has read it
        if not model:
            raise _Refused(self._why("the engine cannot load it"))
        return model

    def _why(self, otherwise: str) -> str:
        return "; ".join(self.complaints[:3]) or otherwise

    def context(self, model: Any, request: dict[str, Any]) -> Any:
        """A context as llama-server would make it (its defaults, where the request says nothing)."""
        parameters = self.api.llama_context_default_params()
        parallel = int(request["parallel"])
        parameters.n_ctx = int(request["context_size"])
        parameters.n_seq_max = parallel
        parameters.n_batch, parameters.n_ubatch = int(request["batch"]), int(request["micro_batch"])
        parameters.kv_unified = bool(request["unified"])
        parameters.swa_full = False
        parameters.embeddings = bool(request["embeddings"])
        parameters.pooling_type = int(request["pooling"])
        scored = 1 + int(request["draft_tokens"])
        outputs = parameters.n_batch if parameters.embeddings else min(parameters.n_batch, parallel * scored)
        parameters.n_outputs_max = outputs
        parameters.n_outputs_max_per_seq = min(parameters.n_batch, scored)
        parameters.type_k = int(request["type_k"])
        parameters.type_v = int(request["type_v"])
        context = self.api.llama_init_from_model(model, parameters)
        if not context:
            raise _Refused(self._why("the engine cannot make a context for it"))
        return context


# -- devices

_CPU, _GPU, _INTEGRATED = 0, 1, 2
"""The engine's numbers of the types of devices that matter here."""


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
    """Everything the engine can compute on, as its backends describe it. Asks no model."""
    library = engine.api._lib
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    describe = _function(library, "ggml_backend_dev_get_props", [pointer, ctypes.POINTER(_Properties)], None)
    backend_of = _function(library, "ggml_backend_dev_backend_reg", [pointer], pointer)
    backend_name = _function(library, "ggml_backend_reg_name", [pointer], text)
    found = []
    for device in _all_devices(library, request):
        facts = _Properties()
        describe(device, ctypes.byref(facts))
        backend = (backend_name(backend_of(device)) or b"").decode("utf-8", "replace")
        found.append(
            {
                "name": (facts.name or b"").decode("utf-8", "replace"),
                "description": (facts.description or b"").decode("utf-8", "replace").strip(),
                "backend": backend,
                "accelerator": facts.type in (_GPU, _INTEGRATED),
                # Apple's processors share all memory, though the engine calls them dedicated.
                "shared": facts.type == _INTEGRATED or (backend in ("Metal", "MTL") and platform.machine() == "arm64"),
                "id": (facts.id or b"").decode("utf-8", "replace"),
                "free": facts.free,
                "total": facts.total,
            }
        )
    return {"devices": found}


def _all_devices(library: ctypes.CDLL, request: dict[str, Any]) -> list[Any]:
    """The engine's devices; those of other machines (`rpc`: endpoints) are made known to it first."""
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    endpoints = request.get("rpc") or []
    if endpoints:
        rpc = _function(library, "ggml_backend_reg_by_name", [text], pointer)(b"RPC")
        if not rpc:
            raise _Refused("this engine was built without RPC")
        address = _function(library, "ggml_backend_reg_get_proc_address", [pointer, text], pointer)
        add = ctypes.CFUNCTYPE(pointer, text)(address(rpc, b"ggml_backend_rpc_add_server"))
        register = _function(library, "ggml_backend_register", [pointer], None)
        for endpoint in endpoints:
            server = add(str(endpoint).encode())
            if not server:
                raise _Refused(f"no RPC server answers at {endpoint}")
            register(server)
    count = _function(library, "ggml_backend_dev_count", [], size)()
    get = _function(library, "ggml_backend_dev_get", [size], pointer)
    return [get(index) for index in range(min(count, 256))]


class _Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffers", ctypes.c_void_p))


def _place(api: Any, parameters: Any, request: dict[str, Any]) -> list[Any]:
    """Say which layers go where, as llama-server's --device, --tensor-split and --n-cpu-moe would. What is returned
    must live until the model is loaded."""
    library = api._lib
    kept: list[Any] = []
    known = _all_devices(library, request)
    if (names := request.get("devices")) is not None:
        name_of = _function(library, "ggml_backend_dev_name", [ctypes.c_void_p], ctypes.c_char_p)
        by_name = {name_of(device).decode("utf-8", "replace"): device for device in known}
        if missing := [name for name in names if name not in by_name]:
            raise _Refused(f"there is no device {missing[0]}")
        devices = (ctypes.c_void_p * (len(names) + 1))(*(by_name[name] for name in names), None)
        parameters.devices = ctypes.cast(devices, ctypes.c_void_p)
        kept.append(devices)
    if split := request.get("split"):
        most = int(_function(library, "llama_max_devices", [], ctypes.c_size_t)())
        shares = (ctypes.c_float * max(most, len(split)))(*map(float, split))
        parameters.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
        kept.append(shares)
    if aside := int(request.get("experts_aside") or 0):
        memory = _function(library, "ggml_backend_cpu_buffer_type", [], ctypes.c_void_p)()
        patterns = [rf"blk\.{layer}\.ffn_(up|down|gate_up|gate)_(ch|)exps".encode() for layer in range(aside)]
        overrides = (_Override * (aside + 1))(*(_Override(pattern, memory) for pattern in patterns), _Override())
        parameters.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        kept += [overrides, patterns]
    return kept


# -- memory


def _memory(engine: _Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Loads no weights and allocates nothing of size: the engine itself adds up what it would allocate."""
    api = engine.api
    model = engine.load(
        request, no_alloc=True, load_mode=api.LLAMA_LOAD_MODE_NONE, n_gpu_layers=int(request["gpu_layers"])
    )
    context = engine.context(model, request)
    return {
        "buffers": list(_breakdown(api, context)),
        "context_size": api.llama_n_ctx(context),
        "trained_context": api.llama_model_n_ctx_train(model),
        "layers": api.llama_model_n_layer(model),
        "parameters": api.llama_model_n_params(model),
    }


class _Sizes(ctypes.Structure):
    _fields_ = (("model", ctypes.c_size_t), ("context", ctypes.c_size_t), ("compute", ctypes.c_size_t))


def _node_type(libcxx: bool) -> type[ctypes.Structure]:
    """A node of std::map<buffer type, sizes>. Both standard libraries have always had the same layout."""
    pointer = ctypes.c_void_p
    links = (
        (("left", pointer), ("right", pointer), ("parent", pointer), ("black", ctypes.c_bool))
        if libcxx
        else (("colour", ctypes.c_int), ("parent", pointer), ("left", pointer), ("right", pointer))
    )
    return type("_Node", (ctypes.Structure,), {"_fields_": (*links, ("key", pointer), ("sizes", _Sizes))})


class _LibstdcxxMap(ctypes.Structure):
    _fields_ = (
        ("compare", ctypes.c_size_t), ("colour", ctypes.c_int), ("root", ctypes.c_void_p), ("first", ctypes.c_void_p),
        ("last", ctypes.c_void_p), ("count", ctypes.c_size_t),
    )  # fmt: skip


class _LibcxxMap(ctypes.Structure):
    _fields_ = (("first", ctypes.c_void_p), ("root", ctypes.c_void_p), ("count", ctypes.c_size_t))


def _breakdown(api: Any, context: Any) -> Iterator[dict[str, Any]]:
    """Bytes by buffer type. The engine tells them in a C++ map alone (and rounds them to 10 kB in its log)."""
    library = api._lib
    libcxx = sys.platform == "darwin"
    ask = library["_Z26llama_get_memory_breakdownPK13llama_context"]
    ask.argtypes, ask.restype = [ctypes.c_void_p], _LibcxxMap if libcxx else _LibstdcxxMap
    node_type = _node_type(libcxx)
    found = ask(ctypes.cast(context, ctypes.c_void_p))
    seen: list[Any] = []

    def walk(address: int | None) -> None:
        if address and len(seen) <= 64:
            node: Any = node_type.from_address(address)
            walk(node.left)
            seen.append(node)
            walk(node.right)

    walk(found.root)
    if len(seen) != found.count:
        raise RuntimeError("the engine's memory breakdown has another layout than expected")
    text, pointer = ctypes.c_char_p, ctypes.c_void_p
    name_of = _function(library, "ggml_backend_buft_name", [pointer], text)
    is_host = _function(library, "ggml_backend_buft_is_host", [pointer], ctypes.c_bool)
    device_of = _function(library, "ggml_backend_buft_get_device", [pointer], pointer)
    device_name = _function(library, "ggml_backend_dev_name", [pointer], text)
    for node in seen:
        device = device_of(node.key)
        yield {
            "kind": name_of(node.key).decode(),
            "device": device_name(device).decode() if device else "CPU",
            "host": is_host(node.key),
            "model": node.sizes.model,
            "context": node.sizes.context,
            "compute": node.sizes.compute,
        }


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
        raise _Refused(f"it claims {size} tokens")
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
