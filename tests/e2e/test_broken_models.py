"""Model files that the engine loads, or nearly, and cannot serve: told once, with the cause and what to do."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from meshllm import paths
from meshllm.models.catalog.catalog import load
from meshllm.models.library.store import Store
from tests.daemons import MODEL, OPEN_WAIT_SECONDS, PROGRAM, Daemon, daemon
from tests.gguf_edit import with_value

TEMPLATE = "tokenizer.chat_template"
# With `tools` in it, the engine gets the template of the file itself; without, one with a place for tools.
BROKEN = {
    "{% if %}{{ foo": "it is no valid Jinja template",
    "{% if tools %}{{ foo": "it is no valid Jinja template",
    '{{ raise_exception("no conversations here") }}': "it is no valid Jinja template",
    '{% if tools %}{% endif %}{{ raise_exception("no conversations here") }}': "no conversations here",
    "{% if tools %}{% endif %}{{ messages | nosuchfilter }}": "nosuchfilter",
}


@pytest.fixture(scope="module")
def real(served: Daemon) -> Path:
    """The file of the real model."""
    entry = load().get(MODEL)
    assert entry is not None
    manifest = Store(paths.models()).manifest_of(entry)
    assert manifest is not None
    return paths.models() / manifest.files[0].name


def ask(node: Daemon, model: str) -> tuple[int, Any]:
    body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    request = urllib.request.Request(
        f"{node.base_url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=OPEN_WAIT_SECONDS) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def model_line(node: Daemon, phases: tuple[str, ...] = ("failed", "serving")) -> dict[str, Any]:
    return node.wait_for(lambda line: line["event"] == "model" and line["phase"] in phases, "an end of the start")


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("template", BROKEN)
def test_broken_template_fails_at_the_first_start_and_says_how_to_set_another(
    tmp_path: Path, real: Path, template: str
) -> None:
    file = with_value(real, tmp_path / "broken.gguf", TEMPLATE, template)
    with daemon(tmp_path / "home", "--model", str(file), "--ctx-size", "512") as node:
        told = model_line(node)
        assert (told["phase"], told["restarts"]) == ("failed", 1)
        assert told["reason"].startswith("its chat template does not work: ")
        if "tools" in template:
            assert BROKEN[template] in told["reason"]
        status, answer = ask(node, "broken")
        assert status == 503
        assert "--chat-template FILE" in answer["error"]["message"]


@pytest.mark.engine
@pytest.mark.slow
def test_given_template_replaces_a_broken_one(tmp_path: Path, real: Path) -> None:
    file = with_value(real, tmp_path / "broken.gguf", TEMPLATE, "{% if %}")
    other = tmp_path / "other.jinja"
    other.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    arguments = ("--model", str(file), "--ctx-size", "512", "--chat-template", str(other))
    with daemon(tmp_path / "home", *arguments) as node:
        assert model_line(node)["phase"] == "serving"
        assert ask(node, "broken")[0] == 200


@pytest.mark.engine
@pytest.mark.parametrize("length", [0, 2**31, 2**32 - 1])
def test_impossible_context_length_is_refused_before_the_start(tmp_path: Path, real: Path, length: int) -> None:
    """The engine would load the file, and abort at the first request."""
    file = with_value(real, tmp_path / "broken.gguf", "llama.context_length", length)
    told = subprocess.run(
        [str(PROGRAM), "--model", str(file), "--port", "0", "--console", "0"],
        env={**os.environ, "MESH_LLM_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=OPEN_WAIT_SECONDS,
        check=False,
    )
    assert told.returncode == 2
    assert f"its context length (llama.context_length) is {length}" in told.stderr


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), [("llama.attention.head_count", 0), ("llama.embedding_length", 2**32 - 1)])
def test_file_that_the_engine_rejects_is_examined_once(tmp_path: Path, real: Path, key: str, value: int) -> None:
    file = with_value(real, tmp_path / "broken.gguf", key, value)
    with daemon(tmp_path / "home", "--model", str(file)) as node:
        told = model_line(node, ("failed", "serving", "restarting", "loading"))
        assert told["phase"] == "failed"
        assert "the engine rejects it" in told["reason"]
