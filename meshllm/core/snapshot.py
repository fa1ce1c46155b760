"""The state of a node as frozen values, for readers.

Times are seconds on the daemon's monotonic clock; sizes are bytes; fractions are 0 to 1, or None if unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from meshllm.core.memory.speculation import PLAIN, Speculation
from meshllm.core.serving.template_traits import ANY_TEMPLATE, TemplateTraits
from meshllm.core.serving.vector_traits import UNKNOWN_VECTORS, VectorTraits
from meshllm.util.progress import Progress

if TYPE_CHECKING:
    from meshllm.core.membership.views import MeshView
    from meshllm.core.split.host import MeasuredModel, SplitState
    from meshllm.core.split.worker import WorkerLeaseState

# Of a base model: the engine writes chats in a format that it was not trained on.
NO_TEMPLATE = (
    "no chat template: it continues texts (/v1/completions), and its answers in chat are poor. For chat and agents use "
    "a model whose name says Instruct, Chat or it."
)


class Purpose(Enum):
    """The kind of a model."""

    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"


class EnginePhase(Enum):
    """The state of the engine (llama.cpp, built here)."""

    UNKNOWN = "unknown"
    PREPARING = "preparing"
    READY = "ready"
    FAILED = "failed"


class FilePhase(Enum):
    """The state of a model's file."""

    ABSENT = "absent"
    FETCHING = "fetching"
    READY = "ready"
    FAILED = "failed"


class ServerPhase(Enum):
    """The state of a model's engine process. NONE: there is no process."""

    NONE = "none"
    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"


class ModelPhase(Enum):
    """The state of a model for users. Derived (`next_step.phase`), never stored."""

    WAITING = "waiting"
    FETCHING = "fetching"
    LOADING = "loading"
    SERVING = "serving"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"
    AVAILABLE = "available"


class ModelOrigin(Enum):
    """Why a node serves a model, and what may be done for it.

    STARTED: the first `--model`; it may be split, and stays. BESIDE: a further `--model`, if it fits beside the others;
    it stays. LOADED: by `mesh-llm load` or `--serve-all`; it may be split, and is unloaded if another model needs the
    memory. MESH: the mesh requested it.
    """

    STARTED = "started"
    BESIDE = "beside"
    LOADED = "loaded"
    MESH = "mesh"


@dataclass(frozen=True, slots=True)
class EngineState:
    """The engine. `reason` and `advice`: the last failure, until the engine is ready. `failures`: failed attempts in a
    row; the next attempt is due at `not_before`."""

    phase: EnginePhase = EnginePhase.UNKNOWN
    progress: Progress | None = None
    reason: str = ""
    advice: str = ""
    version: str = ""
    failures: int = 0
    not_before: float | None = None

    @property
    def broken(self) -> bool:
        """Whether the last attempt failed: models cannot be served until a later one succeeds."""
        return self.failures > 0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts in a model's file. `vision`: the model accepts images. `template`: it has a chat template.

    `vectors`: what an embedding model's vectors bear.
    """

    path: str
    size: int
    architecture: str
    context_length: int
    quantization: str = ""
    digest: str = ""
    purpose: Purpose = Purpose.GENERATE
    vision: bool = False
    template: bool = True
    vectors: VectorTraits = UNKNOWN_VECTORS

    @property
    def warning(self) -> str:
        """What its users must know; "" if there is nothing."""
        return NO_TEMPLATE if self.purpose is Purpose.GENERATE and not self.template else ""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a ready engine process says of itself. `context_length` is what one request may use, in tokens;
    `speculation`: its source of draft tokens; `placement_text`: where its layers are, for users; `template`: what its
    chat template renders. `memory`: bytes that it may come to, with its caches full; `memory_parts`: those beside the
    weights, the context and the buffers, by name. `calls_tools`: it does when it is asked to, by a test or its owner's
    word (None: not tested yet)."""

    endpoint: str
    pid: int
    slots: int
    context_length: int
    memory: int = 0
    speculation: Speculation = PLAIN
    placement_text: str = ""
    template: TemplateTraits = ANY_TEMPLATE
    memory_parts: tuple[tuple[str, int], ...] = ()
    calls_tools: bool | None = None


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model that this node serves or prepares to serve.

    `generation` counts the engine processes started for it; events of an older generation are stale and ignored.
    `failures` counts deaths since the last stable stretch; `restarts` counts all ends of a wanted engine process, and
    `last_failure` is the cause of the last unrequested one (kept while the model serves again). `not_before` is when
    the next start is allowed. `measured` is the memory that the model needs here; `split` the state of its split, if it
    needs one; `force_split`: split the model even if it fits here (`--split`). `origin`: why it is served here.
    `memory_used`: bytes that its engine process takes (0: unknown).

    `unloaded`: its memory was freed, and the next request loads it again; `last_run`: what its engine process said of
    itself before that, until it serves again or fails to. `dropped`: the owner dropped it: it is removed once its
    process has ended. `idle_since`: when its last request ended (None: it processes one, or does not serve). `unknown`:
    only the mesh can know what its name means, and it is not known yet.
    """

    name: str
    wanted: bool = True
    file: FilePhase = FilePhase.ABSENT
    facts: ModelFacts | None = None
    server: ServerPhase = ServerPhase.NONE
    server_facts: ServerFacts | None = None
    generation: int = 0
    progress: Progress | None = None
    serving_since: float | None = None
    failures: int = 0
    restarts: int = 0
    last_failure: str = ""
    not_before: float | None = None
    reason: str = ""
    advice: str = ""
    measuring: bool = False
    measured: MeasuredModel | None = None
    force_split: bool = False
    split: SplitState | None = None
    memory_used: int = 0
    origin: ModelOrigin = ModelOrigin.STARTED
    unloaded: bool = False
    last_run: ServerFacts | None = None
    dropped: bool = False
    idle_since: float | None = None
    unknown: bool = False

    @property
    def reloads(self) -> bool:
        """Whether a request for the model is to wait: it is unloaded, or being loaded again without a failure."""
        return self.wanted and (self.unloaded or self.last_run is not None)


@dataclass(frozen=True, slots=True)
class BackendState:
    """An OpenAI-compatible server of the user, whose models are in the pool while it answers."""

    url: str
    healthy: bool = False
    models: tuple[str, ...] = ()
    reason: str = "not asked yet"
    probing: bool = False
    failures: int = 0
    next_probe: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state at one moment. `version` grows by one with each visible change."""

    version: int = 0
    engine: EngineState = EngineState()
    models: tuple[ModelState, ...] = ()
    backends: tuple[BackendState, ...] = ()
    stopping: bool = False
    # The mesh, where this node is part of one; and the models asked for here that others are to serve.
    mesh: MeshView | None = None
    wants: tuple[str, ...] = ()
    # The lease that this node holds as a worker of a split.
    worker_lease: WorkerLeaseState | None = None
    # Models that the owner dropped, and until when the mesh's request does not bring them back.
    dropped: tuple[tuple[str, float], ...] = ()
    # Models that have been idle for so many seconds are unloaded (None: never).
    idle_unload: float | None = None
    # Models of the disk, none of them in `models`, that this node loads when they are requested.
    available: tuple[str, ...] = ()
    # The models that the catalogue knows, with their bytes: always the same object.
    catalog: Mapping[str, int] = field(default_factory=dict)
    # Whether models call tools, by name, as the owner says: always the same object.
    declared_tools: Mapping[str, bool] = field(default_factory=dict)
    # Why a file on the disk that has the name of a model is of no use, by that name.
    damaged: tuple[tuple[str, str], ...] = ()

    def model(self, name: str) -> ModelState | None:
        """The model with exactly that name on this node."""
        return next((model for model in self.models if model.name == name), None)
