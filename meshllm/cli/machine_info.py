"""What this machine has for models, asked without starting an engine: for lists that say what would fit.

Law: quick, and never an error. A node that runs here knows best; else the computer's memory is asked of the system and
its accelerators of their drivers' tools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshllm.core.memory.devices import Device, MachineMemory

# A driver's tool that takes longer is not waited for: a list is looked at, not lived by.
TOOL_SECONDS = 1.5


def machine() -> MachineMemory:
    """What there is now, and what a node that runs here would give back if it served another model instead."""
    from meshllm.core.memory.devices import MachineMemory, select
    from meshllm.machine import resources

    memory, told = resources.memory(), running()
    if told is not None:
        try:
            devices, used, cap = _of_node(told)
            return MachineMemory(memory.total, memory.available, memory.limited, devices, used, cap, known=True)
        except (KeyError, TypeError, ValueError):
            pass  # it has not asked its engine yet, or is of another version
    devices = _of_tools()
    return MachineMemory(memory.total, memory.available, memory.limited, devices, select(devices, ()))


def running() -> dict[str, Any] | None:
    """The status of the node of this home; None where none answers."""
    import orjson

    from meshllm import paths
    from meshllm.cli.console_client import ask
    from meshllm.daemon import pidfile
    from meshllm.errors import MeshError

    try:
        found = pidfile.read(paths.home())
        if found is None:
            return None
        status, text = ask(found.console, "GET", "/api/status")
        told = orjson.loads(text) if status == 200 else None
    except (MeshError, OSError, ValueError):
        return None
    sound = isinstance(told, dict) and isinstance(told.get("machine"), dict) and isinstance(told.get("models"), list)
    return told if sound else None


def _of_node(told: dict[str, Any]) -> tuple[tuple[Device, ...], tuple[str, ...], int | None]:
    """The devices that the engine of a running node sees, those it uses, and the most it may lend."""
    from meshllm.core.memory.devices import Device

    devices = told["machine"]["devices"]
    held = sum(model["engine"]["memory"] for model in told["models"] if model.get("engine"))
    own = [device for device in devices if not device["shared"] and device["used"]]
    whole = sum(device["memory_total"] for device in own) or 1
    found = []
    for device in devices:
        total, free = int(device["memory_total"]), int(device["memory_free"])
        back = held * total // whole if device in own else 0
        free = min(total, free + back) if total else free
        found.append(Device(str(device["name"]), total=total, free=free, shared=bool(device["shared"])))
    cap = told["machine"]["cap"]
    return tuple(found), tuple(str(it["name"]) for it in devices if it["used"]), None if cap is None else int(cap)


def _of_tools() -> tuple[Device, ...]:
    """The graphics processors whose memory their tools tell; one that shares the computer's counts as that."""
    import asyncio

    from meshllm.core.memory.devices import Device
    from meshllm.machine import accelerators

    return tuple(
        Device(f"{found.kind}{number}", found.name, total=found.memory_total, free=found.memory_free)
        for number, found in enumerate(asyncio.run(accelerators.find(TOOL_SECONDS)))
        if found.memory_total and not found.unified
    )
