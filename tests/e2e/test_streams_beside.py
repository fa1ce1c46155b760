"""What one caller's request costs the streams of others, with the real engine."""

from __future__ import annotations

from threading import Event, Thread

import openai
import pytest

from meshllm.engine.processes.llama_server import PROCESSOR_BATCH
from tests.daemons import MODEL, OPEN_WAIT_SECONDS, Daemon

pytestmark = pytest.mark.engine

WORDS = " zebra" * 2000


def test_a_stream_goes_on_while_a_long_prompt_is_computed(served: Daemon) -> None:
    begun, ended = Event(), Event()
    beside: list[str] = []

    def stream() -> None:
        with client.completions.create(
            model=MODEL, prompt="Once", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
        ) as events:
            for event in events:
                if begun.is_set():
                    beside.append(event.choices[0].text)
                else:
                    first.set()
                if ended.is_set():
                    return

    first = Event()
    with openai.OpenAI(base_url=served.base_url, api_key="none", max_retries=0, timeout=OPEN_WAIT_SECONDS) as client:
        thread = Thread(target=stream, daemon=True)
        thread.start()
        try:
            assert first.wait(OPEN_WAIT_SECONDS)
            begun.set()
            answer = client.completions.create(
                model=MODEL, prompt=WORDS, max_tokens=1, extra_body={"cache_prompt": False}
            )
        finally:
            begun.set()
            ended.set()
            thread.join(OPEN_WAIT_SECONDS)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 1900
    assert len(beside) >= answer.usage.prompt_tokens // PROCESSOR_BATCH - 2
