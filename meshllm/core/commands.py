"""Everything the core may ask for. The daemon carries each out and answers with events; nothing else acts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """Base of all commands."""


@dataclass(frozen=True, slots=True)
class PrepareEngine(Command):
    """Find or build the engine. Answered by EngineProgress..., then EngineReady or EngineFailed."""


@dataclass(frozen=True, slots=True)
class FetchModel(Command):
    """Have the model's file on disk, verified. Answered by FileProgress..., then FileReady or FileFailed."""

    model: str


@dataclass(frozen=True, slots=True)
class StartServer(Command):
    """Start an engine process for the model. Answered by ServerProgress..., ServerReady, and at its end ServerGone."""

    model: str
    generation: int


@dataclass(frozen=True, slots=True)
class StopServer(Command):
    """Stop that engine process, politely first. Answered by ServerGone."""

    model: str
    generation: int


@dataclass(frozen=True, slots=True)
class ProbeBackend(Command):
    """Ask a backend for its models. Answered by BackendAnswered or BackendSilent."""

    url: str


@dataclass(frozen=True, slots=True)
class Finish(Command):
    """Everything has stopped: the daemon may end."""
