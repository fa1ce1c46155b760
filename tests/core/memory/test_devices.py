"""What a machine has for models: nothing twice, nothing above the cap, nothing that was not named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.memory.devices import DRIVER_LEAST, MEMORY_SHARE, Device, MachineMemory, offer, room, select
from meshllm.errors import UsageError

GB = 10**9
CUDA = (Device("CUDA0", total=24 * GB, free=20 * GB, id="0:1"), Device("CUDA1", total=8 * GB, free=8 * GB, id="0:2"))
VULKAN = Device("Vulkan0", total=24 * GB, free=20 * GB, id="0:1")
INTEGRATED = Device("Vulkan1", total=16 * GB, free=12 * GB, shared=True, id="0:9")
BARE = MachineMemory(32 * GB, 30 * GB, known=True)


def test_select_uses_a_device_of_two_backends_once() -> None:
    assert select([*CUDA, VULKAN], ()) == ("CUDA0", "CUDA1")


def test_select_uses_integrated_devices_only_without_dedicated_ones() -> None:
    assert select([INTEGRATED], ()) == ("Vulkan1",)
    assert select([INTEGRATED, *CUDA], ()) == ("CUDA0", "CUDA1")
    assert select([INTEGRATED, *CUDA], ("Vulkan1", "CUDA1")) == ("Vulkan1", "CUDA1")


def test_select_none_means_cpu() -> None:
    assert select(CUDA, ("none",)) == ()
    with pytest.raises(UsageError, match="none"):
        select(CUDA, ("none", "CUDA0"))


def test_select_of_a_missing_device_lists_the_devices() -> None:
    with pytest.raises(UsageError, match="no device CUDA7") as caught:
        select(CUDA, ("CUDA0", "CUDA7"))
    assert "CUDA0, CUDA1" in caught.value.advice
    with pytest.raises(UsageError) as caught:
        select((), ("CUDA0",))
    assert "finds no device" in caught.value.advice


def test_cap_limits_ram_without_accelerators() -> None:
    assert room(BARE).host == offer(BARE) == int(30 * GB * MEMORY_SHARE)
    assert not room(BARE).capped
    capped = room(replace(BARE, cap=8 * GB))
    assert (capped.host, capped.capped) == (8 * GB, True)
    assert room(replace(BARE, cap=100 * GB)) == room(BARE)


def test_cap_is_divided_between_accelerators() -> None:
    machine = replace(BARE, devices=CUDA, used=("CUDA0", "CUDA1"))
    whole = room(machine)
    assert [accelerator.room for accelerator in whole.accelerators] == [
        20 * GB - int(0.04 * 24 * GB),
        8 * GB - DRIVER_LEAST,
    ]
    capped = room(replace(machine, cap=10 * GB))
    assert 0.99 * 10 * GB < sum(accelerator.room for accelerator in capped.accelerators) <= 10 * GB
    assert capped.accelerators[0].room > capped.accelerators[1].room
    assert (capped.host, capped.capped) == (whole.host, False)


def test_shared_device_memory_is_bounded_by_ram() -> None:
    machine = replace(BARE, available=8 * GB, devices=(INTEGRATED,), used=("Vulkan1",))
    assert room(machine).accelerators[0].room == room(machine).host == offer(machine)


@given(
    st.integers(0, 64 * GB),
    st.none() | st.integers(0, 64 * GB),
    st.lists(st.tuples(st.integers(0, 80 * GB), st.integers(0, 80 * GB), st.booleans()), max_size=4),
)
def test_offer_is_never_above_the_cap(available: int, cap: int | None, found: list[tuple[int, int, bool]]) -> None:
    devices = [Device(f"G{n}", total=max(pair), free=min(pair), shared=own) for n, (*pair, own) in enumerate(found)]
    machine = MachineMemory(64 * GB, available, False, tuple(devices), select(devices, ()), cap, known=True)
    assert 0 <= offer(machine) <= (64 * 5 * GB if cap is None else cap)
