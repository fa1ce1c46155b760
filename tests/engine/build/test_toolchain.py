"""Compiler, tools and accelerators of a build; errors name the command that installs what is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshllm.engine.build import diagnose, recipe, toolchain
from meshllm.engine.build.pin import Pin, Source
from meshllm.errors import EngineUnavailable, NotEnoughSpace, ToolMissing, UsageError

GCC = "g++ (Debian {0}.2.0-14) {0}.2.0\nCopyright"
CLANG = "Debian clang version {0}.0.6\nTarget: x86_64-pc-linux-gnu"
APPLE = "Apple clang version {0}.0.0 (clang-1700.0.13.3)\nTarget: arm64-apple-darwin"


def program(folder: Path, name: str, output: str, code: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("name", "output", "kind"), [("g++", GCC, "gcc"), ("clang++", CLANG, "clang"), ("c++", APPLE, "apple-clang")]
)
@pytest.mark.parametrize(("version", "good"), [(5, False), (14, True)])
def test_compiler_kind_and_version_are_detected(
    tmp_path: Path, name: str, output: str, kind: str, version: int, good: bool
) -> None:
    program(tmp_path / "bin", name, output.format(version))
    found = toolchain.find_compiler({"PATH": str(tmp_path / "bin")})
    assert found is not None
    assert (found.kind, found.major) == (kind, version)
    if good:
        assert toolchain.require_compiler(found) is found
        return
    with pytest.raises(ToolMissing, match="too old") as caught:
        toolchain.require_compiler(found)
    assert "install" in caught.value.advice


def test_cxx_variable_selects_the_compilers(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    program(folder, "c++", GCC.format(9))
    chosen = program(folder, "g++-13", GCC.format(13))
    program(folder, "gcc-13", GCC.format(13))
    found = toolchain.find_compiler({"PATH": str(folder), "CXX": "g++-13"})
    assert found is not None
    assert (found.cxx, found.c) == (str(chosen), str(folder / "gcc-13"))


def test_compiler_stub_is_ignored(tmp_path: Path) -> None:
    program(tmp_path / "bin", "c++", "xcode-select: note: no developer tools were found", 1)
    assert toolchain.find_compiler({"PATH": str(tmp_path / "bin")}) is None
    with pytest.raises(ToolMissing) as caught:
        toolchain.require_compiler(None)
    assert "install" in caught.value.advice


def test_cmake_and_ninja_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cmake", "ninja"):
        assert toolchain.find_tool(name) == Path(sys.executable).parent / name
    monkeypatch.setattr(sys, "executable", "/nowhere/bin/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match="ninja is not installed") as caught:
        toolchain.find_tool("ninja")
    assert "pip install ninja" in caught.value.advice
    assert "ninja-build" in caught.value.advice or "brew" in caught.value.advice


def test_accelerators_variable_selects_accelerators() -> None:
    chosen = {
        found.name: found for found in toolchain.find_accelerators({toolchain.ACCELERATORS_VARIABLE: "cuda, rocm"})
    }
    assert {name for name, found in chosen.items() if found.on} == {"cuda", "rocm"}
    assert chosen["cuda"].options == ("-DGGML_CUDA=ON",)
    assert chosen["vulkan"].options == ("-DGGML_VULKAN=OFF",)
    assert not any(found.on for found in toolchain.find_accelerators({toolchain.ACCELERATORS_VARIABLE: "none"}))
    with pytest.raises(UsageError, match="tpu"):
        toolchain.find_accelerators({toolchain.ACCELERATORS_VARIABLE: "tpu"})


def test_every_accelerator_has_a_reason() -> None:
    for found in toolchain.find_accelerators(dict(os.environ)):
        assert found.why
        assert bool(found.options)


def test_gpu_without_toolkit_gives_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "_nvidia_gpus", lambda: {"NVIDIA Something"})
    bare = {"PATH": str(tmp_path), toolchain.ACCELERATORS_VARIABLE: "auto"}
    monkeypatch.setattr(toolchain, "_which", lambda *_, **__: None)
    (cuda,) = [found for found in toolchain.find_accelerators(bare) if found.name == "cuda"]
    assert not cuda.on
    assert "nvidia-cuda-toolkit" in cuda.advice
    nvcc = program(tmp_path / "bin", "nvcc", "release 13")
    monkeypatch.setattr(toolchain, "_which", lambda name, *_, **__: str(nvcc) if name == "nvcc" else None)
    (cuda,) = [found for found in toolchain.find_accelerators(bare) if found.name == "cuda"]
    assert cuda.on
    assert "NVIDIA Something" in cuda.identity
    assert str(nvcc) in cuda.identity


def test_user_options_are_parsed() -> None:
    name = toolchain.OPTIONS_VARIABLE
    assert toolchain.extra_options({name: "-DA=1 '-DB:STRING=x y'"}) == ("-DA=1", "-DB:STRING=x y")
    for bad in ("-DA", "A=1", "-C file", "-DA=1 --trace", "'-DA=1", "-D;=1", "-DA=a\nb"):
        with pytest.raises(UsageError):
            toolchain.extra_options({name: bad if "\n" not in bad else f"'{bad}'"})


@settings(deadline=None)
@given(st.text(max_size=80))
def test_user_options_of_any_text_parse_or_raise_a_typed_error(text: str) -> None:
    try:
        words = toolchain.extra_options({toolchain.OPTIONS_VARIABLE: text})
    except UsageError:
        return
    assert all(word.startswith("-D") and "=" in word for word in words)


def test_processor_key_excludes_kernel_flags() -> None:
    found = toolchain.processor().split()
    assert found == toolchain.processor().split()
    assert not {"md_clear", "ibrs", "flush_l1d", "hypervisor"} & set(found)


def test_recipe_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(Pin("p", "1", "p.tar.gz", "0" * 64, 1, "t", "abcdef0"), ())
    bare = recipe.Recipe(source, None, (), "cpu")
    assert len(bare.key) == 16
    assert bare.options[-1] == "-DLLAMA_BUILD_COMMIT=abcdef0"


# -- what a failed build says


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "MESH_LLM_ENGINE_JOBS=1"),
        ("cc1plus: out of memory allocating 65536 bytes", "MESH_LLM_ENGINE_JOBS=1"),
        ("x.cpp:1:10: fatal error: pthread.h: No such file or directory", "pthread.h"),
        ("c++: error: unrecognized command-line option '-std=c++17'", "does not support an option"),
        ("/usr/bin/ld: cannot find -lstdc++", "library is missing"),
        ("something else: error: x", "rebuild"),
    ],
)
def test_failed_build_advice_matches_the_error(line: str, told: str) -> None:
    found = diagnose.failure("compile", ["[1/2] Building", line, "ninja: build stopped."], Path("/log"), [])
    assert isinstance(found, EngineUnavailable)
    assert told in found.advice
    assert line[:60] in found.message


def test_failed_build_distinguishes_full_disk_and_accelerator() -> None:
    full = diagnose.failure("compile", ["fatal error: error writing: No space left on device"], Path("/log"), [])
    assert isinstance(full, NotEnoughSpace)
    tail = ["nvcc fatal : Unsupported gpu architecture", "FAILED: x"]
    assert "ACCELERATORS=none" in diagnose.failure("compile", tail, Path("/log"), ["cuda"]).advice
    assert diagnose.error_lines(["a", "", "b"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("version", "kind", "processor", "off"),
    [
        ("c++ (Debian 12.2.0-14+deb12u1) 12.2.0", "gcc", "x86_64 amx_tile avx2", True),
        ("g++ (GCC) 12.4.0", "gcc", "x86_64 amx_tile avx2", False),
        ("g++ (GCC) 10.2.1 20210110", "gcc", "x86_64 amx_tile", True),
        ("g++ (Ubuntu 13.2.0-23ubuntu4) 13.2.0", "gcc", "x86_64 amx_tile", True),
        ("g++ (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0", "gcc", "x86_64 amx_tile", False),
        ("g++ (GCC) 14.1.0", "gcc", "x86_64 amx_tile", False),
        ("Debian clang version 14.0.6", "clang", "x86_64 amx_tile", False),
        ("c++ (Debian 12.2.0-14+deb12u1) 12.2.0", "gcc", "x86_64 avx2", False),
    ],
)
def test_amx_is_turned_off_for_compilers_with_the_bug(version: str, kind: str, processor: str, off: bool) -> None:
    major = int(version.rpartition(")")[2].replace("Debian clang version", "").split(".")[0])
    compiler = toolchain.Compiler("c++", "cc", kind, major, version)
    options = " ".join(toolchain.safe_options(compiler, processor))
    assert ("-mno-amx-tile" in options) == off
    assert toolchain.safe_options(None, processor) == ()
