"""The slots of a llama-server process: what they hold, and the files that keep it (`--slot-save-path`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from meshllm.engine.processes import unix_http

# The engine answers between two batches.
LIST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SlotState:
    """A slot. `task`: the last task it had (None: none yet); `tokens`: of the prompt and answer that it holds."""

    number: int
    busy: bool
    task: int | None
    tokens: int


async def list_slots(socket: str) -> list[SlotState]:
    """The slots of the engine at `socket`. Raises as `unix_http.get` does, and ValueError for any other reply."""
    status, body = await unix_http.get(socket, "/slots", deadline=LIST_SECONDS)
    found = json.loads(body)
    if status != 200 or not isinstance(found, list):
        raise ValueError(f"the engine's /slots returned status {status}")
    return [_slot(one) for one in found]


def _slot(one: Any) -> SlotState:
    if not isinstance(one, dict) or not isinstance(one.get("id"), int):
        raise ValueError("the engine's /slots has a slot without a number")
    task, tokens = one.get("id_task"), one.get("n_prompt_tokens")
    return SlotState(
        one["id"],
        one.get("is_processing") is not False,
        task if isinstance(task, int) and task >= 0 else None,
        tokens if isinstance(tokens, int) else 0,
    )


async def save(socket: str, slot: int, name: str, *, deadline: float) -> int:
    """Write what `slot` holds to the file `name` in the engine's folder; returns the tokens.

    Waits while the slot is busy. Raises as `unix_http.post` does, and ValueError if the engine refuses it.
    """
    return await _act(socket, slot, "save", name, "n_saved", deadline)


async def restore(socket: str, slot: int, name: str, *, deadline: float) -> int:
    """Let `slot` hold what the file `name` in the engine's folder keeps; returns the tokens. Raises as `save` does."""
    return await _act(socket, slot, "restore", name, "n_restored", deadline)


async def erase(socket: str, slot: int, *, deadline: float) -> int:
    """Let `slot` hold nothing; returns the tokens that it held. Raises as `save` does."""
    return await _act(socket, slot, "erase", "", "n_erased", deadline)


async def _act(socket: str, slot: int, action: str, name: str, counted: str, deadline: float) -> int:
    body = json.dumps({"filename": name}).encode()
    status, reply = await unix_http.post(socket, f"/slots/{slot}?action={action}", body, deadline=deadline)
    answer = json.loads(reply)
    if status != 200 or not isinstance(answer, dict) or not isinstance(answer.get(counted), int):
        error = answer.get("error") if isinstance(answer, dict) else None
        message = str(error.get("message", ""))[:200] if isinstance(error, dict) else ""
        raise ValueError(message or f"status {status}")
    return int(answer[counted])
