"""A whole daemon through what happens to daemons: kills, stops, restarts, crashes of the engine, bad starts."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import psutil
import pytest

from tests.daemons import MODEL, OPEN_WAIT_SECONDS, PROGRAM, Daemon, daemon

SMALL = ("--model", MODEL, "--ctx-size", "1024")
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me a story."}], "temperature": 0}


def client(node: Daemon) -> openai.OpenAI:
    """OpenAI's client, which tries nothing twice. To be closed."""
    return openai.OpenAI(base_url=node.base_url, api_key="none", max_retries=0, timeout=OPEN_WAIT_SECONDS)


def status(node: Daemon) -> Any:
    with urllib.request.urlopen(node.owner_request("/api/status"), timeout=30) as response:
        return json.load(response)


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`mesh-llm` to its end, with a home of its own."""
    environment = {**os.environ, "MESH_LLM_HOME": str(home)}
    return subprocess.run(
        [str(PROGRAM), *arguments], env=environment, capture_output=True, text=True, timeout=OPEN_WAIT_SECONDS
    )


@pytest.mark.engine
def test_request_at_start_is_answered_when_the_model_is_loaded(tmp_path: Path) -> None:
    with daemon(tmp_path, *SMALL) as node, client(node) as caller:
        # Not a moment after the port is open, and long before the model is loaded.
        answer = caller.chat.completions.create(**CHAT, max_tokens=5, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)


@pytest.mark.engine
def test_killing_the_engine_in_a_stream_is_a_typed_error_and_then_all_is_well(tmp_path: Path) -> None:
    with daemon(tmp_path, *SMALL) as node, client(node) as caller:
        node.wait_until_serving()
        stream = caller.chat.completions.create(**CHAT, max_tokens=900, stream=True, extra_body={"ignore_eos": True})
        chunks = iter(stream)
        next(chunks)
        victim = status(node)["models"][0]["engine"]["pid"]
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(openai.APIError) as lost:
            for _ in chunks:
                pass
        assert lost.value.code == "upstream_lost"
        # Asked while it is away: answered when it is back, by the same call.
        again = caller.chat.completions.create(**CHAT, max_tokens=5)
        assert again.choices[0].message.content
        node.wait_until_serving(restarts=1)
        told = status(node)["models"][0]
        assert told["restarts"] == 1
        assert told["engine"]["pid"] != victim
        assert not psutil.pid_exists(victim)


@pytest.mark.engine
def test_hung_engine_is_detected(tmp_path: Path) -> None:
    """SIGSTOP: it neither answers nor dies. The supervisor ends it, and the caller's request is asked again."""
    with daemon(tmp_path, *SMALL) as node, client(node) as caller:
        node.wait_until_serving()
        os.kill(status(node)["models"][0]["engine"]["pid"], signal.SIGSTOP)
        answer = caller.chat.completions.create(**CHAT, max_tokens=5)
        assert answer.choices[0].message.content
        assert status(node)["models"][0]["restarts"] == 1


@pytest.mark.engine
def test_kill_minus_nine_of_the_daemon_leaves_nothing_and_it_starts_again(tmp_path: Path) -> None:
    first = Daemon(tmp_path, *SMALL)
    try:
        first.wait_until_listening().wait_until_serving()
        below = first.children()
        assert any("llama-server" in process.name() for process in below)
    finally:
        first.kill()
    gone, alive = psutil.wait_procs(below, timeout=OPEN_WAIT_SECONDS)
    assert alive == []
    assert len(gone) == len(below)
    with daemon(tmp_path, *SMALL) as second:
        second.wait_until_serving()
        assert len(list((tmp_path / "run").glob("*/*.sock"))) == 1


@pytest.mark.engine
def test_stop_lets_an_answer_be_completed_and_leaves_nothing(tmp_path: Path) -> None:
    with daemon(tmp_path, *SMALL) as node, client(node) as caller:
        node.wait_until_serving()
        stream = caller.chat.completions.create(**CHAT, max_tokens=12, stream=True)
        chunks = iter(stream)
        next(chunks)
        below = node.children()
        node.process.send_signal(signal.SIGTERM)
        rest = list(chunks)
        assert rest[-1].choices[0].finish_reason in ("length", "stop")
        assert node.process.wait(OPEN_WAIT_SECONDS) == 0
        assert psutil.wait_procs(below, timeout=OPEN_WAIT_SECONDS)[1] == []
    assert not (tmp_path / "daemon.json").exists()
    assert list((tmp_path / "run").iterdir()) == []
    assert list((tmp_path / "children").iterdir()) == []


@pytest.mark.engine
def test_node_can_be_the_backend_of_another(tmp_path: Path, served: Daemon) -> None:
    url = served.base_url.replace("localhost", "127.0.0.1")
    with daemon(tmp_path, "--backend", url) as node, client(node) as caller:
        node.wait_for(lambda line: line["event"] == "backend" and line["healthy"], "the backend")
        answer = caller.chat.completions.create(**CHAT, max_tokens=5)
        assert answer.choices[0].message.content
        assert [backend["models"] for backend in status(node)["backends"]] == [[MODEL]]


def test_node_without_models_answers_with_the_reason(tmp_path: Path) -> None:
    with daemon(tmp_path) as node, client(node) as caller:
        with pytest.raises(openai.NotFoundError) as refused:
            caller.chat.completions.create(**CHAT)
        assert "No model is served here now" in refused.value.message
        assert status(node)["models"] == []


def test_events_tell_the_state_at_once_and_a_stop_ends_them(tmp_path: Path) -> None:
    with daemon(tmp_path) as node:
        at = urlsplit(node.console_url)
        connection = http.client.HTTPConnection("127.0.0.1", at.port or 0, timeout=OPEN_WAIT_SECONDS)
        connection.request("GET", "/api/events")
        response = connection.getresponse()
        assert response.readline() == b"event: status\n"
        assert response.readline().startswith(b"id: ")
        assert json.loads(response.readline().removeprefix(b"data: "))["version"]
        assert node.stop() == 0
        connection.close()


def test_status_command_prints_the_status_of_the_api(tmp_path: Path) -> None:
    with daemon(tmp_path) as node:
        told = json.loads(run(tmp_path, "status", "--json").stdout)
        assert told["pid"] == node.process.pid
        port = str(urlsplit(node.console_url).port)
        shown = run(tmp_path / "elsewhere", "status", "--node-port", port)
        assert shown.returncode == 0
        assert "No model is served" in shown.stdout


def test_stop_ends_the_node_of_this_home_and_only_that(tmp_path: Path) -> None:
    with daemon(tmp_path / "a") as one, daemon(tmp_path / "b") as other:
        done = run(tmp_path / "a", "stop")
        assert done.returncode == 0
        assert str(one.process.pid) in done.stdout
        assert one.process.wait(OPEN_WAIT_SECONDS) == 0
        assert other.process.poll() is None
        assert status(other)["pid"] == other.process.pid
        again = run(tmp_path / "a", "stop")
        assert again.returncode == 1
        assert "No mesh-llm is running" in again.stderr


def test_second_node_with_the_same_home_is_refused_with_advice(tmp_path: Path) -> None:
    with daemon(tmp_path) as node:
        second = run(tmp_path, "--port", "0", "--console", "0")
        assert second.returncode == 2
        assert "MESH_LLM_HOME" in second.stderr
        assert str(node.process.pid) in second.stderr


def test_taken_port_is_refused_with_advice(tmp_path: Path) -> None:
    with daemon(tmp_path / "a") as node:
        port = str(urlsplit(node.base_url).port)
        second = run(tmp_path / "b", "--port", port, "--console", "0")
        assert second.returncode == 1
        assert port in second.stderr
        assert "--port" in second.stderr
        console = str(urlsplit(node.console_url).port)
        third = run(tmp_path / "b", "--port", "0", "--console", console)
        assert third.returncode == 1
        assert "--console" in third.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "SmolLM2-134M-Instruct"], "SmolLM2-135M-Instruct"),
        (["--model", "Qwen3-9B"], "Did you mean"),
        (["--model", "./no-such-file.gguf"], "no-such-file.gguf"),
        (["--model", "pyproject.toml"], "toml"),
        (["--backend", "not a url"], "http://HOST:PORT/v1"),
        (["--backend", "http://user:secret@localhost/v1"], "contains credentials"),
        (["--backend", "http://api.example.com/v1"], "private network"),
        (["--backend", "http://localhost:1,key=NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (["--backend", "http://localhost:1,token=X"], "key=VARIABLE"),
        (["--port", "3000", "--console", "3000"], "both listen on port 3000"),
        (["--ctx-size", "4096"], "Add --model NAME, or --on-demand"),
        (["--port", "70000"], "65535"),
        (["--modle", "x"], "--modle"),
        (["--model", MODEL, "status"], "--model"),
        (["serve"], "serve"),
    ],
)
def test_bad_use_is_refused_with_a_sentence_that_helps(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_damaged_model_file_is_refused_before_the_start(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + os.urandom(1000))
    done = run(tmp_path / "home", "--model", str(bad))
    assert done.returncode == 2
    assert "bad.gguf" in done.stderr


@pytest.mark.engine
def test_engine_that_keeps_dying_is_reported(tmp_path: Path) -> None:
    """A file whose header is sound and whose tensors the engine refuses: it dies at every start."""
    from tests.engine_samples import model_without_needed_tensors

    broken = model_without_needed_tensors(tmp_path / "broken.gguf")
    with daemon(tmp_path / "home", "--model", str(broken)) as node, client(node) as caller:
        node.wait_for(lambda line: line["event"] == "model" and line["phase"] == "failed", "the crash loop")
        told = status(node)["models"][0]
        assert told["reason"]
        with pytest.raises(openai.InternalServerError) as refused:
            caller.chat.completions.create(**{**CHAT, "model": "broken"})
        assert refused.value.status_code == 503
        assert refused.value.code == "model_unavailable"


def test_strangers_and_web_pages_are_refused(tmp_path: Path) -> None:
    with daemon(tmp_path) as node:
        for url in (f"{node.base_url}/models", f"{node.console_url}/api/status"):
            for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
                with refused.value as answer:
                    assert answer.status == 403


def test_listening_for_others_needs_a_key_that_only_we_can_read(tmp_path: Path) -> None:
    with daemon(tmp_path, "--listen-all") as node:
        key_file = tmp_path / "api-key"
        assert key_file.stat().st_mode & 0o777 == 0o600
        key = key_file.read_text().strip()
        assert len(key) >= 32
        assert key not in json.dumps(node.lines)
        assert key not in " ".join(psutil.Process(node.process.pid).cmdline())
        request = urllib.request.Request(f"{node.base_url}/models", headers={"Host": "my-machine:9337"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        with refused.value as answer:
            assert answer.status == 401
        request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.status == 200
