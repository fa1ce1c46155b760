"""Reads a failed build's last lines: which error to raise, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from meshllm.engine.build.toolchain import ACCELERATORS_VARIABLE, install_line
from meshllm.errors import EngineUnavailable, EnvironmentFailure, NotEnoughSpace

JOBS_VARIABLE = "MESH_LLM_ENGINE_JOBS"
_TELLING = re.compile(
    r"(\berror\b|\bError\b|fatal:|FAILED:|Killed|undefined reference|cannot find -l|No space left|Could (NOT|not) find)"
)
_MEMORY = re.compile(r"Killed|out of memory|virtual memory exhausted|Cannot allocate memory|signal terminated program")
_HEADER = re.compile(r"fatal error: '?([^':]+)'?:? (No such file|file not found)")
_OPTION = re.compile(r"unrecognized (command[- ]line )?option|unknown argument|not a recognized feature")
_ACCELERATOR = re.compile(r"nvcc|CUDA|cuda|hipcc|ROCm|HIP|Vulkan|glslc|SPIRV|unsupported GNU version")
SHOWN_LINES = 8


def failure(stage: str, tail: Sequence[str], log: Path, accelerators: Sequence[str]) -> EnvironmentFailure:
    """The typed error for a program that failed in `stage`; its message ends with the lines that tell most."""
    told = "\n".join(f"  {line.strip()[:300]}" for line in telling_lines(tail))
    message = f"The engine did not {stage}. The last errors (all of it is in {log}):\n{told}\n"
    text = "\n".join(tail)
    if "No space left on device" in text:
        return NotEnoughSpace(
            message, advice="Free some room, or move the cache with MESH_LLM_CACHE=/path; then run it again."
        )
    return EngineUnavailable(message, advice=advice_for(text, accelerators))


def telling_lines(tail: Sequence[str]) -> list[str]:
    """The last few lines that say what is wrong; the very last ones if none does."""
    telling = [line for line in tail if _TELLING.search(line) and " warning: " not in line and line.strip()]
    return (telling or [line for line in tail if line.strip()])[-SHOWN_LINES:]


def advice_for(text: str, accelerators: Sequence[str]) -> str:
    """What to do about a failed build, from what it printed."""
    if _MEMORY.search(text):
        return (
            f"The compiler ran out of memory: close other programs, or run it again with {JOBS_VARIABLE}=1; it goes on."
        )
    if accelerators and _ACCELERATOR.search(text):
        return (
            f"The fault is in the part for {', '.join(accelerators)}: see that its toolkit fits this compiler, "
            f"or run it again with {ACCELERATORS_VARIABLE}=none to build for the processor alone."
        )
    if header := _HEADER.search(text):
        system = install_line("build-essential", "xcode-select --install")
        return f"A header is missing ({header[1][:80]}). {system} Then run it again; it goes on where it stopped."
    if _OPTION.search(text):
        return f"The compiler does not know an option: {install_line('g++', 'xcode-select --install')}"
    if "undefined reference" in text or "cannot find -l" in text:
        return f"A library is missing. {install_line('build-essential', 'xcode-select --install')}"
    return "Run `mesh-llm engine rebuild` to start afresh; if it stays so, look into the log."
