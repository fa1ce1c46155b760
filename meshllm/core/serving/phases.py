"""The transition tables of what this node serves: the engine, a model's file, a model's engine process."""

from __future__ import annotations

from meshllm.core.snapshot import EnginePhase, FilePhase, ServerPhase

_E, _F, _S = EnginePhase, FilePhase, ServerPhase

ENGINE_TRANSITIONS: dict[tuple[EnginePhase, EnginePhase], str] = {
    (_E.UNKNOWN, _E.PREPARING): "a model needs the engine",
    (_E.PREPARING, _E.READY): "found or built",
    (_E.PREPARING, _E.FAILED): "cannot be built",
    (_E.FAILED, _E.PREPARING): "the backoff is over",
}

FILE_TRANSITIONS: dict[tuple[FilePhase, FilePhase], str] = {
    (_F.ABSENT, _F.FETCHING): "the model is requested",
    (_F.FETCHING, _F.READY): "verified",
    (_F.FETCHING, _F.ABSENT): "the download failed and is retried",
    (_F.FETCHING, _F.FAILED): "a retry cannot help",
}

SERVER_TRANSITIONS: dict[tuple[ServerPhase, ServerPhase], str] = {
    (_S.NONE, _S.STARTING): "engine, file and memory are ready",
    (_S.STARTING, _S.SERVING): "llama-server answers",
    (_S.STARTING, _S.STOPPING): "no longer wanted, or a worker was lost",
    (_S.SERVING, _S.STOPPING): "no longer wanted, unloaded, or a worker was lost",
    (_S.STARTING, _S.NONE): "it ended",
    (_S.SERVING, _S.NONE): "it ended",
    (_S.STOPPING, _S.NONE): "it ended",
}
