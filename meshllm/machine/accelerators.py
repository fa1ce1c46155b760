"""The GPUs of this computer, from tools of their vendors (nvidia-smi, rocm-smi, ...).

Invariant: never raises and never takes longer than its deadline; a missing or hanging tool means "none found". For the
devices that the engine can use, ask the engine (engine/probe/bindings.py).
"""

from __future__ import annotations

import asyncio
import csv
import json
import platform
import re
from dataclasses import dataclass
from typing import Any, Final

from meshllm.tasks import Owner

from .programs import output_of

MAX_DEVICES: Final = 256


@dataclass(frozen=True, slots=True)
class AcceleratorInfo:
    """A GPU. `kind`: "cuda", "rocm", "metal" or "vulkan". Memory in bytes, 0 if unknown.

    `unified`: it uses the computer's memory.
    """

    kind: str
    name: str
    memory_total: int = 0
    memory_free: int = 0
    driver: str = ""
    unified: bool = False


async def find(within: float = 5.0) -> tuple[AcceleratorInfo, ...]:
    """All GPUs, found in parallel within `within` seconds; Vulkan devices only if no other tool finds one."""
    owner = Owner("accelerators")
    try:
        probes = [
            owner.start(probe(within), name)
            for name, probe in (("nvidia", _nvidia), ("amd", _amd), ("apple", _apple), ("vulkan", _vulkan))
        ]
        found = await asyncio.gather(*probes)
    finally:
        await owner.close()
    native = [device for devices in found[:3] for device in devices]
    return tuple(native or found[3])[:MAX_DEVICES]


async def _nvidia(within: float) -> list[AcceleratorInfo]:
    fields = "--query-gpu=name,memory.total,memory.free,driver_version"
    text = await output_of("nvidia-smi", fields, "--format=csv,noheader,nounits", within=within)
    return parse_nvidia(text or "")


async def _amd(within: float) -> list[AcceleratorInfo]:
    text = await output_of("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json", within=within)
    return parse_amd(text or "")


async def _apple(within: float) -> list[AcceleratorInfo]:
    if platform.system() != "Darwin":
        return []
    text = await output_of("system_profiler", "-json", "SPDisplaysDataType", within=within)
    return parse_apple(text or "")


async def _vulkan(within: float) -> list[AcceleratorInfo]:
    return parse_vulkan(await output_of("vulkaninfo", "--summary", within=within) or "")


def parse_nvidia(text: str) -> list[AcceleratorInfo]:
    """From `nvidia-smi --query-gpu`, memory in MiB; "[N/A]" for memory shared with the computer."""
    found = []
    for row in csv.reader(text.splitlines()[:MAX_DEVICES], skipinitialspace=True):
        if len(row) == 4 and row[0]:
            total, free = _number(row[1]) << 20, _number(row[2]) << 20
            found.append(AcceleratorInfo("cuda", row[0].strip(), total, free, row[3].strip(), unified=total == 0))
    return found


def parse_amd(text: str) -> list[AcceleratorInfo]:
    """From `rocm-smi --json`: cards by name, memory in bytes as text."""
    found = []
    for key, card in sorted(_object(text).items()):
        if not key.startswith("card") or not isinstance(card, dict):
            continue
        name = next(
            (str(card[n]) for n in ("Card Series", "Card series", "Card model", "GFX Version") if card.get(n)), key
        )
        total = _number(str(card.get("VRAM Total Memory (B)", "")))
        used = _number(str(card.get("VRAM Total Used Memory (B)", "")))
        found.append(AcceleratorInfo("rocm", name, total, max(0, total - used)))
    return found


def parse_apple(text: str) -> list[AcceleratorInfo]:
    """From `system_profiler -json SPDisplaysDataType`; only GPUs that support Metal."""
    found = []
    devices = _object(text).get("SPDisplaysDataType")
    for device in devices if isinstance(devices, list) else []:
        if isinstance(device, dict) and (
            device.get("spdisplays_mtlgpufamilysupport") or device.get("spdisplays_metal")
        ):
            name = str(device.get("sppci_model") or device.get("_name") or "GPU")
            found.append(AcceleratorInfo("metal", name, unified="Apple" in name))
    return found


def parse_vulkan(text: str) -> list[AcceleratorInfo]:
    """From `vulkaninfo --summary`; without software renderers."""
    found = []
    for block in re.split(r"^GPU\d+:", text, flags=re.MULTILINE)[1 : MAX_DEVICES + 1]:
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*(.+?)\s*$", block, flags=re.MULTILINE))
        kind = fields.get("deviceType", "")
        if "GPU" in kind and fields.get("deviceName"):
            unified = "INTEGRATED" in kind
            driver = fields.get("driverInfo", "")
            found.append(AcceleratorInfo("vulkan", fields["deviceName"], driver=driver, unified=unified))
    return found


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
