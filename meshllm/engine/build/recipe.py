"""What a build of the engine depends on, and the key made of it.

Invariant: builds with equal keys are interchangeable; everything that changes the binaries is part of the key.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshllm.engine.build import pin, toolchain
from meshllm.engine.build.pin import Source
from meshllm.engine.build.toolchain import BuildAccelerator, Compiler

FORMAT = 1
"""Increased when the layout or the making of an installed build changes."""

TARGETS = ("llama-server", "ggml-rpc-server")

BASE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",  # the bindings load the same libllama
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",  # libraries are found beside the program: the directory can be moved
    "-DCMAKE_INSTALL_RPATH=" + ("@loader_path" if sys.platform == "darwin" else "$ORIGIN"),
    "-DGGML_NATIVE=ON",
    "-DGGML_RPC=ON",
    "-DLLAMA_ALL_WARNINGS=OFF",  # warnings of code that is not ours: ten times the log
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",  # the console is ours
    "-DLLAMA_OPENSSL=OFF",  # it listens on loopback and Unix sockets only, and fetches nothing
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # would be fetched
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a build. Without a compiler (None), it cannot be built."""

    source: Source
    compiler: Compiler | None
    accelerators: tuple[BuildAccelerator, ...]
    processor: str
    extra: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """CMake options; the user's come last and take precedence."""
        revision = f"-DLLAMA_BUILD_COMMIT={self.source.pin.commit[:7]}"
        switched = tuple(option for accelerator in self.accelerators for option in accelerator.options)
        safe = toolchain.safe_options(self.compiler, self.processor)
        return (*BASE_OPTIONS, "-DLLAMA_BUILD_NUMBER=0", revision, *safe, *switched, *self.extra)

    @property
    def source_key(self) -> str:
        """Identifies the pinned and patched source."""
        return _digest([self.source.pin.sha256, self.source.pin.tree, [patch.sha256 for patch in self.source.patches]])

    @property
    def family(self) -> str:
        """The key without the compiler, to find builds after the compiler was removed."""
        hardware = [accelerator.identity for accelerator in self.accelerators if accelerator.on]
        return _digest([FORMAT, self.source_key, self.options, TARGETS, self.processor, hardware])

    @property
    def key(self) -> str:
        """Identifies the build: 16 hexadecimal digits."""
        return _digest([self.family, self.compiler.identity if self.compiler else ""])


def current(folder: Path | None = None, environment: Mapping[str, str] = os.environ) -> Recipe:
    """The recipe for this checkout, machine and environment, in about 10 ms. Raises EngineUnavailable, UsageError."""
    return Recipe(
        source=pin.read_source(folder or pin.directory()),
        compiler=toolchain.find_compiler(environment),
        accelerators=toolchain.find_accelerators(environment),
        processor=toolchain.processor(),
        extra=toolchain.extra_options(environment),
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()[:16]
