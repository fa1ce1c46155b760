"""Free GPU memory by PCI address: output of nvidia-smi, and sysfs of the amdgpu driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.machine.device_memory import amd_free_memory, free_memory, parse_nvidia_free

SYSFS = "sys/bus/pci/drivers/amdgpu"


def test_nvidia_free_memory_skips_rows_without_a_number() -> None:
    text = "00000000:01:00.0, 1024\n00000000:02:00.0, [N/A]\nNo devices were found\n"
    assert parse_nvidia_free(text) == {"00000000:01:00.0": 1024 << 20}


def test_amd_free_memory_is_total_minus_used(tmp_path: Path) -> None:
    for address, used in (("0000:03:00.0", "300\n"), ("0000:04:00.0", "not a number")):
        device = tmp_path / SYSFS / address
        device.mkdir(parents=True)
        (device / "mem_info_vram_total").write_text("1000\n")
        (device / "mem_info_vram_used").write_text(used)
    (tmp_path / SYSFS / "module").mkdir()
    assert amd_free_memory(tmp_path) == {"0000:03:00.0": 700}


async def test_free_memory_without_gpus_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await free_memory(root=tmp_path) == {}


async def test_free_memory_reads_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '00000000:01:00.0, 5'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await free_memory(root=tmp_path) == {"00000000:01:00.0": 5 << 20}
