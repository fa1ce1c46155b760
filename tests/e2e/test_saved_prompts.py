"""Computed prompts survive a restart of the node, in private files; a damaged file is dropped."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.daemons import MODEL, OPEN_WAIT_SECONDS, Daemon, daemon, wait_for_text

RULES = "You are a coding agent. Read files before you change them. " * 60
SMALL = ("--model", MODEL, "--ctx-size", "2048", "--no-speculation")

pytestmark = pytest.mark.engine


def computed_again(node: Daemon, *texts: str) -> tuple[int, int]:
    """Tokens of the prompt of a conversation's next turn: computed now, and in all."""
    with openai.OpenAI(base_url=node.base_url, api_key="none", max_retries=0, timeout=OPEN_WAIT_SECONDS) as client:
        turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
        messages = [{"role": "system", "content": RULES}, *turns]
        reply = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=2)  # type: ignore[arg-type]
    usage = reply.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    return usage.prompt_tokens - (usage.prompt_tokens_details.cached_tokens or 0), usage.prompt_tokens


def files(home: Path) -> list[Path]:
    """All that is kept of prompts."""
    return [path for path in (home / "prompts").rglob("*") if path.is_file()]


def wait_for_log(node: Daemon, text: str) -> None:
    """Until the log of this run of the node has `text`."""
    wait_for_text(node.process, node.home / "logs" / "daemon.log", text)  # type: ignore[arg-type]


def test_conversation_goes_on_after_a_restart_without_being_computed_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with daemon(home, *SMALL) as node:
        node.wait_until_serving()
        new, whole = computed_again(node, "Say hello.")
        assert new == whole > 600
    kept = files(home)
    assert {path.suffix for path in kept} == {".slot", ".json"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept)
    assert all(path.parent.stat().st_mode & 0o777 == 0o700 for path in kept)

    with daemon(home, *SMALL) as node:
        node.wait_until_serving()
        wait_for_log(node, "1 saved prompts are restored")
        new, whole = computed_again(node, "Say hello.", "Hello", "And again?")
        assert new < 40 < 600 < whole
    # The longer prompt took the place of the one that it begins with.
    (slot,) = [path for path in files(home) if path.suffix == ".slot"]

    data = bytearray(slot.read_bytes())
    data[len(data) // 2] ^= 1
    slot.write_bytes(data)
    (home / "logs" / "daemon.log").unlink()
    with daemon(home, *SMALL, "--verbose") as node:
        node.wait_until_serving()
        wait_for_log(node, "is damaged, and removed")
        assert not slot.exists()
        new, whole = computed_again(node, "Say hello.")
        assert new == whole
    assert files(home)

    with daemon(home, *SMALL, "--no-save-prompts") as node:
        node.wait_until_serving()
        computed_again(node, "Say hello.")
    assert files(home) == []
