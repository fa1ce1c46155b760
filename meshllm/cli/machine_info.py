"""Memory and accelerators of this machine, without starting an engine: for lists of models that fit.

The running node is asked first; without one, the system and the drivers' tools. Never an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshllm.core.memory.devices import Device, MachineMemory

# Deadline of a driver's tool (seconds).
TOOL_SECONDS = 1.5


def machine() -> MachineMemory:
    """Free memory now, plus what the running node would free if it served another model."""
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
    """The status of the running node of this home; None if none answers."""
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
    """Devices of a running node, those it uses, and its memory limit."""
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
    """GPUs whose memory the drivers' tools report, without those that share system memory."""
    import asyncio

    from meshllm.core.memory.devices import Device
    from meshllm.machine import accelerators

    return tuple(
        Device(f"{found.kind}{number}", found.name, total=found.memory_total, free=found.memory_free)
        for number, found in enumerate(asyncio.run(accelerators.find(TOOL_SECONDS)))
        if found.memory_total and not found.unified
    )
