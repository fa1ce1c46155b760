"""Memory, CPUs and cgroup limits from a fake /proc and /sys."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshllm.machine.resources import disk, memory, processors

GIB = 1 << 30


def make(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_memory_without_cgroups_is_that_of_the_machine(tmp_path: Path) -> None:
    found = memory(tmp_path)
    assert found.total == psutil.virtual_memory().total
    assert 0 < found.available <= found.total
    assert not found.limited
    counted = processors(tmp_path)
    assert counted.logical == os.cpu_count()
    assert 1 <= counted.usable <= counted.logical


def test_memory_is_limited_by_the_lowest_cgroup_v2_limit(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/memory.max": "1048576000\n",
            "sys/fs/cgroup/a/memory.current": "648576000\n",
            "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 48576000\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
        },
    )
    found = memory(root)
    assert (found.total, found.limited) == (1_048_576_000, True)
    assert found.available == 1_048_576_000 - (648_576_000 - 48_576_000)
    assert processors(root).usable == 1


def test_memory_is_limited_by_cgroup_v1(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/x\n",
            "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1000000000\n",
            "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "200000000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
        },
    )
    assert (memory(root).total, memory(root).available) == (1_000_000_000, 800_000_000)
    assert processors(root).usable == 1


def test_memory_ignores_the_unlimited_value_of_cgroup_v1(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        },
    )
    assert not memory(root).limited


NAMES = ("memory.max", "memory.current", "memory.stat", "cpu.max")


@settings(max_examples=100, deadline=None)
@given(
    group=st.text(max_size=40).filter(lambda text: "\0" not in text),
    contents=st.lists(st.binary(max_size=30), min_size=4, max_size=4),
)
def test_resources_accept_any_file_contents(group: str, contents: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = make(Path(folder), {"proc/self/cgroup": "placeholder", "sys/fs/cgroup/placeholder": ""})
        (root / "proc/self/cgroup").write_bytes(b"0::" + group.encode("utf-8", "replace"))
        for name, content in zip(NAMES, contents, strict=True):
            (root / "sys/fs/cgroup" / name).write_bytes(content)
        found = memory(root)
        assert 0 <= found.available <= max(found.total, found.available)
        assert processors(root).usable >= 1


def test_disk_of_a_missing_folder_is_that_of_its_parent(tmp_path: Path) -> None:
    found = disk(tmp_path / "not" / "made")
    assert found is not None
    assert 0 < found.free <= found.total


@pytest.mark.parametrize("quota", ["250000 100000", "100 100000"])
def test_cpu_quota_gives_at_least_one_processor(quota: str, tmp_path: Path) -> None:
    root = make(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota})
    assert processors(root).usable in (1, min(2, processors(tmp_path / "none").usable))
