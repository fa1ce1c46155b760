"""What a sandboxed process may reach, and the plan by which cage.py enforces it on Linux.

A cage is the confinement of files (Landlock) and of the network (seccomp filter). With one of them alone a process is
partly confined, which is used where there is no more, and never counts as a cage.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from meshllm.engine.sandbox import landlock, seccomp
from meshllm.engine.sandbox.cage import CORE_BYTES
from meshllm.engine.sandbox.seccomp import Connect

FILE_DESCRIPTORS: Final = 4096
SERVER_MARGIN_BYTES: Final = 2 << 30  # llama-server: requests, grammars, images
WORKER_MARGIN_BYTES: Final = 512 << 20  # rpc-server: 10 MB when idle, and messages
THREAD_BYTES: Final = 16 << 20  # a stack of 8 MiB, and an arena of the C library
SCRATCH_FILE_BYTES: Final = 4 << 30  # also of memory files, which software Vulkan drivers use
MACHINE_READABLE_KERNEL: Final = ("/proc", "/sys")
# Folders of programs and libraries, in all common layouts (NixOS and Guix included): no folder of users or of services.
LIBRARIES: Final = (
    "/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/opt", "/nix/store", "/gnu/store",
    "/run/opengl-driver", "/run/opengl-driver-32",
)  # fmt: skip
# /etc holds secrets too (shadow, private keys): only what loaders and drivers read.
CONFIGURATION: Final = (
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/alternatives",
    "/etc/localtime", "/etc/nsswitch.conf", "/etc/vulkan", "/etc/glvnd", "/etc/drirc", "/etc/OpenCL", "/etc/nvidia",
    "/etc/amd", "/etc/rocm", "/etc/hsa", "/etc/egl", "/etc/nv_tegra_release", "/etc/machine-info",
)  # fmt: skip
PLAIN_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# Nodes of GPU drivers: NVIDIA (also Jetson), AMD, DRM, WSL, Mali.
ACCELERATOR_NODES: Final = (
    "nvidia*", "nvhost*", "nvmap", "nvgpu", "dri", "kfd", "dxg", "mali*", "accel",
)  # fmt: skip
# Variables that name folders or files of libraries and drivers.
_PATH_VARIABLES: Final = (
    "LD_LIBRARY_PATH", "GGML_BACKEND_PATH", "CUDA_HOME", "CUDA_PATH", "ROCM_PATH", "HIP_PATH", "VK_ICD_FILENAMES",
    "VK_DRIVER_FILES", "VK_LAYER_PATH",
)  # fmt: skip
# No driver lives there, and a variable that names one of them would open everything.
_TOO_WIDE: Final = frozenset(map(Path, ("/", "/home", "/root", "/var", "/tmp", "/etc", "/run", "/dev", "/mnt", "/srv")))


class Caging(StrEnum):
    """Whether engine processes run in a cage: files and network confined; FORCED: no, by the owner's --no-sandbox."""

    YES = "yes"
    NO = "no"
    FORCED = "forced"


@dataclass(frozen=True, slots=True)
class SandboxLayers:
    """What this system enforces. `landlock`: its ABI (0: none). `filter`: seccomp. `broker`: connect() can be limited
    to listed sockets. `profile`: macOS's sandbox-exec. `problems`: what does not work, and why, as sentences."""

    landlock: int = 0
    filter: bool = False
    broker: bool = False
    profile: bool = False
    problems: tuple[str, ...] = ()

    @property
    def cage(self) -> bool:
        """Whether files and network can both be confined."""
        return self.profile or (self.landlock > 0 and self.filter)

    @property
    def layers(self) -> str:
        """What there is, for users: "Landlock ABI 7, seccomp"; "" if nothing."""
        found = [f"Landlock ABI {self.landlock}"] if self.landlock else []
        found += ["seccomp"] if self.filter else []
        found += ["connect broker"] if self.broker else []
        found += ["sandbox-exec"] if self.profile else []
        return ", ".join(found)


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """What one process may reach beside the system's libraries.

    `program`: its folder is readable and executable. `reads`: files and folders to read. `sockets`: its private folder,
    where it may make Unix sockets. `connects`: Unix sockets that it may connect to. `scratch`: a folder for files of
    GPU drivers, `saves`: one for files of its own (None: it has none). `accelerators`: it may use the GPUs. `memory`:
    bytes of private memory (None: no limit; mapped files do not count).
    """

    program: Path
    reads: tuple[Path, ...] = ()
    sockets: Path | None = None
    connects: tuple[Path, ...] = ()
    scratch: Path | None = None
    accelerators: bool = False
    memory: int | None = None
    saves: Path | None = None

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of the process: temporary files and caches in its own folders."""
        found = {} if self.sockets is None else {"TMPDIR": str(self.sockets)}
        if self.scratch is not None:
            found |= {"TMPDIR": str(self.scratch), "XDG_CACHE_HOME": str(self.scratch)}
            found |= {"CUDA_CACHE_PATH": str(self.scratch / "cuda"), "__GL_SHADER_DISK_CACHE_PATH": str(self.scratch)}
        return found


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A policy, and what this system can enforce of it. FORCED and NO keep the limits that every system has."""

    policy: SandboxPolicy
    available: SandboxLayers
    on: bool = True

    def plan(self) -> dict[str, Any]:
        """What cage.py applies."""
        usable = self.available if self.on else SandboxLayers()
        linux, policy = sys.platform.startswith("linux"), self.policy
        limits = {"RLIMIT_CORE": CORE_BYTES, "RLIMIT_NOFILE": FILE_DESCRIPTORS}
        if policy.scratch is not None or policy.saves is not None:
            limits["RLIMIT_FSIZE"] = SCRATCH_FILE_BYTES
        if policy.memory is not None and linux:
            limits["RLIMIT_DATA"] = policy.memory
        connect = Connect.DENIED
        if policy.connects:
            connect = Connect.ASKED if usable.broker else Connect.ALLOWED
        abi = min(usable.landlock, landlock.LAST_ABI)
        return {
            "linux": linux,
            "umask": 0o077,
            "limits": limits,
            "landlock": _handled(abi),
            "rules": rules(policy) if abi else [],
            "filter": self._filter(connect, abi) if usable.filter else "",
            "own_pid": seccomp.OWN_PID,
            "asks": connect is Connect.ASKED and usable.filter,
            "connects": [str(path) for path in policy.connects],
            "label": self.label(),
        }

    def _filter(self, connect: Connect, landlock_abi: int) -> str:
        return seccomp.program(connect, gpu=self.policy.accelerators, landlock=landlock_abi).hex()

    def plan_text(self) -> str:
        """The plan as the reaper's argument."""
        return json.dumps(self.plan(), separators=(",", ":"))

    def label(self) -> str:
        """The active layers, for the log: "no-new-privileges, Landlock ABI 7, seccomp, memory 3.1 GB"."""
        linux = sys.platform.startswith("linux")
        parts = ["no new privileges"] if linux else []
        parts += [self.available.layers] if self.on and self.available.layers else []
        if self.policy.memory is not None and linux:
            parts.append(f"memory {self.policy.memory / 1e9:.1f} GB")
        caged = self.on and self.available.cage
        return f"{'on' if caged else 'not confined'}: {', '.join([*parts, 'no core dumps'])}"


@dataclass(frozen=True, slots=True)
class Sandboxing:
    """How this node runs its engine processes. `wanted`: no --no-sandbox. `cache`: where GPU drivers may keep what they
    compiled, a folder for each kind of process (None: nowhere)."""

    available: SandboxLayers = SandboxLayers()
    wanted: bool = True
    cache: Path | None = None

    @property
    def caging(self) -> Caging:
        """Whether engine processes run in a cage."""
        if not self.wanted:
            return Caging.FORCED
        return Caging.YES if self.available.cage else Caging.NO

    @property
    def refusal(self) -> str:
        """Why this node accepts no lease of another one; "" if it does."""
        if self.caging is not Caging.NO:
            return ""
        return "it has no sandbox for other nodes' layers (run `mesh-llm doctor` there, or start it with --no-sandbox)"

    def apply(self, policy: SandboxPolicy) -> Sandbox:
        """The sandbox of one process."""
        return Sandbox(policy, self.available, self.wanted)

    def policy(
        self,
        program: Path,
        *,
        reads: tuple[Path, ...],
        sockets: Path,
        connects: tuple[Path, ...],
        accelerators: bool,
        memory: int | None,
        kind: str,
        saves: Path | None = None,
    ) -> SandboxPolicy:
        """The policy of an engine process. `accelerators`: it may use them, if there are any; then it has no limit of
        memory, because drivers map far more private memory than they use, and gets a folder for the driver's files."""
        gpu = accelerators and bool(sys.platform == "darwin" or accelerator_nodes())
        return SandboxPolicy(
            program,
            reads=reads,
            sockets=sockets,
            connects=connects,
            scratch=self._scratch(kind) if gpu else None,
            accelerators=gpu,
            memory=None if gpu else memory,
            saves=saves,
        )

    def _scratch(self, kind: str) -> Path | None:
        if self.cache is None:
            return None
        folder = self.cache / kind
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return None
        return folder


NO_SANDBOX: Final = Sandboxing(wanted=False)
"""Without Landlock and filter: for tools that start an engine of their own."""


def memory_limit(planned: int, margin: int = SERVER_MARGIN_BYTES) -> int:
    """The most private memory of a process that is planned to take `planned` bytes: with a margin of at least a quarter
    for what the plan does not count, and with the stacks of its threads, which count in full."""
    return planned + max(margin, planned // 4) + 2 * (os.cpu_count() or 1) * THREAD_BYTES


def _handled(abi: int) -> list[int]:
    """struct landlock_ruleset_attr as far as `abi` knows it; [] without Landlock."""
    found = [landlock.handled_files(abi), landlock.handled_network(abi), landlock.scopes(abi)]
    return found[: 0 if not abi else 1 if abi < 4 else 2 if abi < 6 else 3]


def rules(policy: SandboxPolicy) -> list[tuple[str, int]]:
    """Landlock's rules: real paths, because rights belong to the file behind a symbolic link. Reads the disk."""
    rights: dict[str, int] = {}

    def allow(path: Path | str, wanted: int) -> None:
        real = os.path.realpath(path)
        rights[real] = rights.get(real, 0) | wanted

    for path in LIBRARIES:
        allow(path, landlock.READ_AND_RUN)
    for path in (*CONFIGURATION, *MACHINE_READABLE_KERNEL):
        allow(path, landlock.READ)
    for path in PLAIN_DEVICES:
        allow(path, landlock.READ | landlock.WRITE_FILE)
    for folder in library_folders():
        allow(folder, landlock.READ)
    allow(policy.program.parent, landlock.READ_AND_RUN)
    allow(Path(os.path.realpath(policy.program)).parent, landlock.READ_AND_RUN)
    for file in policy.reads:
        allow(file, landlock.READ)
    if policy.accelerators:
        for node in accelerator_nodes():
            allow(node, landlock.DEVICE)
    if policy.sockets is not None:
        allow(policy.sockets, landlock.SOCKETS)
    for place in (policy.scratch, policy.saves):
        if place is not None:
            allow(place, landlock.FILES)
    return [(path, wanted) for path, wanted in rights.items() if os.path.lexists(path)]


def accelerator_nodes() -> tuple[Path, ...]:
    """The GPU drivers' nodes on this machine."""
    return tuple(path for pattern in ACCELERATOR_NODES for path in sorted(Path("/dev").glob(pattern)))


def library_folders() -> tuple[Path, ...]:
    """Folders of libraries outside the usual ones: from the loader's configuration and from variables."""
    named = [
        Path(entry)
        for variable in _PATH_VARIABLES
        for entry in os.environ.get(variable, "").split(os.pathsep)
        if entry.startswith("/")
    ]
    for file in (Path("/etc/ld.so.conf"), *sorted(Path("/etc/ld.so.conf.d").glob("*.conf"))):
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        named += [Path(line.strip()) for line in lines if line.startswith("/")]
    too_wide = {*_TOO_WIDE, Path.home()}
    return tuple(path for path in named if Path(os.path.realpath(path)) not in too_wide)
