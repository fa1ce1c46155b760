"""A tiny engine that builds in a second: a CMake project with the real target names, packed like the real source."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import shutil
import tarfile
from pathlib import Path

from meshllm.engine.build.builder import BuildStage, Layout
from meshllm.engine.build.pin import Patch, Pin, Source
from meshllm.engine.build.progress import Report
from meshllm.engine.build.recipe import Recipe
from meshllm.engine.build.toolchain import find_compiler
from meshllm.util.progress import Progress

TREE = "package-1.0/vendor/llama.cpp"

FILES = {
    "CMakeLists.txt": """
cmake_minimum_required(VERSION 3.14)
set(CMAKE_CXX_COMPILER_WORKS ON)
set(CMAKE_CXX_ABI_COMPILED ON)
project(fake CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(llama SHARED src/llama.cpp)
add_custom_command(OUTPUT gate.h DEPENDS src/llama.cpp llama
    COMMAND sh ${CMAKE_SOURCE_DIR}/scripts/gate.sh ${CMAKE_BINARY_DIR}/gate.h VERBATIM)
add_executable(llama-server tools/server.cpp ${CMAKE_BINARY_DIR}/gate.h)
target_include_directories(llama-server PRIVATE ${CMAKE_BINARY_DIR})
target_link_libraries(llama-server llama)
add_executable(ggml-rpc-server tools/rpc.cpp)
target_link_libraries(ggml-rpc-server llama)
""",
    # Compiling blocks until the FIFO named by FAKE_GATE is written.
    "scripts/gate.sh": 'if [ -n "$FAKE_GATE" ]; then cat "$FAKE_GATE" > "$1"; else : > "$1"; fi\n',
    "src/llama.cpp": 'const char * greeting() { return "one"; }\n',
    "tools/server.cpp": (
        '#include "gate.h"\n#include <cstdio>\nconst char * greeting();\nint main() {\n    puts(greeting());\n}\n'
    ),
    "tools/rpc.cpp": "int main() {\n    return 0;\n}\n",
    "models/templates/tools.jinja": "{{ messages }}\n",
    "LICENSE": "a licence\n",
    "docs/large.md": "not wanted\n",
}


def archive(files: dict[str, str] | None = None, *, extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """A source distribution that holds `files` (of llama.cpp's tree), and `extra` members without content."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in (FILES if files is None else files).items():
            member = tarfile.TarInfo(f"{TREE}/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for member in extra:
            tar.addfile(member)
    return buffer.getvalue()


def pin_of(data: bytes) -> Pin:
    return Pin("package", "1.0", "package-1.0.tar.gz", hashlib.sha256(data).hexdigest(), len(data), TREE, "abcdef0")


def patch(name: str, text: str) -> Patch:
    return Patch(name, text, hashlib.sha256(text.encode()).hexdigest())


class Index:
    """A local package index that serves `data` and counts downloads."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fetched = 0

    async def fetch(self, pin: Pin, target: Path, report: Report) -> None:
        self.fetched += 1
        report(Progress(BuildStage.FETCH, len(self.data), pin.size))
        await asyncio.to_thread(target.write_bytes, self.data)


class Bench:
    """A cache, a package index, and a recipe for its package."""

    def __init__(self, folder: Path, files: dict[str, str] | None = None, patches: tuple[Patch, ...] = ()) -> None:
        self.index = Index(archive(files))
        self.where = Layout(folder / "engine")
        self.recipe = Recipe(Source(pin_of(self.index.data), patches), find_compiler(), (), "some processor")
        self.steps: list[Progress] = []

    @property
    def stages(self) -> list[BuildStage]:
        """The stages reported so far, each once, in order."""
        return list(dict.fromkeys(step.stage for step in self.steps))


HAS_COMPILER = find_compiler() is not None and shutil.which("sh") is not None
NO_COMPILER = "needs a C++ compiler and sh"
