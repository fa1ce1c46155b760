"""Words for what the system refuses."""

from __future__ import annotations

import errno
import os

import pytest

from meshllm.errors import port_taken


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "Ports below 1024 need more rights: choose another with --port."),
        (errno.EADDRINUSE, "Stop what uses it, or choose another with --port."),
        (errno.ENOBUFS, "Choose another with --port."),
    ],
)
def test_a_port_that_cannot_be_had_is_told_with_what_helps(number: int, advice: str) -> None:
    words = f"error while attempting to bind on address ('127.0.0.1', 80): {os.strerror(number).lower()}"
    error = port_taken(OSError(number, words), "127.0.0.1 port 80", "--port")
    assert error.message == f"Cannot listen on 127.0.0.1 port 80: {os.strerror(number).lower()}."
    assert error.advice == advice


def test_what_has_no_number_is_told_in_its_own_words() -> None:
    assert port_taken(OSError("odd"), "here port 1", "--port").message == "Cannot listen on here port 1: odd."
