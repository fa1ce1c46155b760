"""Which machine this is, and what processes use of it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from meshllm.machine import identity, usage
from meshllm.machine.device_memory import parse_nvidia_processes
from meshllm.machine.usage import OtherPrograms, memory_used

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SIZE = 64 << 20


@LINUX
def test_all_processes_of_a_machine_read_the_same_id() -> None:
    mine = identity.machine()
    assert len(mine) == 36
    program = "from meshllm.machine import identity; print(identity.machine().hex())"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert bytes.fromhex(told.stdout.strip()) == mine


def test_machine_without_an_id_has_none(tmp_path: Path) -> None:
    folder = tmp_path / identity.BOOT_ID.parent
    folder.mkdir(parents=True)
    (tmp_path / identity.BOOT_ID).write_text("short\n")
    assert identity.machine(tmp_path) == b""
    (tmp_path / identity.BOOT_ID).write_text("7f0f3a52-3a9e-4b5a-9d0e-0c9d9a4b3c21\n")
    assert identity.machine(tmp_path) == b"7f0f3a52-3a9e-4b5a-9d0e-0c9d9a4b3c21"


@LINUX
def test_memory_of_a_process_counts_touched_pages_once() -> None:
    before = memory_used(os.getpid())
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        assert memory_used(os.getpid()) - before < SIZE // 2, "reserved memory is not used"
        for page in range(0, SIZE, mmap.PAGESIZE):
            block[page] = 1
        assert memory_used(os.getpid()) - before == pytest.approx(SIZE, rel=0.1)
    assert memory_used(2**22 + 1) == 0, "there is no such process"


def test_memory_is_read_from_the_kernels_summary(tmp_path: Path) -> None:
    folder = tmp_path / "proc/77"
    folder.mkdir(parents=True)
    (folder / "smaps_rollup").write_text("7ffd-7fff ---p 00000000 00:00 0 [rollup]\nRss: 900 kB\nPss:   800 kB\n")
    assert memory_used(77, tmp_path) == 800 << 10


def test_processor_time_of_own_processes_does_not_count_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    times = namedtuple("times", "user nice system idle iowait irq softirq steal")
    spent = {7: 0.0}
    now = [times(0.0, 0, 0, 0.0, 0, 0, 0, 0)]
    monkeypatch.setattr(usage.psutil, "cpu_times", lambda: now[0])
    monkeypatch.setattr(usage, "_seconds", lambda pid: spent[pid])
    reader = OtherPrograms()
    assert reader.read([7]) is None, "a first reading has no interval"
    assert reader.read([7]) is None, "no time has passed"
    # Of 20 processor seconds 16 were busy, 6 of them with the process.
    now[0], spent[7] = times(10.0, 0, 6.0, 3.0, 1.0, 0, 0, 0), 6.0
    assert reader.read([7]) == pytest.approx(0.5)
    # A process that began meanwhile counts from its start.
    now[0], spent[8] = times(20.0, 0, 6.0, 13.0, 1.0, 0, 0, 0), 4.0
    assert reader.read([7, 8]) == pytest.approx(0.3)
    # More than all cannot be.
    now[0], spent[7] = times(21.0, 0, 6.0, 14.0, 1.0, 0, 0, 0), 99.0
    assert reader.read([7, 8]) == 0.0


def test_time_of_a_process_is_read() -> None:
    before = usage._seconds(os.getpid())
    while usage._seconds(os.getpid()) < before + 0.02:
        sum(range(10_000))
    assert usage._seconds(2**22 + 1) == 0.0


def test_gpu_memory_by_process() -> None:
    text = "4242, 1024\n4242, 512\n77, [N/A]\nNo running processes found\n, \n9, 99999999999999999\n"
    assert parse_nvidia_processes(text) == {4242: 1536 << 20}
