"""Requests to a node's API, with the times that a caller sees, for `scripts/bench demand`."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

# Only for what is broken: a request for a model that is not loaded waits for its turn.
TIMEOUT_S = 900.0
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller saw; times are monotonic. `word`: when the first token came (None: none did, or the answer was not
    a stream); `silence`: the longest time in seconds without a token or a comment; `error`: "" if the request was
    answered to its end."""

    model: str
    stream: bool
    begun: float
    ended: float
    word: float | None
    silence: float
    error: str

    @property
    def first(self) -> float | None:
        """Seconds to the first token."""
        return None if self.word is None else self.word - self.begun


def ask(port: int, model: str, *, stream: bool, tokens: int = 8, prompt: str = "Say hello.") -> Answer:
    """A chat request to a loopback port, of exactly `tokens` tokens. Does not raise: a failure is in the answer."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": stream}
    heard = _Heard(time.monotonic())
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
            text = json.dumps({**body, "temperature": 0, "ignore_eos": True})
            connection.request("POST", CHAT, text, {"content-type": "application/json"})
            response = connection.getresponse()
            heard.sound()
            if response.status != 200 or not stream:
                heard.whole(response.status, response.read())
            else:
                for line in response:
                    heard.line(line)
    except (OSError, ValueError, http.client.HTTPException) as error:
        heard.error = heard.error or repr(error)
    ended = time.monotonic()
    if not heard.done and not heard.error:
        heard.error = "the answer ended before its end"
    silence = max(heard.silence, ended - heard.last)
    return Answer(model, stream, heard.begun, ended, heard.word, silence if stream else 0.0, heard.error)


class _Heard:
    """What has come of an answer so far."""

    def __init__(self, begun: float) -> None:
        self.begun = self.last = begun
        self.word: float | None = None
        self.silence = 0.0
        self.done = False
        self.error = ""

    def sound(self) -> None:
        now = time.monotonic()
        self.silence, self.last = max(self.silence, now - self.last), now

    def whole(self, status: int, body: bytes) -> None:
        answer = json.loads(body)
        self.done = status == 200 and bool(answer.get("choices"))
        if not self.done:
            self.error = f"{status}: {_message(answer)}"

    def line(self, line: bytes) -> None:
        if not line.strip():
            return
        self.sound()
        if line.startswith(b"data: [DONE]"):
            self.done = not self.error
        elif line.startswith(b"data: "):
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                self.error = _message(event)
            elif self.word is None and any(one.get("delta", {}).get("content") for one in event.get("choices", ())):
                self.word = self.last


def _message(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("message") if isinstance(error, dict) else answer)[:300]


def paced(asks: list[Callable[[], Answer]], seconds: float) -> Iterator[Future[Answer]]:
    """Make the requests one after the other, evenly over `seconds`; yields each as it is made. When the iterator is
    used up, all have been answered."""
    with ThreadPoolExecutor(len(asks)) as callers:
        begun = time.monotonic()
        for number, one in enumerate(asks):
            time.sleep(max(0.0, begun + seconds * number / len(asks) - time.monotonic()))  # the pace is what is set
            yield callers.submit(one)


def errors(answers: list[Answer]) -> list[str]:
    """The errors, each once."""
    return list(dict.fromkeys(answer.error for answer in answers if answer.error))
