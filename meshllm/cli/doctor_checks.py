"""What `mesh-llm doctor` looks at, one function for each matter.

Law: a check looks and changes nothing; it judges facts that it is given or gathers itself, and answers with a `Finding`
that says what to do. Deadlines, order and printing are the caller's business.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshllm.errors import DownloadFailed, MeshError, ToolMissing
from meshllm.machine.accelerators import AcceleratorInfo
from meshllm.machine.ports import PortFact
from meshllm.machine.resources import Disk, Memory, Processors
from meshllm.util.format import gigabytes

if TYPE_CHECKING:
    from meshllm.engine.probe.bindings import EngineDevice

ENGINE_BUILD_BYTES: Final = 10**9  # measured peak of a build: under half of it
MODEL_ROOM_BYTES: Final = 5 * 10**9  # a usual model of 7 to 8 thousand million parameters, 4 bits each
LITTLE_MEMORY_BYTES: Final = 2 * 10**9
PACKAGES: Final = ("llama-cpp-python", "huggingface-hub", "aiohttp", "pydantic", "typer")
HUB_SECONDS: Final = 3.0


class CheckState(StrEnum):
    """How it stands with something. `BAD` means that mesh-llm cannot do its work here."""

    WELL = "well"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What was looked at, how it stands, what was found, and what to do ("" where nothing is to be done)."""

    name: str
    state: CheckState
    found: str
    advice: str = ""


def well(name: str, found: str) -> CheckResult:
    return CheckResult(name, CheckState.WELL, found)


# -- the program itself


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> CheckResult:
    """Python, and the packages that matter, with their versions."""
    from importlib import metadata

    from meshllm import __version__

    found, missing = [f"Python {'.'.join(map(str, version))}", f"mesh-llm {__version__}"], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if version < (3, 11):
        return CheckResult("python", CheckState.BAD, found[0], "Install Python 3.11 or newer.")
    if missing:
        return CheckResult(
            "python", CheckState.BAD, f"missing: {', '.join(missing)}", "Start scripts/mesh-llm, or pip install."
        )
    return well("python", ", ".join(found))


def check_home(home: Path) -> CheckResult:
    """The state directory belongs to us alone: it holds keys."""
    try:
        facts = home.stat()
    except FileNotFoundError:
        return well("home", f"{home} is not made yet")
    except OSError as error:
        return CheckResult(
            "home", CheckState.BAD, f"{home}: {error.strerror or error}", "Set MESH_LLM_HOME to another folder."
        )
    if not stat.S_ISDIR(facts.st_mode):
        return CheckResult("home", CheckState.BAD, f"{home} is not a folder", "Move it away, or set MESH_LLM_HOME.")
    if not os.access(home, os.W_OK | os.X_OK):
        return CheckResult(
            "home", CheckState.BAD, f"{home} cannot be written", f"chown it to yourself, then chmod 700 {home}"
        )
    if hasattr(os, "getuid") and facts.st_mode & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        return CheckResult("home", CheckState.WARNING, f"{home} is open to others (mode {mode:o})", f"chmod 700 {home}")
    return well("home", str(home))


# -- the engine


def check_engine() -> CheckResult:
    """Whether the engine of this checkout is built."""
    from meshllm.engine.build import builder

    try:
        engine = builder.find()
    except MeshError as error:
        return CheckResult("engine", CheckState.BAD, error.message, error.advice)
    if engine is None:
        return CheckResult(
            "engine", CheckState.WARNING, "not built yet", "`mesh-llm engine build`, or just start a model."
        )
    info = engine.info
    accelerators = ", ".join(info.accelerators) or "processor only"
    return well("engine", f"llama.cpp {info.commit[:9]} of {info.package} {info.version}, {accelerators}, current")


def check_compiler(built: bool) -> CheckResult:
    """A C++ compiler; only needed where the engine is not built."""
    from meshllm.engine.build import toolchain

    try:
        compiler = toolchain.require_compiler(toolchain.find_compiler())
    except ToolMissing as error:
        return CheckResult("compiler", CheckState.WARNING if built else CheckState.BAD, error.message, error.advice)
    return well("compiler", f"{compiler.version} ({compiler.cxx})")


def check_build_tools(built: bool) -> CheckResult:
    """cmake and ninja."""
    from meshllm.engine.build import toolchain

    try:
        found = [str(toolchain.find_tool(name)) for name in ("cmake", "ninja")]
    except ToolMissing as error:
        return CheckResult("build tools", CheckState.WARNING if built else CheckState.BAD, error.message, error.advice)
    return well("build tools", ", ".join(found))


# -- the machine


def check_accelerators(devices: Sequence[AcceleratorInfo]) -> CheckResult:
    """GPUs, and whether the engine can be built for them."""
    from meshllm.engine.build import toolchain

    try:
        buildable = toolchain.find_accelerators()
    except MeshError as error:
        return CheckResult("accelerators", CheckState.BAD, error.message, error.advice)
    found = "; ".join(_device(device) for device in devices)
    usable = [accelerator.name for accelerator in buildable if accelerator.on]
    idle = [accelerator for accelerator in buildable if not accelerator.on and accelerator.advice]
    if usable:
        return well("accelerators", f"{found or 'found by their drivers'}; the engine uses {', '.join(usable)}")
    if devices and idle:
        return CheckResult("accelerators", CheckState.WARNING, f"{found}; not used: {idle[0].why}", idle[0].advice)
    if devices:
        return CheckResult(
            "accelerators",
            CheckState.WARNING,
            f"{found}; the engine does not use it",
            "MESH_LLM_ENGINE_ACCELERATORS can force one.",
        )
    return well("accelerators", "none: models run on the processor")


def _device(device: AcceleratorInfo) -> str:
    if device.unified or not device.memory_total:
        return f"{device.name} ({device.kind})"
    return f"{device.name} ({device.kind}, {gigabytes(device.memory_free)} of {gigabytes(device.memory_total)} free)"


def check_devices(devices: Sequence[EngineDevice] | None) -> CheckResult:
    """What the engine computes on, by the names that --device takes."""
    if devices is None:
        return well("devices", "the engine can be asked once it is built")
    accelerators = [device for device in devices if device.accelerator]
    told = [
        f"{device.name} ({device.description}, {gigabytes(device.free)} of {gigabytes(device.total)} free"
        f"{', shared with the computer' if device.shared else ''})"
        for device in accelerators
    ]
    if told:
        return well("devices", f"{'; '.join(told)}; --device chooses")
    return well("devices", f"the processor: {', '.join(device.description for device in devices) or 'unknown'}")


def check_memory(memory: Memory, processors: Processors) -> CheckResult:
    """Memory and processors that this process may use."""
    limit = ", limited by a cgroup" if memory.limited else ""
    free = f"{gigabytes(memory.available)} of {gigabytes(memory.total)} free"
    found = f"{free}{limit}; {processors.usable} of {processors.logical} CPUs"
    if memory.available < LITTLE_MEMORY_BYTES:
        return CheckResult(
            "memory", CheckState.WARNING, found, "Only the smallest models fit: end other programs, or join a mesh."
        )
    return well("memory", found)


def check_port(fact: PortFact, flag: str) -> CheckResult:
    """A port that the daemon listens on; `flag` moves it."""
    name = f"port {fact.port}"
    if fact.free:
        return well(name, "free")
    if fact.ours:
        return well(name, f"a mesh-llm listens there (process {fact.holder_pid})")
    if not fact.permitted:
        return CheckResult(
            name, CheckState.BAD, "this user may not listen there", f"Choose one above 1023 with {flag}."
        )
    holder = f"{fact.holder} (process {fact.holder_pid})" if fact.holder_pid else "another program"
    return CheckResult(name, CheckState.BAD, f"held by {holder}", f"End it, or choose another port with {flag}.")


def check_disk(name: str, disk: Disk | None, path: Path, needed: int, variable: str) -> CheckResult:
    """Room on the disk where `path` is, or will be; less than `needed` bytes is little."""
    name = f"disk: {name}"
    if disk is None:
        return CheckResult(name, CheckState.BAD, f"{path} cannot be looked at", f"Set {variable} to a folder that can.")
    place = next((parent for parent in (path, *path.parents) if parent.exists()), path)
    if not os.access(place, os.W_OK):
        return CheckResult(name, CheckState.BAD, f"{place} cannot be written", f"Set {variable} to a folder that can.")
    found = f"{gigabytes(disk.free)} free at {path}"
    if disk.free < needed:
        advice = f"Make room, or set {variable} to a folder on a larger disk; {gigabytes(needed)} are good to have."
        return CheckResult(name, CheckState.BAD if disk.free < 200 << 20 else CheckState.WARNING, found, advice)
    return well(name, found)


# -- models


def check_models(folder: Path) -> CheckResult:
    """Models of the catalogue, and other GGUF files, that lie in the store."""
    from meshllm.models.catalog import catalog
    from meshllm.models.library.store import Store

    store = Store(folder)
    entries = catalog.load().entries
    manifests = [store.kept.answer(entry.hub) if entry.hub else entry.manifest for entry in entries]
    known = [manifest for manifest in manifests if manifest is not None]
    there = [model for model in known if all(store.is_verified(file) for file in model.all_files)]
    unverified = [model for model in known if model not in there and all(store.has_size(f) for f in model.all_files)]
    ours = {file.name for model in known for file in model.all_files}
    try:
        others = sum(1 for path in folder.glob("*.gguf") if path.name not in ours)
    except OSError:
        others = 0
    words = [model.name for model in there]
    words += [f"{model.name} (not verified yet)" for model in unverified]
    words += [f"{others} other GGUF files"] if others else []
    if not words:
        return CheckResult(
            "models", CheckState.WARNING, f"none in {folder} yet", f"`mesh-llm download {entries[0].name}`"
        )
    return well("models", ", ".join(words))


async def check_hub(within: float = HUB_SECONDS) -> CheckResult:
    """Whether the place where models come from answers."""
    from meshllm.models.hub.hub import Hub

    hub = Hub()
    try:
        await hub.probe(within=within)
    except DownloadFailed as failure:
        advice = "Models that are on disk or come in a package still work; HF_ENDPOINT names a mirror."
        return CheckResult("hub", CheckState.WARNING, failure.message.rstrip("."), advice)
    return well("hub", f"{hub.endpoint} answers")
