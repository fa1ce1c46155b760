"""Facts about this machine as the core keeps them: quantised with hysteresis before they enter the node record.

Free memory changes all the time. Each change of the record is signed and sent through the whole mesh, so only changes
that matter to a planner are published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

# A published amount is a multiple of a power of two, at most this part of it: below 1.6 % is lost by rounding down.
STEP_PART = 64
# It rises only when this many steps more are free; it falls at once. The last fall rounded down by less than a step, so
# a swing must span more than two steps (at least 1.56 %) to be published again and again.
RISE_STEPS = 3
# A change of used memory by less than this part is not worth a new status for every reader.
SHOWN_CHANGE = 0.01


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What this node publishes about its machine, in bytes. `memory`: offered for models; `devices`: the same for each
    accelerator, if there are several; `machine_memory`, `download_room`: as in `NodeRecord`; `disk_free`: for model
    files. `models`: names of the models on the disk; `model_sizes`: theirs, in their order; `aliases`: further names,
    each with the name of the same file in `models`; `damaged`:
    names of models whose files on the disk are of no use, with the reasons and whether
    other nodes may hear of them."""

    memory: int = 0
    devices: tuple[int, ...] = ()
    disk_free: int = 0
    models: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    machine_memory: int = 0
    model_sizes: tuple[int, ...] = ()
    download_room: int = 0
    damaged: tuple[tuple[str, str, bool], ...] = ()

    def with_memory(self, memory: int, devices: Sequence[int]) -> MachineFacts:
        """The facts after `memory` and `devices` were observed."""
        old = self.devices if len(self.devices) == len(devices) else (0,) * len(devices)
        found = tuple(published(was, now) for was, now in zip(old, devices, strict=True))
        return replace(self, memory=sum(found) if found else published(self.memory, memory), devices=found)

    def with_machine_memory(self, machine_memory: int) -> MachineFacts:
        """The facts after `machine_memory` was observed."""
        return replace(self, machine_memory=published(self.machine_memory, machine_memory))

    def with_disk_free(self, disk_free: int) -> MachineFacts:
        """The facts after `disk_free` was observed."""
        return replace(self, disk_free=published(self.disk_free, disk_free))

    def with_download_room(self, room: int) -> MachineFacts:
        """The facts after `download_room` was observed."""
        return replace(self, download_room=published(self.download_room, room))


def published(previous: int, observed: int) -> int:
    """The amount to publish after `previous` was published and `observed` is free: never more than `observed`."""
    step = _step(observed)
    if previous <= observed < previous + RISE_STEPS * step:
        return previous
    return observed // step * step


def _step(amount: int) -> int:
    return 1 << max(0, (amount // STEP_PART).bit_length() - 1)
