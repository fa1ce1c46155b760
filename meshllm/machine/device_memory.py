"""Free memory of this computer's GPUs by PCI address, without starting a GPU context: cheap enough to poll."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .programs import output_of
from .resources import ROOT

MAX_DEVICES: Final = 256
MAX_PROCESSES: Final = 4096


async def free_memory(within: float = 5.0, root: Path = ROOT) -> dict[str, int]:
    """Free bytes by PCI address, of NVIDIA and AMD GPUs; {} if there are none. Never raises.

    Cost: AMD (Linux), two small files of sysfs per GPU. NVIDIA, one run of nvidia-smi, which is tens to hundreds of
    milliseconds of a child process; where there is no nvidia-smi, nothing. Other GPUs share the computer's memory or
    cannot be read this way.
    """
    text = await output_of(
        "nvidia-smi", "--query-gpu=pci.bus_id,memory.free", "--format=csv,noheader,nounits", within=within
    )
    return {**parse_nvidia_free(text or ""), **amd_free_memory(root)}


def parse_nvidia_free(text: str) -> dict[str, int]:
    """Output of `nvidia-smi --query-gpu=pci.bus_id,memory.free` (MiB); rows without a number are skipped."""
    found = {}
    for row in csv.reader(text.splitlines()[:MAX_DEVICES], skipinitialspace=True):
        if len(row) == 2 and (free := row[1].strip()).isascii() and free.isdecimal() and len(free) < 16:
            found[row[0].strip()] = int(free) << 20
    return found


async def used_by_process(within: float = 5.0) -> dict[int, int]:
    """Bytes of GPU memory by process id, as the NVIDIA driver tells it; {} elsewhere, and where it hides the processes
    (some containers). Never raises. Cost: as `free_memory`."""
    text = await output_of(
        "nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits", within=within
    )
    return parse_nvidia_processes(text or "")


def parse_nvidia_processes(text: str) -> dict[int, int]:
    """Output of `nvidia-smi --query-compute-apps=pid,used_memory` (MiB); a process may use several GPUs."""
    found: dict[int, int] = {}
    for row in csv.reader(text.splitlines()[:MAX_PROCESSES], skipinitialspace=True):
        words = [word.strip() for word in row]
        if len(words) == 2 and all(word.isascii() and word.isdecimal() and len(word) < 16 for word in words):
            found[int(words[0])] = found.get(int(words[0]), 0) + (int(words[1]) << 20)
    return found


def amd_free_memory(root: Path = ROOT) -> Mapping[str, int]:
    """Free bytes of GPUs of the amdgpu driver, from sysfs."""
    found = {}
    for path in sorted(root.glob("sys/bus/pci/drivers/amdgpu/*:*"))[:MAX_DEVICES]:
        try:
            total = int((path / "mem_info_vram_total").read_text())
            used = int((path / "mem_info_vram_used").read_text())
        except (OSError, ValueError):
            continue
        found[path.name] = max(0, total - used)
    return found
