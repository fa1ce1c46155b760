"""Everything that can happen to a node. The daemon's mailbox carries these and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from meshllm.core.types import ModelFacts, Progress, ServerFacts


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class ModelWanted(Event):
    """Somebody asked this node to serve a model."""

    model: str


@dataclass(frozen=True, slots=True)
class BackendAdded(Event):
    """Somebody named an OpenAI-compatible server whose models belong in the pool."""

    url: str


@dataclass(frozen=True, slots=True)
class StopWanted(Event):
    """The daemon shall end: everything stops, in order."""


@dataclass(frozen=True, slots=True)
class TimePassed(Event):
    """A deadline the core named (`next_deadline`) has come."""


@dataclass(frozen=True, slots=True)
class EngineProgress(Event):
    """The engine is being fetched or built."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class EngineReady(Event):
    """The engine is there."""

    version: str


@dataclass(frozen=True, slots=True)
class EngineFailed(Event):
    """The engine cannot be had; `advice` says what to do."""

    reason: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class FileProgress(Event):
    """A model's file is on its way."""

    model: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class FileReady(Event):
    """A model's file is there, verified and read."""

    model: str
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class FileFailed(Event):
    """A model's file cannot be had or is no good. `final`: trying again will not help."""

    model: str
    reason: str
    advice: str = ""
    final: bool = False


@dataclass(frozen=True, slots=True)
class ServerProgress(Event):
    """An engine process is loading its model."""

    model: str
    generation: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class ServerReady(Event):
    """An engine process answers."""

    model: str
    generation: int
    facts: ServerFacts


@dataclass(frozen=True, slots=True)
class ServerGone(Event):
    """An engine process has ended, by itself or because we stopped it, or could not be started at all."""

    model: str
    generation: int
    reason: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class BackendAnswered(Event):
    """A backend listed its models."""

    url: str
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackendSilent(Event):
    """A backend did not answer, or not as an OpenAI-compatible server does."""

    url: str
    reason: str
