"""The checks of `mesh-llm doctor`. A check reads facts, leaves nothing behind and returns a `CheckResult`."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshllm.core.records import short
from meshllm.daemon import pidfile
from meshllm.errors import DamagedState, DownloadFailed, MeshError, ToolMissing, UsageError
from meshllm.machine import ports, resources
from meshllm.machine.accelerators import AcceleratorInfo
from meshllm.machine.ports import PortFact
from meshllm.machine.resources import Disk, Memory, Processors
from meshllm.util.format import gigabytes

if TYPE_CHECKING:
    from meshllm.engine.probe.bindings import EngineDevice
    from meshllm.engine.sandbox.policy import SandboxLayers

ENGINE_BUILD_BYTES: Final = 10**9  # measured peak of a build: under half of it
HOME_DISK_BYTES: Final = 100 * 10**6  # the daemon's logs take up to half of it
MODEL_DISK_BYTES: Final = 5 * 10**9  # a model of 7 to 8 billion parameters at 4 bits
LOW_MEMORY_BYTES: Final = 2 * 10**9
PACKAGES: Final = ("llama-cpp-python", "huggingface-hub", "aiohttp", "pydantic", "typer")
HUB_SECONDS: Final = 3.0


class CheckState(StrEnum):
    """The state of a check. ERROR: mesh-llm does not work until it is fixed."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of the check `name`: its state, what it found, and what to do ("" if nothing)."""

    name: str
    state: CheckState
    found: str
    advice: str = ""


def ok(name: str, found: str) -> CheckResult:
    return CheckResult(name, CheckState.OK, found)


# -- the program itself


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> CheckResult:
    """Versions of Python, mesh-llm and the main packages."""
    from importlib import metadata

    from meshllm import __version__

    found, missing = [f"Python {'.'.join(map(str, version))}", f"mesh-llm {__version__}"], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if version < (3, 11):
        return CheckResult("python", CheckState.ERROR, found[0], "Install Python 3.11 or newer.")
    if missing:
        return CheckResult(
            "python",
            CheckState.ERROR,
            f"missing: {', '.join(missing)}",
            "Run scripts/mesh-llm, or install them with pip.",
        )
    return ok("python", ", ".join(found))


def check_home(home: Path) -> CheckResult:
    """The state directory: it must take a file, and only its owner may read it, because it holds keys."""
    disk = resources.disk(home)
    free = 0 if disk is None else disk.free
    try:
        facts = home.stat()
    except FileNotFoundError:
        above = next((parent for parent in home.parents if parent.exists()), home)
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            found = f"{home} does not exist, and this user cannot make it in {above}"
            return CheckResult("home", CheckState.ERROR, found, "Set MESH_LLM_HOME to a folder that you may write to.")
        return _check_home_space(free, f"{home} does not exist yet")
    except OSError as error:
        return CheckResult(
            "home", CheckState.ERROR, f"{home}: {error.strerror or error}", "Set MESH_LLM_HOME to another folder."
        )
    if not stat.S_ISDIR(facts.st_mode):
        return CheckResult("home", CheckState.ERROR, f"{home} is not a folder", "Move it, or set MESH_LLM_HOME.")
    if not os.access(home, os.W_OK | os.X_OK):
        return CheckResult(
            "home",
            CheckState.ERROR,
            f"{home} is not writable",
            f"Make yourself its owner (chown), then run `chmod 700 {home}`.",
        )
    try:
        pidfile.check_private(home)
    except UsageError as error:
        return CheckResult("home", CheckState.ERROR, error.message, error.advice)
    try:
        _write_probe(home)
    except OSError as error:
        return CheckResult(
            "home",
            CheckState.ERROR,
            f"{home} takes no file: {error.strerror or error} ({gigabytes(free)} free)",
            "Free space on its disk (or of the quota), or set MESH_LLM_HOME to a folder on another disk.",
        )
    if hasattr(os, "getuid") and facts.st_mode & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        return CheckResult(
            "home", CheckState.WARNING, f"other users can access {home} (mode {mode:o})", f"Run `chmod 700 {home}`."
        )
    return _check_home_space(free, str(home))


def check_identity(home: Path, notices: Sequence[str] = ()) -> CheckResult:
    """The node's key and its mesh, as a start reads them. `notices`: what the running node of this home says."""
    from meshllm.daemon import home_place, mesh_state
    from meshllm.net.identity import KEY_FILE, Identity

    if not os.path.lexists(home / KEY_FILE):
        return ok("identity", "made at the first start")
    try:
        node = Identity.load_or_create(home).node
        damage = mesh_state.check(home)
    except DamagedState as error:
        return CheckResult("identity", CheckState.ERROR, error.message, error.advice)
    except OSError as error:
        advice = "Make the home and its files readable for this user."
        return CheckResult("identity", CheckState.ERROR, f"{error.filename}: {error.strerror}", advice)
    if damage:
        advice = (
            "Restore it from a backup. A start moves it aside and makes a new mesh; join the old one with an invite."
        )
        return CheckResult("identity", CheckState.WARNING, damage, advice)
    if told := next((notice for notice in notices if "Two machines have one identity" in notice), None):
        what, _, advice = told.partition(". ")
        return CheckResult("identity", CheckState.ERROR, what, advice)
    if home_place.was_moved(home):
        found = f"node {short(node)}; this home comes from another machine or folder"
        advice = "If the node it comes from runs too, two machines have one identity: this one will leave the mesh. "
        return CheckResult("identity", CheckState.WARNING, found, f"{advice}See docs/operations.md.")
    return ok("identity", f"node {short(node)}")


def _check_home_space(free: int, found: str) -> CheckResult:
    found = f"{found} ({gigabytes(free)} free)"
    if free < HOME_DISK_BYTES:
        advice = "Free space on its disk, or set MESH_LLM_HOME to a folder on another disk."
        return CheckResult("home", CheckState.WARNING, found, advice)
    return ok("home", found)


def _write_probe(folder: Path) -> None:
    """Write and sync a small file, which is removed. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(bytes(4096))
        os.fsync(file.fileno())


# -- the engine


def check_engine() -> CheckResult:
    """Whether the engine of this checkout is built."""
    from meshllm.engine.build import builder

    try:
        engine = builder.find()
    except MeshError as error:
        return CheckResult("engine", CheckState.ERROR, error.message, error.advice)
    if engine is None:
        return CheckResult(
            "engine", CheckState.WARNING, "not built yet", "Run `mesh-llm engine build`, or start a model."
        )
    info = engine.info
    accelerators = ", ".join(info.accelerators) or "CPU only"
    return ok("engine", f"llama.cpp {info.commit[:9]} of {info.package} {info.version}, {accelerators}, current")


def check_compiler(built: bool) -> CheckResult:
    """A C++ compiler; required only while the engine is not built."""
    from meshllm.engine.build import toolchain

    try:
        compiler = toolchain.require_compiler(toolchain.find_compiler())
    except ToolMissing as error:
        return CheckResult("compiler", CheckState.WARNING if built else CheckState.ERROR, error.message, error.advice)
    return ok("compiler", f"{compiler.version} ({compiler.cxx})")


def check_build_tools(built: bool) -> CheckResult:
    """cmake and ninja."""
    from meshllm.engine.build import toolchain

    try:
        found = [str(toolchain.find_tool(name)) for name in ("cmake", "ninja")]
    except ToolMissing as error:
        return CheckResult(
            "build tools", CheckState.WARNING if built else CheckState.ERROR, error.message, error.advice
        )
    return ok("build tools", ", ".join(found))


# -- the machine


def check_accelerators(devices: Sequence[AcceleratorInfo]) -> CheckResult:
    """GPUs, and whether the engine can be built for them."""
    from meshllm.engine.build import toolchain

    try:
        buildable = toolchain.find_accelerators()
    except MeshError as error:
        return CheckResult("accelerators", CheckState.ERROR, error.message, error.advice)
    found = "; ".join(_device(device) for device in devices)
    usable = [accelerator.name for accelerator in buildable if accelerator.on]
    idle = [accelerator for accelerator in buildable if not accelerator.on and accelerator.advice]
    if usable:
        return ok("accelerators", f"{found or 'detected by their drivers'}; the engine uses {', '.join(usable)}")
    if devices and idle:
        return CheckResult("accelerators", CheckState.WARNING, f"{found}; not used: {idle[0].why}", idle[0].advice)
    if devices:
        return CheckResult(
            "accelerators",
            CheckState.WARNING,
            f"{found}; the engine does not use it",
            "Set MESH_LLM_ENGINE_ACCELERATORS to force one.",
        )
    return ok("accelerators", "none: models run on the CPU")


def _device(device: AcceleratorInfo) -> str:
    if device.unified or not device.memory_total:
        return f"{device.name} ({device.kind})"
    return f"{device.name} ({device.kind}, {gigabytes(device.memory_free)} of {gigabytes(device.memory_total)} free)"


def check_devices(devices: Sequence[EngineDevice] | None) -> CheckResult:
    """The devices that the engine can compute on, by their names for --device."""
    if devices is None:
        return ok("devices", "unknown until the engine is built")
    accelerators = [device for device in devices if device.accelerator]
    listed = [
        f"{device.name} ({device.description}, {gigabytes(device.free)} of {gigabytes(device.total)} free"
        f"{', shared with the computer' if device.shared else ''})"
        for device in accelerators
    ]
    if listed:
        return ok("devices", f"{'; '.join(listed)}; select with --device")
    return ok("devices", f"the CPU: {', '.join(device.description for device in devices) or 'unknown'}")


def check_sandbox(found: SandboxLayers | None = None) -> CheckResult:
    """Which layers of the sandbox of engine processes work here, tried out."""
    if found is None:
        from meshllm.engine.sandbox.availability import available

        found = available()
    problems = " ".join(found.problems)
    if not found.cage:
        advice = (
            "Own models run without it; leases of other nodes are refused, unless the node starts with --no-sandbox. "
            "In a container, update the container engine or its seccomp profile; otherwise use Linux 5.13 or newer."
        )
        return CheckResult("sandbox", CheckState.WARNING, f"incomplete ({found.layers or 'none'}): {problems}", advice)
    return ok("sandbox", f"{found.layers}: engine processes run in it{f'. {problems}' if problems else ''}")


def check_memory(memory: Memory, processors: Processors) -> CheckResult:
    """Memory and CPUs that this process may use."""
    limit = ", limited by a cgroup" if memory.limited else ""
    free = f"{gigabytes(memory.available)} of {gigabytes(memory.total)} free"
    found = f"{free}{limit}; {processors.usable} of {processors.logical} CPUs"
    if memory.available < LOW_MEMORY_BYTES:
        return CheckResult(
            "memory", CheckState.WARNING, found, "Only small models fit: close other programs, or join a mesh."
        )
    return ok("memory", found)


def check_port(fact: PortFact, flag: str, own: int | None = None) -> CheckResult:
    """A port that the daemon listens on; `flag` changes it. `own`: the process of the node that runs with this home."""
    name = f"port {fact.port}"
    if fact.free:
        return ok(name, "free")
    if own is not None and fact.holder_pid == own:
        return ok(name, f"used by the running node of this home (process {own})")
    if not fact.permitted:
        return CheckResult(
            name, CheckState.ERROR, "this user may not listen on it", f"Choose a port above 1023 with {flag}."
        )
    advice = f"Start with {flag} {ports.next_free(fact.port)}, or stop that program."
    return CheckResult(name, CheckState.ERROR, f"in use by {ports.holder_text(fact)}", advice)


def check_disk(name: str, disk: Disk | None, path: Path, needed: int, variable: str) -> CheckResult:
    """Free space on the disk of `path`, which need not exist; less than `needed` bytes is a warning."""
    name = f"disk: {name}"
    if disk is None:
        return CheckResult(name, CheckState.ERROR, f"{path} cannot be read", f"Set {variable} to a readable folder.")
    existing = next((parent for parent in (path, *path.parents) if parent.exists()), path)
    if not os.access(existing, os.W_OK):
        return CheckResult(
            name, CheckState.ERROR, f"{existing} is not writable", f"Set {variable} to a writable folder."
        )
    found = f"{gigabytes(disk.free)} free at {path}"
    if disk.free < needed:
        advice = (
            f"Free some space, or set {variable} to a folder on a larger disk; {gigabytes(needed)} are recommended."
        )
        return CheckResult(name, CheckState.ERROR if disk.free < 200 << 20 else CheckState.WARNING, found, advice)
    return ok(name, found)


# -- models


def check_models(folder: Path) -> CheckResult:
    """Models of the catalogue and other GGUF files in the models folder."""
    from meshllm.models.catalog import catalog
    from meshllm.models.library.store import Store

    store = Store(folder)
    entries = catalog.load().entries
    manifests = [store.manifest_of(entry) for entry in entries]
    known = [manifest for manifest in manifests if manifest is not None]
    verified = [model for model in known if all(store.is_verified(file) for file in model.all_files)]
    unverified = [model for model in known if model not in verified and all(store.has_size(f) for f in model.all_files)]
    ours = {file.name for model in known for file in model.all_files}
    try:
        others = sum(1 for path in folder.glob("*.gguf") if path.name not in ours)
    except OSError:
        others = 0
    found = [model.name for model in verified]
    found += [f"{model.name} (not verified yet)" for model in unverified]
    found += [f"{others} other GGUF files"] if others else []
    if not found:
        return CheckResult(
            "models", CheckState.WARNING, f"none in {folder} yet", f"Run `mesh-llm download {entries[0].name}`."
        )
    return ok("models", ", ".join(found))


async def check_hub(within: float = HUB_SECONDS) -> CheckResult:
    """Whether the model hub responds within `within` seconds."""
    from meshllm.models.hub.hub import Hub

    hub = Hub()
    try:
        await hub.probe(within=within)
    except DownloadFailed as failure:
        advice = "Local models and models from packages still work. Set HF_ENDPOINT to use a mirror."
        return CheckResult("hub", CheckState.WARNING, failure.message.rstrip("."), advice)
    return ok("hub", f"{hub.endpoint} responds")
