"""Turns the last lines of a failed build into an error with advice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from meshllm.engine.build.toolchain import ACCELERATORS_VARIABLE, install_line
from meshllm.errors import EngineUnavailable, EnvironmentFailure, NotEnoughSpace

JOBS_VARIABLE = "MESH_LLM_ENGINE_JOBS"
_ERROR_LINE = re.compile(
    r"(\berror\b|\bError\b|fatal:|FAILED:|Killed|undefined reference|cannot find -l|No space left|Could (NOT|not) find)"
)
_MEMORY = re.compile(r"Killed|out of memory|virtual memory exhausted|Cannot allocate memory|signal terminated program")
_HEADER = re.compile(r"fatal error: '?([^':]+)'?:? (No such file|file not found)")
_OPTION = re.compile(r"unrecognized (command[- ]line )?option|unknown argument|not a recognized feature")
_ACCELERATOR = re.compile(r"nvcc|CUDA|cuda|hipcc|ROCm|HIP|Vulkan|glslc|SPIRV|unsupported GNU version")
SHOWN_LINES = 8


def failure(stage: str, tail: Sequence[str], log: Path, accelerators: Sequence[str]) -> EnvironmentFailure:
    """The error for a program that failed in `stage`; its message ends with the last error lines."""
    shown = "\n".join(f"  {line.strip()[:300]}" for line in error_lines(tail))
    message = f"Building the engine failed ({stage}). Last errors (log: {log}):\n{shown}\n"
    text = "\n".join(tail)
    if "No space left on device" in text:
        return NotEnoughSpace(
            message, advice="Free some disk space, or set MESH_LLM_CACHE to another folder, and run it again."
        )
    return EngineUnavailable(message, advice=advice_for(text, accelerators))


def error_lines(tail: Sequence[str]) -> list[str]:
    """The last lines that report an error, or the last lines if none does."""
    errors = [line for line in tail if _ERROR_LINE.search(line) and " warning: " not in line and line.strip()]
    return (errors or [line for line in tail if line.strip()])[-SHOWN_LINES:]


def advice_for(text: str, accelerators: Sequence[str]) -> str:
    """What to do about a failed build, from its output."""
    if _MEMORY.search(text):
        return f"The compiler ran out of memory. Close other programs or set {JOBS_VARIABLE}=1, and run it again."
    if accelerators and _ACCELERATOR.search(text):
        return (
            f"The code for {', '.join(accelerators)} failed to build. Check that its toolkit supports this compiler, "
            f"or set {ACCELERATORS_VARIABLE}=none to build for the CPU only."
        )
    if header := _HEADER.search(text):
        system = install_line("build-essential", "xcode-select --install")
        return f"A header is missing ({header[1][:80]}). {system} Then run it again to resume."
    if _OPTION.search(text):
        return f"The compiler does not support an option. {install_line('g++', 'xcode-select --install')}"
    if "undefined reference" in text or "cannot find -l" in text:
        return f"A library is missing. {install_line('build-essential', 'xcode-select --install')}"
    return "Run `mesh-llm engine rebuild`. If it fails again, see the log."
