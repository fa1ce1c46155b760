"""Draft models from the command line to the status: used and counted, skipped if broken, refused if unsuitable."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from meshllm import paths
from scripts.benchmarks.cut import cut
from tests.daemons import MODEL, OPEN_WAIT_SECONDS, Daemon, daemon
from tests.e2e.test_daemon import run, status
from tests.models.gguf_samples import write_sample

SMALL = ("--model", MODEL, "--ctx-size", "1024")
LINES = "".join(f"{at}. The quick brown fox jumps over the lazy dog near the old river bank.\n" for at in range(1, 7))


@pytest.fixture(scope="module")
def whole() -> Path:
    found = sorted(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    if not found:
        pytest.skip("the model is not here (mesh-llm download SmolLM2-135M-Instruct)")
    return found[0]


def speculation(told: Any) -> dict[str, Any]:
    found: dict[str, Any] = told["models"][0]["engine"]["speculation"]
    return found


def until(node: Daemon, so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The speculation in the status, once `so` holds for it."""
    with urllib.request.urlopen(node.owner_request("/api/events"), timeout=OPEN_WAIT_SECONDS) as events:
        for line in events:
            if line.startswith(b"data: ") and so(found := speculation(json.loads(line[6:]))):
                return found
    raise AssertionError("the status ended")


def repeat(node: Daemon) -> str:
    """The reply to a request that makes the model repeat its prompt."""
    with openai.OpenAI(base_url=node.base_url, api_key="none", max_retries=0, timeout=OPEN_WAIT_SECONDS) as client:
        answer = client.completions.create(
            model=MODEL, prompt=f"{LINES}\nOnce more:\n{LINES[:160]}", max_tokens=60, temperature=0
        )
    return answer.choices[0].text


@pytest.mark.engine
@pytest.mark.slow
def test_draft_model_of_the_command_line_is_used_and_counted(tmp_path: Path, whole: Path) -> None:
    draft = cut(whole, tmp_path / "small.gguf", 4)
    with daemon(tmp_path / "home", *SMALL, "--draft", str(draft)) as node:
        node.wait_until_serving()
        told = speculation(status(node))
        assert (told["kind"], told["draft_model"], told["reason"]) == ("draft", "small", "")
        assert "lazy dog" in repeat(node)
        told = until(node, lambda found: found["accepted_tokens"] > 0)
        assert told["acceptance"] == round(told["accepted_tokens"] / told["draft_tokens"], 4)
        with urllib.request.urlopen(node.base_url.removesuffix("/v1") + "/metrics", timeout=30) as response:
            metrics = response.read().decode()
        count = f"{float(told['accepted_tokens'])}"
        assert f'mesh_llm_speculation_accepted_tokens_total{{model="{MODEL}"}} {count}' in metrics
        words = run(node.home, "status").stdout.replace("\n", " ")
        assert "speculative decoding: draft model small" in words


@pytest.mark.engine
@pytest.mark.slow
def test_broken_draft_model_is_skipped(tmp_path: Path, whole: Path) -> None:
    draft = cut(whole, tmp_path / "small.gguf", 4)
    with draft.open("r+b") as file:
        file.truncate(draft.stat().st_size - 4096)
    with daemon(tmp_path / "home", *SMALL, "--draft", str(draft)) as node:
        node.wait_until_serving()
        told = speculation(status(node))
        assert (told["kind"], told["draft_model"]) == ("n-grams", "")
        assert "small" in told["reason"]
        assert "lazy dog" in repeat(node)
        until(node, lambda found: found["accepted_tokens"] > 0)


@pytest.mark.engine
@pytest.mark.slow
def test_no_speculation_drafts_no_tokens(tmp_path: Path) -> None:
    with daemon(tmp_path / "home", *SMALL, "--no-speculation") as node:
        node.wait_until_serving()
        assert speculation(status(node))["kind"] == "none"
        assert "lazy dog" in repeat(node)
        shown = " ".join(run(node.home, "status").stdout.split())  # the terminal's width breaks lines
        assert "speculative decoding: off (option --no-speculation)" in shown


def test_draft_model_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    large = write_sample(tmp_path / "large.gguf", layers=40)
    other = write_sample(tmp_path / "other.gguf", layers=2, tokens=400)
    refused = run(tmp_path / "home", "--model", str(large), "--draft", str(other))
    assert refused.returncode == 2
    assert "other cannot be the draft model of large: one has 380 more tokens than the other" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "m.gguf", "--draft", "d.gguf", "--no-draft"), "--draft and --no-draft exclude each other"),
        (("--model", "m.gguf", "--draft", "d.gguf", "--no-speculation"), "--no-speculation exclude each other"),
        (("--draft", "d.gguf"), "--draft needs a --model"),
    ],
)
def test_contradicting_speculation_options_are_refused(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    refused = run(tmp_path / "home", *arguments)
    assert refused.returncode == 2
    assert words in refused.stderr
