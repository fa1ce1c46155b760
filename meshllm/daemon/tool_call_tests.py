"""Whether the models served here call tools: declared by the owner, or found with one request to each engine.

Invariants: a model is asked once per model file, chat template and engine build, also over restarts of the daemon. It
is asked only while no engine of this node has a request, and a request that comes ends the test at once; nothing waits
for it. The answer and the time of a test are bounded, and so are the tests that are ended before they have an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from meshllm.core.snapshot import Purpose
from meshllm.daemon.chat_templates import engine_template
from meshllm.engine.processes import unix_http
from meshllm.models.gguf.purpose import usage
from meshllm.models.library.local_model import LocalModel
from meshllm.tasks import Owner
from meshllm.util.atomic_file import replace_file
from meshllm.util.threads import StopSignal, in_thread
from meshllm.wire.api import strict_json
from meshllm.wire.api.tool_call_test import REQUEST, is_call

log = logging.getLogger(__name__)

CACHE_NAME = "tool-calls.json"
MAX_CACHE_BYTES = 64 << 10
MAX_MODELS = 256
# The engines must have been idle for so long: the request that a model was loaded for comes first.
QUIET_SECONDS = 2.0
# 256 tokens on a slow processor; an answer that takes longer says nothing.
TEST_SECONDS = 180.0
# Tests of one engine process that may be ended by a request, or fail.
MAX_TRIES = 20
# Before a test that failed is repeated.
RETRY_SECONDS = 60.0


class EngineWork(Protocol):
    """Says when the engines of this node have requests."""

    async def until_idle(self) -> None:
        """Return when no engine of this node has a request."""

    async def until_busy(self) -> None:
        """Return when an engine of this node has a request."""


class ToolCallTests:
    """What is known of the models' tool calls, kept in a file of the node's home."""

    def __init__(
        self,
        home: Path,
        work: EngineWork,
        declared: Mapping[str, bool],
        *,
        quiet: float = QUIET_SECONDS,
        within: float = TEST_SECONDS,
        retry: float = RETRY_SECONDS,
    ) -> None:
        """`declared`: by the name of a model, what its owner says. The times are in seconds."""
        self._path = home / CACHE_NAME
        self._work = work
        self._declared = declared
        self._quiet, self._within, self._retry = quiet, within, retry
        self._found: dict[str, bool] | None = None
        self._owner = Owner("tool call tests")
        # One at a time: a test must not slow another one down.
        self._testing = asyncio.Lock()

    async def known(self, name: str, model: LocalModel, engine: Path) -> bool | None:
        """Whether `model`, served as `name` by that `engine`, calls tools; None until it was tested."""
        if usage(model.header).purpose is not Purpose.GENERATE:
            return False
        if (declared := self._declared.get(name)) is not None:
            return declared
        if not model.has_template:
            return False
        if self._found is None:
            self._found = await in_thread(partial(_read, self._path), "tool calls")
        return self._found.get(await in_thread(partial(_key, model, engine), "tool calls"))

    async def test(self, name: str, model: LocalModel, engine: Path, socket: str) -> bool | None:
        """Test `model` with its process at `socket` once this node is idle; None if there is no answer."""
        for _ in range(MAX_TRIES):
            await self._work.until_idle()
            if await self._busy_within(self._quiet):
                continue
            async with self._testing:
                found = await self._ask_unless_busy(name, socket)
            if isinstance(found, bool):
                await self._keep(model, engine, found)
                log.info("%s %s", name, "calls tools" if found else "made no tool call when it was asked for one")
                return found
            if found is not None:
                log.warning("whether %s calls tools could not be tested: %s", name, found)
                await asyncio.sleep(self._retry)
        return None

    async def close(self) -> None:
        """End the tests."""
        await self._owner.close()

    async def _busy_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._work.until_busy()
                return True
        return False

    async def _ask_unless_busy(self, name: str, socket: str) -> bool | str | None:
        """The answer, or why there is none; None if a request came."""
        asking = self._owner.start(_ask(socket, self._within), f"tool call of {name}")
        busy = self._owner.start(self._work.until_busy(), f"requests during the tool call of {name}")
        try:
            await asyncio.wait((asking, busy), return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        finally:
            asking.cancel()
            busy.cancel()
            await asyncio.wait((asking, busy))

    async def _keep(self, model: LocalModel, engine: Path, found: bool) -> None:
        key = await in_thread(partial(_key, model, engine), "tool calls")
        kept = {name: value for name, value in (self._found or {}).items() if name != key}
        self._found = dict([*kept.items(), (key, found)][-MAX_MODELS:])
        await in_thread(partial(_write, self._path, self._found), "tool calls")


async def _ask(socket: str, within: float) -> bool | str:
    """Whether the engine at `socket` answers with a call, or why it does not answer."""
    body = json.dumps(REQUEST).encode()
    try:
        status, reply = await unix_http.post(socket, "/v1/chat/completions", body, deadline=within)
        if status != 200:
            # The engine's parser of calls may give up on what the model wrote; other errors say nothing of the model.
            return False if b"failed to parse" in reply.lower() else f"status {status}"
        found = is_call(reply)
    except TimeoutError:
        return f"no answer within {within:.0f} s"
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return "an answer that is none" if found is None else found


def _key(model: LocalModel, engine: Path, stop: StopSignal) -> str:
    """Of the model's file, its template as the engine gets it, the engine's build, and the request."""
    del stop
    if model.digest:
        file = str(model.digest)
    else:
        facts = model.path.stat()
        file = f"{model.path} {facts.st_size} {facts.st_mtime_ns}"
    parts = (file, str(engine), engine_template(model), json.dumps(REQUEST, sort_keys=True))
    return sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()


def _read(path: Path, stop: StopSignal) -> dict[str, bool]:
    """The cache; empty if it is missing or damaged."""
    del stop
    try:
        with path.open("rb") as file:
            found = strict_json.loads_object(file.read(MAX_CACHE_BYTES)) or {}
    except OSError:
        return {}
    return {key: value for key, value in found.items() if isinstance(value, bool)}


def _write(path: Path, found: dict[str, bool], stop: StopSignal) -> None:
    del stop
    with contextlib.suppress(OSError):  # it is only a cache
        replace_file(path, json.dumps(found, indent=1), mode=0o600)
