"""GPUs from the tools of their vendors, which may fail, hang or print too much."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.machine import accelerators
from meshllm.machine.accelerators import parse_amd, parse_apple, parse_nvidia, parse_vulkan
from meshllm.machine.programs import MAX_OUTPUT_BYTES, output_of
from meshllm.tasks import Owner

GIB = 1 << 30

NVIDIA = "NVIDIA H200, 143771, 143000, 580.65.06\nNVIDIA GB10, [N/A], [N/A], 580.95.05\n"
AMD = """{"card0": {"VRAM Total Memory (B)": "17163091968", "VRAM Total Used Memory (B)": "1163091968",
 "Card Series": "Radeon RX 7800 XT"}, "system": {"Driver version": "6.8"}}"""
APPLE = """{"SPDisplaysDataType": [{"_name": "Apple M3 Max", "sppci_model": "Apple M3 Max", "sppci_cores": "40",
 "spdisplays_mtlgpufamilysupport": "spdisplays_metal3"}]}"""
VULKAN = """
Devices:
========
GPU0:
\tapiVersion         = 1.3.255
\tdeviceType         = PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
\tdeviceName         = Intel(R) Arc(tm) A770 Graphics (DG2)
\tdriverInfo         = Mesa 23.2.1
GPU1:
\tdeviceType         = PHYSICAL_DEVICE_TYPE_CPU
\tdeviceName         = llvmpipe (LLVM 15.0.7, 256 bits)
"""


def test_accelerators_are_parsed_from_tool_output() -> None:
    h200, gb10 = parse_nvidia(NVIDIA)
    assert (h200.name, h200.memory_total, h200.unified) == ("NVIDIA H200", 143771 << 20, False)
    assert (gb10.memory_total, gb10.unified) == (0, True)
    (radeon,) = parse_amd(AMD)
    assert (radeon.name, radeon.memory_free) == ("Radeon RX 7800 XT", 16_000_000_000)
    (m3,) = parse_apple(APPLE)
    assert (m3.kind, m3.name, m3.unified) == ("metal", "Apple M3 Max", True)
    (arc,) = parse_vulkan(VULKAN)
    assert (arc.kind, arc.name, arc.driver) == ("vulkan", "Intel(R) Arc(tm) A770 Graphics (DG2)", "Mesa 23.2.1")


@given(text=st.one_of(st.text(max_size=200), st.sampled_from([NVIDIA, AMD, APPLE, VULKAN]).flatmap(
    lambda whole: st.integers(0, len(whole)).map(lambda cut: whole[:cut] + whole[cut + 3 :])
)))  # fmt: skip
def test_accelerator_parsers_accept_any_text(text: str) -> None:
    for parse in (parse_nvidia, parse_amd, parse_apple, parse_vulkan):
        assert isinstance(parse(text), list)


@pytest.mark.parametrize("text", ["[]", "1", '{"card0": 5}', '{"SPDisplaysDataType": 3}', "[" * 100_000])
def test_accelerators_ignore_unknown_json(text: str) -> None:
    assert parse_amd(text) == []
    assert parse_apple(text) == []


def program(folder: Path, name: str, lines: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{lines}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only programs on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


async def test_accelerators_without_tools_are_empty(tools: Path) -> None:
    assert await accelerators.find(5) == ()


async def test_accelerators_of_tools_that_work_and_fail(tools: Path) -> None:
    program(tools, "nvidia-smi", f"print({NVIDIA!r})")
    program(tools, "rocm-smi", "raise SystemExit(1)")
    program(tools, "vulkaninfo", f"print({VULKAN!r})")
    found = await accelerators.find(20)
    assert [device.kind for device in found] == ["cuda", "cuda"]


HANGING = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
with open({pids!r}, "w") as pids:
    pids.write(f"{{os.getpid()}} {{child.pid}}")
{then}
"""


@pytest.mark.parametrize("then", ["signal.pause()", "sys.exit(0)"])
async def test_children_of_a_tool_are_killed(then: str, tools: Path) -> None:
    """Also if the tool has ended and its child holds the pipe."""
    pids = tools / "pids"
    os.mkfifo(pids)
    program(tools, "nvidia-smi", HANGING.format(pids=str(pids), then=then))
    owner = Owner("test")
    asked = owner.start(output_of("nvidia-smi", within=60), "ask")
    started = [psutil.Process(int(pid)) for pid in (await asyncio.to_thread(pids.read_text)).split()[1:]]
    await owner.close()
    assert asked.cancelled()
    _, alive = await asyncio.to_thread(psutil.wait_procs, started, 20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


async def test_tool_that_hangs_is_killed_after_the_deadline(tools: Path) -> None:
    program(tools, "nvidia-smi", "import signal; signal.pause()")
    assert await output_of("nvidia-smi", within=0.2) is None


async def test_tool_with_too_much_output_is_ignored(tools: Path) -> None:
    program(tools, "chatty", f"import sys; sys.stdout.write('x' * {MAX_OUTPUT_BYTES + 1})")
    assert await output_of("chatty", within=20) is None


async def test_cancelled_search_kills_the_tools(tools: Path) -> None:
    program(tools, "slow", "import signal; print('x' * 10, flush=True); signal.pause()")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await output_of("slow", within=60)
    assert not [child for child in psutil.Process(os.getpid()).children() if "slow" in " ".join(child.cmdline())]
