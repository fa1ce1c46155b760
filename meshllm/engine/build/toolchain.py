"""Finds compiler, cmake, ninja and the accelerators of this machine, in a few milliseconds and without changes.

Errors about a missing tool include the command that installs it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshllm.errors import ToolMissing, UsageError

OLDEST = {"gcc": 9, "clang": 10, "apple-clang": 12}
"""C++17 with <filesystem> in the standard library itself."""

ACCELERATORS_VARIABLE = "MESH_LLM_ENGINE_ACCELERATORS"
OPTIONS_VARIABLE = "MESH_LLM_ENGINE_OPTIONS"
_DARWIN = platform.system() == "Darwin"
_OPTION = re.compile(r"-D[A-Za-z_][A-Za-z0-9_]{0,80}(:[A-Z]+)?=[^\0\n\"]{0,500}")
_VERSION = re.compile(r"(\d+)\.(\d+)(\.\d+)*")


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C++ compiler and its C compiler. `version`: the first line of its `--version`."""

    cxx: str
    c: str
    kind: str
    major: int
    version: str

    @property
    def identity(self) -> str:
        """The part of a build's key."""
        return f"{self.kind} {self.version}"


@dataclass(frozen=True, slots=True)
class BuildAccelerator:
    """An accelerator; `on`: built in, with `options`. `why`: what was found. `advice`: how to turn it on."""

    name: str
    on: bool
    why: str
    options: tuple[str, ...] = ()
    advice: str = ""
    identity: str = ""


def install_line(apt: str, brew: str) -> str:
    """How to install packages on this system."""
    if _DARWIN:
        return f"Run `{brew}`."
    if shutil.which("apt-get") or not shutil.which("dnf"):
        return f"On Debian or Ubuntu run `sudo apt install {apt}`; on other systems install the equivalent packages."
    return f"Run `sudo dnf install {_FEDORA.get(apt, apt)}`."


_FEDORA = {
    "g++": "gcc-c++",
    "build-essential": "gcc-c++ glibc-devel",
    "nvidia-cuda-toolkit": "cuda-toolkit",
    "glslc libvulkan-dev spirv-headers": "glslc vulkan-loader-devel vulkan-headers spirv-headers-devel",
}


# -- compiler


def find_compiler(environment: Mapping[str, str] = os.environ) -> Compiler | None:
    """The C++ compiler named by CXX, else the first of c++, g++, clang++ on the PATH, or None."""
    given = environment.get("CXX", "").strip()
    for name in [given] if given else ["c++", "g++", "clang++"]:
        path = shutil.which(name, path=environment.get("PATH"))
        if path is None:
            continue
        if output := _version_of(path, _stamp(path)):
            return _describe(path, output, environment)
    return None


def require_compiler(compiler: Compiler | None) -> Compiler:
    """The compiler, if it exists and is new enough. Raises ToolMissing."""
    advice = install_line("g++", "xcode-select --install")
    if compiler is None:
        raise ToolMissing("No C++ compiler is installed; it is needed to build the engine.", advice=advice)
    oldest = OLDEST.get(compiler.kind, 0)
    if compiler.major < oldest:
        raise ToolMissing(
            f"The C++ compiler is too old: {compiler.version}. {compiler.kind} {oldest} or newer is needed.",
            advice=f"{advice} Then set CXX to the newer one, as in `CXX=g++-12`.",
        )
    return compiler


# GCC bug 114098: GCC's AMX header does not declare that loading the tile configuration reads 64 bytes, so the optimiser
# drops most of the writes to it, and the engine crashes at its first matrix product (SIGSEGV or SIGILL). By major
# version: the first fixed minor release; from 14 on all are fixed.
_FIXED_AMX = {11: 5, 12: 4, 13: 3}


def safe_options(compiler: Compiler | None, processor: str) -> tuple[str, ...]:
    """CMake options that turn off instructions that `compiler` miscompiles on `processor`."""
    if compiler is None or compiler.kind != "gcc" or "amx_tile" not in processor.split() or compiler.major > 13:
        return ()
    match = _VERSION.search(compiler.version.rpartition(")")[2])
    if match is not None and int(match[2]) >= _FIXED_AMX.get(compiler.major, 1000):
        return ()
    flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    return (f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}")


def _describe(path: str, output: str, environment: Mapping[str, str]) -> Compiler:
    first = output.splitlines()[0].strip()[:200]
    kind = "apple-clang" if "Apple clang" in first or "Apple LLVM" in first else "clang" if "clang" in first else "gcc"
    match = _VERSION.search(first.rpartition(")")[2] or first) or _VERSION.search(first)
    c = environment.get("CC", "").strip() or _sibling(path)
    return Compiler(path, c, kind, int(match[1]) if match else 0, first)


def _sibling(cxx: str) -> str:
    """The C compiler of a C++ compiler: g++-12 -> gcc-12, clang++ -> clang, c++ -> cc."""
    folder, name = os.path.split(cxx)
    plain = name.replace("clang++", "clang").replace("g++", "gcc").replace("c++", "cc")
    candidate = Path(folder, plain)
    return str(candidate) if candidate.exists() else shutil.which(plain) or plain


def _stamp(path: str) -> tuple[int, int]:
    status = Path(path).resolve().stat()
    return status.st_size, status.st_mtime_ns


@functools.cache
def _version_of(path: str, stamp: tuple[int, int]) -> str:
    """The output of `path --version`, "" if it fails (the /usr/bin/c++ of macOS may only offer an installation)."""
    del stamp  # part of the cache key: a replaced compiler is run again
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# -- cmake and ninja


def find_tool(name: str) -> Path:
    """The path of cmake or ninja: of the Python environment, else of the PATH. Raises ToolMissing."""
    own = Path(sys.executable).parent / name  # not resolved: the python of a venv is a symbolic link
    if own.is_file() and os.access(own, os.X_OK) and importlib.util.find_spec(name) is not None:
        return own
    if found := shutil.which(name):
        return Path(found)
    raise ToolMissing(
        f"{name} is not installed; it is needed to build the engine.",
        advice=f"Run `{sys.executable} -m pip install {name}`. {install_line(_APT[name], f'brew install {name}')}",
    )


_APT = {"cmake": "cmake", "ninja": "ninja-build"}


# -- this processor


def processor() -> str:
    """Identifies the instruction set that the compiler uses with GGML_NATIVE."""
    features = _linux_features() if sys.platform.startswith("linux") else _darwin_features()
    return " ".join([platform.machine(), *features])


_SYNTHETIC = re.compile(
    r"(ibrs|ibpb|stibp|ssbd|md_clear|flush_l1d|arch_capabilities|pti|retpoline|spec|cpuid|tsc|nonstop|constant|rep_good|"
    r"art|arch_perfmon|pebs|bts|hypervisor|xtopology|mba|cat_|cdp_|cqm|rdt|hwp|dtherm|ida|arat|pln|pts|ibt|user_shstk|"
    r"vnmi|ept|vpid|tpr|flexpriority|vmx|svm|npt|nrip|avic|split_lock|bus_lock|intel_pt|epb|invpcid_single|ospke)"
)


_IDENTITY = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")


def _linux_features() -> list[str]:
    """The flags of the first processor, without those that depend on the kernel."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return []
    first = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    fields = {key.strip(): value.strip() for key, colon, value in first if colon}
    identity = [fields[name] for name in _IDENTITY if name in fields]
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return [*identity, *sorted(flag for flag in flags if not _SYNTHETIC.match(flag))]


@functools.cache
def _darwin_features() -> list[str]:
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [done.stdout.strip()]


# -- accelerators


def find_accelerators(environment: Mapping[str, str] = os.environ) -> tuple[BuildAccelerator, ...]:
    """The accelerators to build in. MESH_LLM_ENGINE_ACCELERATORS overrides: `none`, or a list such as `rocm,vulkan`.

    By default an accelerator is on if its device and its toolchain are installed; Vulkan only if no other one is on.
    Raises UsageError for an unknown name.
    """
    setting = environment.get(ACCELERATORS_VARIABLE, "auto").strip().lower() or "auto"
    chosen = None if setting == "auto" else {name for name in re.split(r"[,\s]+", setting) if name and name != "none"}
    if chosen and (unknown := sorted(chosen - set(_PROBES))):
        raise UsageError(
            f"Unknown accelerator {unknown[0]!r} in {ACCELERATORS_VARIABLE}.",
            advice=f"Use auto, none, or a list of: {', '.join(_PROBES)}.",
        )
    found: list[BuildAccelerator] = []
    for name, probe in _PROBES.items():
        accelerator = probe(environment, any(other.on for other in found) if chosen is None else False)
        if chosen is not None:
            on = name in chosen
            why = "set by the user" if on else f"turned off by {ACCELERATORS_VARIABLE}"
            accelerator = BuildAccelerator(name, on, why, _OPTIONS[name][on], "", accelerator.identity if on else "")
        found.append(accelerator)
    return tuple(found)


_OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "metal": (("-DGGML_METAL=OFF",), ("-DGGML_METAL=ON", "-DGGML_METAL_EMBED_LIBRARY=ON")),
    "cuda": (("-DGGML_CUDA=OFF",), ("-DGGML_CUDA=ON",)),
    "rocm": (("-DGGML_HIP=OFF",), ("-DGGML_HIP=ON",)),
    "vulkan": (("-DGGML_VULKAN=OFF",), ("-DGGML_VULKAN=ON",)),
}


def _made(name: str, on: bool, why: str, advice: str = "", identity: str = "") -> BuildAccelerator:
    return BuildAccelerator(name, on, why, _OPTIONS[name][on], advice, identity if on else "")


def _metal(environment: Mapping[str, str], other: bool) -> BuildAccelerator:
    del environment, other
    if not _DARWIN:
        return _made("metal", False, "not macOS")
    if platform.machine() != "arm64":
        return _made("metal", False, "not Apple silicon")
    return _made("metal", True, "Apple silicon", identity="metal")


def _cuda(environment: Mapping[str, str], other: bool) -> BuildAccelerator:
    del other
    gpus = sorted(_nvidia_gpus())
    nvcc = _which("nvcc", environment, "CUDA_HOME", "CUDA_PATH", fallback="/usr/local/cuda")
    if gpus and nvcc:
        return _made("cuda", True, f"{', '.join(gpus)}; {nvcc}", identity=f"{gpus} {_tool_identity(nvcc)}")
    if gpus:
        advice = install_line("nvidia-cuda-toolkit", "") + " Then run `mesh-llm engine build`."
        return _made("cuda", False, f"{', '.join(gpus)} found, but nvcc is missing", advice)
    if nvcc:
        return _made(
            "cuda", False, "nvcc found, but no NVIDIA GPU", f"Set {ACCELERATORS_VARIABLE}=cuda to build for it anyway."
        )
    return _made("cuda", False, "no NVIDIA GPU")


def _nvidia_gpus() -> set[str]:
    """Models of the installed NVIDIA GPUs. nvcc compiles for them (native), so they are part of a build's key."""
    models: set[str] = set()
    for path in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        try:
            match = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace")[:4096], re.MULTILINE)
        except OSError:
            continue
        models.add(match[1].strip() if match else "NVIDIA GPU")
    if not models and (Path("/dev/nvidia0").exists() or Path("/usr/lib/wsl/lib/libcuda.so.1").exists()):
        models.add("NVIDIA GPU")
    return models


def _rocm(environment: Mapping[str, str], other: bool) -> BuildAccelerator:
    del other
    hipcc = _which("hipcc", environment, "ROCM_PATH", "HIP_PATH", fallback="/opt/rocm")
    device = Path("/dev/kfd").exists()
    if device and hipcc:
        return _made("rocm", True, f"AMD GPU; {hipcc}", identity=_tool_identity(hipcc))
    if device:
        advice = install_line("hipcc libhipblas-dev librocblas-dev", "") + " Then run `mesh-llm engine build`."
        return _made("rocm", False, "AMD GPU found, but hipcc is missing", advice)
    if hipcc:
        return _made(
            "rocm", False, "hipcc found, but no AMD GPU", f"Set {ACCELERATORS_VARIABLE}=rocm to build for it anyway."
        )
    return _made("rocm", False, "no AMD GPU")


def _vulkan(environment: Mapping[str, str], other: bool) -> BuildAccelerator:
    if _DARWIN:
        return _made("vulkan", False, "Metal is used on macOS")
    device = any(Path("/dev/dri").glob("renderD*"))
    glslc = _which("glslc", environment, "VULKAN_SDK", fallback="/usr")
    roots = [Path(root) for root in (environment.get("VULKAN_SDK", ""), "/usr", "/usr/local") if root]
    headers = any((root / "include/vulkan/vulkan.h").is_file() for root in roots)
    if other:
        return _made("vulkan", False, "another accelerator is on")
    if device and glslc and headers:
        return _made("vulkan", True, f"GPU; {glslc}", identity=_tool_identity(glslc))
    if device:
        missing = "glslc" if not glslc else "the Vulkan headers"
        advice = install_line("glslc libvulkan-dev spirv-headers", "") + " Then run `mesh-llm engine build`."
        return _made("vulkan", False, f"GPU found, but {missing} missing", advice)
    return _made("vulkan", False, "no GPU")


_PROBES = {"metal": _metal, "cuda": _cuda, "rocm": _rocm, "vulkan": _vulkan}


def _which(name: str, environment: Mapping[str, str], *variables: str, fallback: str) -> str | None:
    folders = [environment[variable] for variable in variables if environment.get(variable)] + [fallback]
    for folder in folders:
        if os.access(candidate := Path(folder) / "bin" / name, os.X_OK):
            return str(candidate)
    return shutil.which(name, path=environment.get("PATH"))


def _tool_identity(path: str) -> str:
    """Identifies a tool by its file: `nvcc --version` and others take 50 ms."""
    try:
        size, changed = _stamp(path)
    except OSError:
        return path
    return f"{Path(path).resolve()} {size} {changed}"


# -- options of the user


def extra_options(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The -D options in MESH_LLM_ENGINE_OPTIONS. Raises UsageError for anything else in it."""
    try:
        words = shlex.split(environment.get(OPTIONS_VARIABLE, ""))
    except ValueError as error:
        raise _bad_options(str(error)) from None
    for word in words:
        if _OPTION.fullmatch(word) is None:
            raise _bad_options(f"{word[:80]!r} is not of the form -DNAME=VALUE")
    return tuple(words)


def _bad_options(what: str) -> UsageError:
    return UsageError(
        f"Invalid {OPTIONS_VARIABLE}: {what}.",
        advice=f'Write CMake options, as in {OPTIONS_VARIABLE}="-DGGML_CUDA_FA_ALL_QUANTS=ON -DGGML_LTO=ON".',
    )
