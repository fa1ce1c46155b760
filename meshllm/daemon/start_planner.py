"""Plans how a model is started on this machine: where its layers go, with how much context, for how many requests.

The memory that a model needs is the engine's own figure plus an estimate of what that leaves out. A requested context
is kept. Whatever is reduced to save memory is logged; a model that cannot fit is refused before the start.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from meshllm.core.memory import layer_placement
from meshllm.core.memory.context_size import ContextSize, candidates
from meshllm.core.memory.devices import Device, MachineMemory, offer, room, select
from meshllm.core.memory.estimate import MICRO_BATCH, checkpoint_bytes, process_bytes, score_bytes
from meshllm.core.memory.fit_text import WantedSize, describe, losses, shortage
from meshllm.core.memory.layer_placement import (
    AcceleratorBudget,
    FitVerdict,
    MemoryBudget,
    PlacementNeed,
    PlacementTrial,
)
from meshllm.core.memory.model_shape import ModelShape
from meshllm.core.memory.speculation import PLAIN, TABLE_BYTES, DraftSource, Speculation
from meshllm.core.records import short
from meshllm.core.snapshot import Purpose
from meshllm.core.split.lease import Lease
from meshllm.core.split.planner import WorkerShare
from meshllm.daemon.memory_ledger import NOTHING_PLANNED, MemoryLedger, PlannedMemory
from meshllm.engine.build.installed import Engine
from meshllm.engine.probe import bindings
from meshllm.engine.probe.bindings import EngineDevice
from meshllm.engine.processes.llama_server import PROCESSOR_BATCH, Projector
from meshllm.engine.sandbox.policy import NO_SANDBOX, Sandboxing, memory_limit
from meshllm.errors import InvalidModelFile, NotEnoughSpace
from meshllm.machine import device_memory, resources
from meshllm.models.gguf.projector import projector_bytes
from meshllm.models.gguf.purpose import ModelUsage
from meshllm.models.library.local_model import LocalModel
from meshllm.util.format import gigabytes

log = logging.getLogger(__name__)

# The engine's prompt cache keeps computed prompts for later requests: a tenth of the free memory, or of what is left of
# --max-vram, at most 8 GiB. More would keep further models out: an engine does not give it back.
PROMPT_CACHE_SHARE = 0.1
PROMPT_CACHE_MOST_MIB = 8192
# Checkpoints of sliding-window and recurrent layers: by default 32 for each slot, 50 GB for Gemma 3 27B. Here a quarter
# of the memory that is left, but at least one.
CHECKPOINTS_SHARE = 0.25
CHECKPOINTS_MOST = 32


@dataclass(frozen=True, slots=True)
class StartPlan:
    """How to start the engine for a model. `memory`: bytes it may come to, with its caches full; `memory_parts`: those
    beside weights, context and buffers, by name. `placement_text`: the placement, for users.

    `micro_batch`: tokens that the engine must compute in one batch (None: its default). `devices`, `layers`,
    `experts_aside`, `checkpoints` and `projector` are those of `llama_server.ServerPlan`. `speculation`: what was
    requested, or less. `draft_device`: the device of the draft model. `disk_paging`: the model does not fit in memory
    and the engine reads weights from the disk. `memory_limit`: the most private memory the process may take. `planned`:
    where the memory is, with the caches full.
    """

    size: ContextSize
    memory: int
    micro_batch: int | None
    prompt_cache_mib: int
    placement_text: str = ""
    devices: tuple[str, ...] | None = None
    layers: tuple[int, ...] = ()
    experts_aside: int = 0
    checkpoints: int | None = None
    speculation: Speculation = PLAIN
    draft_device: str | None = None
    disk_paging: bool = False
    projector: Projector | None = None
    memory_limit: int | None = None
    memory_parts: tuple[tuple[str, int], ...] = ()
    planned: PlannedMemory = NOTHING_PLANNED


@dataclass(frozen=True, slots=True)
class KeptMemory:
    """Memory that a plan keeps free for a further model, an estimate in bytes: all that model could use (`full`), or
    the least in which it fits."""

    name: str
    full: int
    least: int


class StartPlanner:
    """Plans starts. `context`: --ctx-size (None: not set). `cap`: --max-vram in bytes. `wanted`: --device names (empty:
    the engine's choice)."""

    def __init__(
        self,
        context: int | None = None,
        cap: int | None = None,
        wanted: tuple[str, ...] = (),
        threads: int | None = None,
        sandboxing: Sandboxing = NO_SANDBOX,
    ) -> None:
        """`threads`: CPU threads for each engine process (None: all that this process may use). `sandboxing`: for the
        children that read the model's file."""
        self.sandboxing = sandboxing
        self.threads = threads
        self._context = context
        self._cap = cap
        self._wanted = wanted
        self._found: tuple[EngineDevice, ...] = ()
        self._devices: tuple[Device, ...] | None = None
        self._used: tuple[str, ...] = ()
        self.ledger = MemoryLedger()

    @property
    def context(self) -> int | None:
        """The requested context length in tokens, if any."""
        return self._context

    async def refresh_devices(self, engine: Engine) -> None:
        """Ask `engine` for its devices: a child process that loads the drivers. Raises UsageError if a device that was
        named does not exist, and EngineUnavailable."""
        self._set_devices(await bindings.devices(engine))

    async def refresh_free_memory(self) -> None:
        """Read the free memory of the known devices, without the engine. Unreadable devices keep their value."""
        if self._devices:
            free = await device_memory.free_memory()
            self._set_devices(bindings.with_free_memory(self._found, free))

    def _set_devices(self, found: tuple[EngineDevice, ...]) -> None:
        devices = tuple(
            Device(it.name, it.description, it.backend, it.total, it.free, it.shared, it.id)
            for it in found
            if it.accelerator
        )
        self._used = select(devices, self._wanted)
        self._found, self._devices = found, devices

    def machine(self, held: int = 0) -> MachineMemory:
        """The machine's memory now. `held`: bytes in use that count as available."""
        memory = resources.memory()
        return MachineMemory(
            memory.total,
            min(memory.total, memory.available + held),
            memory.limited,
            self._devices or (),
            self._used,
            self._cap,
            known=self._devices is not None,
        )

    def left(self, held: int | None = None) -> MachineMemory:
        """The machine's memory now, without what the engine processes of this node were planned with. `held`: bytes of
        RAM that leases hold, for what is left to the next lease, which gets them; None: they are in use."""
        return self.ledger.left(self.machine(held or 0), leases=held is None)

    def free_memory(self, held: int | None = None) -> int:
        """Bytes that this machine has for further models now; `held` as in `left`."""
        return offer(self.left(held))

    def machine_memory(self, held: int | None = None) -> int:
        """Bytes of the machine's RAM for models that all nodes on this machine have together, whatever --max-vram says;
        0 if this node offers accelerators with memory of their own."""
        machine = replace(self.left(held), cap=None)
        own = [device for device in machine.in_use if not device.shared]
        return 0 if own else offer(machine)

    def threads_of(self, sharers: int) -> int | None:
        """CPU threads of an engine process, if `sharers` nodes of a split share this machine's processor (None: the
        engine's choice). Threads that wait for each other at every step are slow if there are more than processors."""
        if self.threads is not None or sharers <= 1:
            return self.threads
        return max(1, resources.processors().usable // sharers)

    def device_memory(self, held: int | None = None) -> tuple[int, ...]:
        """The same for each accelerator, if there are several."""
        accelerators = room(self.left(held)).accelerators
        return tuple(accelerator.room for accelerator in accelerators) if len(accelerators) > 1 else ()

    async def plan(
        self,
        engine: Engine,
        model: LocalModel,
        how: ModelUsage,
        *,
        speculation: Speculation = PLAIN,
        draft: LocalModel | None = None,
        beside: Sequence[KeptMemory] = (),
    ) -> StartPlan:
        """How to start `model` for the use `how`, with `draft` if that costs the model nothing. Memory is kept for the
        models `beside` it: all they could use if the model loses nothing by it, else the least for as many as possible.

        Raises NotEnoughSpace if the model does not fit, and as `bindings.memory_need` does.
        """
        if self._devices != ():
            await self.refresh_devices(engine)  # each loaded model changes the free memory
        machine = self.left()
        draft_tokens = speculation.max_draft_tokens
        task = _Task(engine, model, how, room(machine), self.sandboxing, bool(machine.devices), draft_tokens)
        task = _with_projector(task)
        sizes = task.sizes(self._context)
        tasks = _keeping(task, beside)
        if draft is not None and speculation.source is DraftSource.DRAFT:
            why = f"{draft.name} takes memory that {model.name} needs"
            try:
                both = await self._with_draft(tasks[len(tasks) // 2], sizes, draft, speculation)
                if both is not None:
                    return both
            except InvalidModelFile as error:  # of the draft model; one of the model is raised below
                why = error.message
            log.warning("%s is served without a draft model: %s", model.name, why)
            speculation = Speculation(DraftSource.NGRAMS, reason=why)
        wish = self._wish(model, sizes)
        for number, task in enumerate(tasks):
            found = await task.search(sizes)
            fits = found.verdict is FitVerdict.FITS
            if fits and (number or not losses(found, wish, task.shape, task.room)):
                break
        if found.verdict is FitVerdict.TOO_BIG:
            reason, advice = shortage(found, wish, task.room)
            raise NotEnoughSpace(f"{model.name} does not fit here: {reason}.", advice=advice)
        if beside and task.room != tasks[-1].room:
            log.info("%s: memory is kept for %s", model.name, ", ".join(kept.name for kept in beside))
        return self._fit(task, sizes, found, speculation, draft_taken=(0, 0), draft_device=None)

    async def _with_draft(
        self, task: _Task, sizes: tuple[ContextSize, ...], draft: LocalModel, speculation: Speculation
    ) -> StartPlan | None:
        """The plan with the draft model in memory; None if the model would be reduced for it."""
        device = _roomiest(task.room.accelerators)
        taken = await _draft_need(task, draft, sizes[0], device)
        smaller = replace(task, room=_less(task.room, taken, device))
        found = await smaller.search(sizes[:1])
        if found.verdict is not FitVerdict.FITS or losses(
            found, self._wish(task.model, sizes), task.shape, smaller.room
        ):
            return None
        return self._fit(smaller, sizes, found, speculation, taken, device)

    def _fit(
        self,
        task: _Task,
        sizes: tuple[ContextSize, ...],
        found: layer_placement.LayerPlacement,
        speculation: Speculation,
        draft_taken: tuple[int, int],
        draft_device: str | None,
    ) -> StartPlan:
        model, trial, given = task.model, found.trial, task.room
        wish = self._wish(model, sizes)
        if self._context and 0 < model.context_length < self._context:
            log.warning(
                "%s supports %d tokens of context: --ctx-size is reduced to that", model.name, model.context_length
            )
        if lost := losses(found, wish, task.shape, given):
            log.warning("%s: %s", model.name, lost)
        spare = max(0, given.host - found.need.host - layer_placement.shared(found.need, given))
        cache, checkpoints = 0, None
        if task.how.purpose is Purpose.GENERATE:
            checkpoints = _checkpoints(checkpoint_bytes(task.shape), trial.size, spare)
            cache = _prompt_cache_mib(spare, given.host if given.capped else resources.memory().available)
        states = checkpoint_bytes(task.shape) * trial.size.slots * (checkpoints or 0)
        parts = _parts(cache << 20, states, sum(draft_taken), task.beside)
        memory = found.need.host + sum(found.need.accelerators) + sum(size for _, size in parts)
        device = None if task.projector is None else task.projector.device
        on_devices = {
            it.name: taken
            + (draft_taken[1] if it.name == draft_device else 0)
            + (task.beside if it.name == device else 0)
            for it, taken in zip(given.accelerators, found.need.accelerators, strict=True)
        }
        kept = states + (cache << 20)
        host = found.need.host + draft_taken[0] + (task.beside if device is None else 0) + kept
        return StartPlan(
            size=trial.size,
            memory=memory,
            micro_batch=task.asked_micro_batch(trial.size),
            prompt_cache_mib=cache,
            placement_text=describe(found, wish, task.shape, given)
            + _vision_text(task.projector)
            + _caches_text((cache << 20) + states),
            devices=tuple(task.names(trial)) if task.chosen else None,
            layers=tuple(count for count in trial.layers if count),
            experts_aside=trial.experts_aside,
            checkpoints=checkpoints,
            speculation=speculation,
            draft_device=draft_device,
            disk_paging=found.verdict is FitVerdict.PAGES,
            projector=task.projector,
            memory_limit=memory_limit(memory - states + int(spare * CHECKPOINTS_SHARE)),
            memory_parts=parts,
            planned=PlannedMemory(host, tuple((name, taken) for name, taken in on_devices.items() if taken)),
        )

    def plan_split(
        self,
        model: LocalModel,
        how: ModelUsage,
        lease: Lease,
        size: ContextSize,
        speculation: Speculation,
        draft: LocalModel | None,
        names: Sequence[str] = (),
    ) -> StartPlan:
        """How the host of `lease` starts the engine: its own layers on its devices, the others on its workers, whose
        `names` users read.

        The host runs the image encoder, which its share includes, and the draft model if there is memory left. Raises
        InvalidModelFile if the encoder's file cannot be read.
        """
        own, *others = lease.shares
        given = room(self.left())
        here = _spread(own.layers, [accelerator.room for accelerator in given.accelerators])
        used = [accelerator.name for accelerator, count in zip(given.accelerators, here, strict=True) if count]
        there = [count for share in others for count in share.runs]
        layers = [count for count in here if count] + there
        layers[-1] += 1  # the engine counts the output as one of the last layers, and keeps it on the host
        if draft is not None and own.memory + draft.size * 3 // 2 > self.free_memory():
            speculation = Speculation(DraftSource.NGRAMS, reason=f"{draft.name} does not fit beside this node's layers")
        labels = [name or short(node) for name, node in zip(names or [""] * len(others), lease.members, strict=True)]
        pairs = zip(labels, others, strict=True)
        placement = ", ".join(f"{'+'.join(map(str, share.runs))} on {label}" for label, share in pairs)
        projector = None if model.projector is None else Projector(model.projector, device=None)
        drafted = draft is not None and speculation.source is DraftSource.DRAFT
        parts = _parts(0, 0, draft.size * 3 // 2 if draft is not None and drafted else 0, 0)
        return StartPlan(
            size=size,
            memory=own.memory + sum(size for _, size in parts),
            memory_parts=parts,
            micro_batch=size.context_length if how.at_once else None,
            prompt_cache_mib=0,  # it would transfer the workers' state of whole prompts
            placement_text=f"split by layers: {own.layers} of {model.header.layers} here, {placement}"
            + _vision_text(projector),
            devices=(*used, *(f"RPC{number}" for number in range(len(there)))),
            layers=tuple(layers),
            checkpoints=0 if checkpoint_bytes(model.header.shape) else None,
            speculation=speculation,
            draft_device=given.accelerators[0].name if given.accelerators else "none",
            projector=projector,
            memory_limit=memory_limit(own.memory + (draft.size * 2 if draft is not None else 0)),
            planned=_planned_here(own, dict(zip(used, [count for count in here if count], strict=True))),
        )

    def worker_devices(self, share: WorkerShare) -> tuple[str, ...]:
        """The accelerators for the layers of `share`, in their order (empty: the CPU).

        Raises NotEnoughSpace if their number is not the planned one.
        """
        accelerators = room(self.left()).accelerators
        if not share.devices:  # the host knows of at most one: use the one with most memory
            best = _roomiest(accelerators)
            return () if best is None else (best,)
        if len(share.devices) != len(accelerators):
            raise NotEnoughSpace(
                f"The layers were planned for {len(share.devices)} accelerators; this node has {len(accelerators)}.",
                advice="The host plans again automatically.",
            )
        pairs = zip(accelerators, share.devices, strict=True)
        return tuple(accelerator.name for accelerator, layers in pairs if layers)

    def worker_memory(self, share: WorkerShare, devices: Sequence[str]) -> PlannedMemory:
        """Where the memory of `share` is on the accelerators `devices`, as `worker_devices` named them."""
        layers = [count for count in share.devices if count] or [share.layers]
        return _planned_here(share, dict(zip(devices, layers, strict=False)))

    def _wish(self, model: LocalModel, sizes: tuple[ContextSize, ...]) -> WantedSize:
        machine = self.left()
        capped = self._cap is not None and room(machine) != room(replace(machine, cap=None))
        return WantedSize(sizes[0], model.context_length, asked=self._context is not None, capped=capped)


@dataclass(frozen=True, slots=True)
class _Task:
    """A model to place into `room`. `chosen`: there are devices, so the engine must be told which to use, even if none.
    `draft_tokens`: of each request, which have logits, too. `projector`: the image encoder; its `beside` bytes are
    already taken out of `room`."""

    engine: Engine
    model: LocalModel
    how: ModelUsage
    room: MemoryBudget
    sandboxing: Sandboxing = NO_SANDBOX
    chosen: bool = False
    draft_tokens: int = 0
    projector: Projector | None = None
    beside: int = 0

    @property
    def shape(self) -> ModelShape:
        return self.model.header.shape

    def sizes(self, context: int | None) -> tuple[ContextSize, ...]:
        # Embedding models hardly ever keep a context cache.
        return candidates(self.model.context_length, context, self.how.purpose, slots_are_free=self.how.at_once)

    def asked_micro_batch(self, size: ContextSize) -> int | None:
        """Tokens that the engine must compute in one batch; None: its default."""
        return size.context_length if self.how.at_once else None

    def micro_batch(self, size: ContextSize) -> int:
        return self.asked_micro_batch(size) or MICRO_BATCH

    def computed_at_once(self, trial: PlacementTrial) -> int:
        """Tokens of a prompt that the engine computes at once if it is started with `trial`."""
        size = self.micro_batch(trial.size)
        chat = self.how.purpose is Purpose.GENERATE and not self.how.at_once
        return min(size, PROCESSOR_BATCH) if chat and self.projector is None and not self.names(trial) else size

    def names(self, trial: PlacementTrial) -> list[str]:
        """The accelerators that `trial` puts layers on."""
        pairs = zip(trial.layers, self.room.accelerators, strict=False)
        return [accelerator.name for count, accelerator in pairs if count]

    async def search(self, sizes: tuple[ContextSize, ...]) -> layer_placement.LayerPlacement:
        """Find the placement, by asking the engine for the memory of each trial."""
        search = layer_placement.choose(self.shape, sizes, self.room, micro_batch=self.micro_batch(sizes[0]))
        trial = next(search)
        while True:
            need = await self.need(trial)
            try:
                trial = search.send(need)
            except StopIteration as end:
                found: layer_placement.LayerPlacement = end.value
                return found

    async def need(self, trial: PlacementTrial) -> PlacementNeed:
        """The memory of `trial`, with what the engine does not count: logits and the process itself."""
        size, names = trial.size, self.names(trial)
        embeds, vocabulary = self.how.purpose is not Purpose.GENERATE, self.model.header.vocabulary_size
        told = await bindings.memory_need(
            self.engine,
            self.model.path,
            context_size=size.context_length * size.slots,
            parallel=size.slots,
            gpu_layers=sum(trial.layers),
            devices=names if self.chosen else None,
            split=[count for count in trial.layers if count],
            experts_aside=trial.experts_aside,
            micro_batch=self.computed_at_once(trial),
            embeddings=embeds,
            pooling=self.how.pooling,
            draft_tokens=self.draft_tokens,
            sandboxing=self.sandboxing,
        )
        by_device = told.by_device()
        scored = size.slots * (1 + self.draft_tokens)
        beside = score_bytes(vocabulary, scored, self.micro_batch(size), embeds=embeds) + process_bytes(vocabulary)
        beside += TABLE_BYTES if self.draft_tokens else 0
        return PlacementNeed(
            by_device.get("CPU", 0) + beside,
            told.mapped,
            tuple(by_device.get(accelerator.name, 0) for accelerator in self.room.accelerators),
        )


def _with_projector(task: _Task) -> _Task:
    """`task` with the model's image encoder on the device with most memory. Raises InvalidModelFile."""
    path = task.model.projector
    if path is None:
        return task
    device = _roomiest(task.room.accelerators)
    taken = projector_bytes(path)
    here_and_there = (taken, 0) if device is None else (0, taken)
    return replace(task, room=_less(task.room, here_and_there, device), projector=Projector(path, device), beside=taken)


def _parts(cache: int, states: int, draft: int, projector: int) -> tuple[tuple[str, int], ...]:
    """The parts of an engine's memory that have a size, by name."""
    named = (("prompt cache", cache), ("checkpoints", states), ("draft model", draft), ("image encoder", projector))
    return tuple((name, size) for name, size in named if size)


def _caches_text(grows: int) -> str:
    """The text about memory that fills with use, for users; "" if none does."""
    return f"; grows by up to {gigabytes(grows)} of prompt cache" if grows else ""


def _vision_text(projector: Projector | None) -> str:
    """The text about the image encoder, for users; "" without one."""
    if projector is None:
        return ""
    where = f" on {projector.device}" if projector.device is not None else ""
    return f"; vision ({gigabytes(projector_bytes(projector.path))} at most{where})"


def _roomiest(accelerators: Sequence[AcceleratorBudget]) -> str | None:
    """The accelerator with most memory; None without accelerators."""
    best = max(accelerators, key=lambda accelerator: accelerator.room, default=None)
    return None if best is None else best.name


async def _draft_need(task: _Task, draft: LocalModel, size: ContextSize, device: str | None) -> tuple[int, int]:
    """Bytes of RAM, and of the accelerator `device`, that the draft model needs."""
    told = await bindings.memory_need(
        task.engine,
        draft.path,
        context_size=size.context_length * size.slots,
        parallel=size.slots,
        devices=([] if device is None else [device]) if task.chosen else None,
        sandboxing=task.sandboxing,
    )
    by_device = told.by_device()
    scores = score_bytes(draft.header.vocabulary_size, size.slots, MICRO_BATCH, embeds=False)
    return by_device.get("CPU", 0) + scores, 0 if device is None else by_device.get(device, 0)


def _spread(count: int, rooms: Sequence[int]) -> list[int]:
    """`count` layers on accelerators, in proportion to their memory; the last ones get the rounding."""
    found, left, room_left = [], count, sum(rooms)
    for room_here in rooms:
        taken = left if room_left <= room_here else left * room_here // room_left
        found.append(taken)
        left, room_left = left - taken, room_left - room_here
    return found


def _less(given: MemoryBudget, taken: tuple[int, int], device: str | None) -> MemoryBudget:
    """`given` without the bytes in `taken` (RAM, `device`)."""
    here, there = taken
    own = sum(there for it in given.accelerators if it.name == device and it.shared)
    return replace(
        given,
        host=max(0, given.host - here - own),
        accelerators=tuple(
            replace(it, room=max(0, it.room - there)) if it.name == device else it for it in given.accelerators
        ),
    )


def _keeping(task: _Task, beside: Sequence[KeptMemory]) -> list[_Task]:
    """`task` with memory kept for the models `beside` it, most first: for all, for fewer, and at last for none."""
    counts = (len(beside), len(beside) // 2, 1)
    least = [sum(it.least for it in beside[:count]) for count in counts]
    kept = dict.fromkeys((sum(it.full for it in beside), *least, 0))
    return [replace(task, room=_without(task.room, size)) for size in kept]


def _without(given: MemoryBudget, size: int) -> MemoryBudget:
    """`given` without `size` bytes: of the accelerators, in proportion to their memory, or of the RAM."""
    whole = sum(it.room for it in given.accelerators)
    if not whole:
        return replace(given, host=max(0, given.host - size))
    part = min(size, whole)
    shared = sum(it.room for it in given.accelerators if it.shared)
    return replace(
        given,
        host=max(0, given.host - part * shared // whole),
        accelerators=tuple(replace(it, room=it.room - part * it.room // whole) for it in given.accelerators),
    )


def _planned_here(own: WorkerShare, layers: Mapping[str, int]) -> PlannedMemory:
    """The memory of this node's share, with so many `layers` on each accelerator."""
    whole = sum(layers.values())
    if not whole:
        return PlannedMemory(own.memory)
    return PlannedMemory(0, tuple((name, own.memory * count // whole) for name, count in layers.items()))


def _checkpoints(each: int, size: ContextSize, spare: int) -> int | None:
    """The number of checkpoints of each slot; None for a model without any."""
    if not each:
        return None
    return max(1, min(CHECKPOINTS_MOST, int(spare * CHECKPOINTS_SHARE) // (each * size.slots)))


def _prompt_cache_mib(spare: int, usable: int) -> int:
    most = min(int(usable * PROMPT_CACHE_SHARE), spare // 2)
    return min(PROMPT_CACHE_MOST_MIB, most >> 20)
