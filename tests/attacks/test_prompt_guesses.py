"""The engine's prompt cache tells a guest nothing of what others asked (audit, row 8), and deep grammars end no engine.

With the real engine, asked directly as the gateway asks it: `test_gateway_prompts` tests which header that sends.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from meshllm.engine.build import builder
from meshllm.web.gateway.api_request import SALT_HEADER

MODEL = Path.home() / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SECRET = "The number of the safe in the cellar of the old house by the river, which is secret, is 7341-"
START_SECONDS = 60.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of an engine with two slots."""
    engine = builder.find()
    if engine is None or not MODEL.is_file():
        pytest.skip("needs the built engine and SmolLM2-135M-Instruct")
    chosen = _free_port()
    command = [
        engine.server,
        "-m",
        MODEL,
        "--host",
        "127.0.0.1",
        "--port",
        str(chosen),
        "-c",
        "4096",
        "-np",
        "2",
        "-t",
        "2",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _ready(chosen):
                assert time.monotonic() < deadline
                assert process.poll() is None
            yield chosen
        finally:
            process.terminate()


def _ready(port: int) -> bool:
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/health")
            with connection.getresponse() as response:
                return response.status == 200
    except OSError:
        time.sleep(0.05)
        return False


def ask(port: int, body: dict[str, Any], salt: str = "") -> tuple[int, Any]:
    headers = {"content-type": "application/json"} | ({SALT_HEADER: salt} if salt else {})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/v1/completions", json.dumps({"model": "m", "max_tokens": 1} | body), headers)
    response = connection.getresponse()
    found = json.loads(response.read())
    connection.close()
    return response.status, found


def cached(port: int, text: str, salt: str = "") -> int:
    status, found = ask(port, {"prompt": text}, salt)
    assert status == 200
    return int(found["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_guesses_of_another_trust_domain_tell_nothing(port: int) -> None:
    assert cached(port, SECRET + "ALPHA") == 0
    assert cached(port, SECRET + "ALPHA") > 20
    guesses = {word: cached(port, SECRET + word, f"guest-{word}") for word in ("BRAVO", "DELTA", "ALPHA")}
    assert guesses == {"BRAVO": 0, "DELTA": 0, "ALPHA": 0}
    assert cached(port, SECRET + "ALPHA", "guest-ALPHA") > 20  # its own
    assert cached(port, SECRET + "ALPHA", "another") == 0
    for number in range(4):  # the slots are all taken by others: what is left is in host memory
        cached(port, f"{number} is a number. " * 20, f"filler-{number}")
    assert cached(port, SECRET + "ALPHA", "one-more") == 0
    assert cached(port, SECRET + "ALPHA") > 20


def test_deep_grammars_and_schemas_are_refused_by_the_engine(port: int) -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(250):
        deep = {"type": "object", "properties": {"a": deep}}
    chain: dict[str, Any] = {str(n): {"type": "array", "items": {"$ref": f"#/d/{n + 1}"}} for n in range(3000)}
    chain["3000"] = {"type": "string"}
    grammar = "root ::= " + "(" * 195_000 + '"a"' + ")" * 195_000
    for field in ({"grammar": grammar}, {"json_schema": deep}, {"json_schema": {"$ref": "#/d/0", "d": chain}}):
        assert ask(port, {"prompt": "x"} | field)[0] == 400
    assert ask(port, {"prompt": "x"})[0] == 200
