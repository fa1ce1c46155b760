"""The exception tree: codes, advice, and the error for a port that cannot be opened."""

from __future__ import annotations

import errno
import inspect
import os

import pytest

from meshllm import errors
from meshllm.errors import DownloadFailed, InputError, MeshError, port_taken

CLASSES = [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, MeshError)]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "Ports below 1024 need more rights: choose another with --port."),
        (errno.EADDRINUSE, "Stop the program that uses it, or choose another with --port."),
        (errno.ENOBUFS, "Choose another with --port."),
    ],
)
def test_port_taken_gives_the_reason_and_advice_for_each_error_number(number: int, advice: str) -> None:
    text = f"error while attempting to bind on address ('127.0.0.1', 80): {os.strerror(number).lower()}"
    error = port_taken(OSError(number, text), "127.0.0.1", 80, "--port")
    assert error.message == f"Cannot listen on 127.0.0.1 port 80: {os.strerror(number).lower()}."
    assert error.advice == advice


def test_port_taken_quotes_an_error_without_a_number() -> None:
    assert port_taken(OSError("odd"), "here", 1, "--port").message == "Cannot listen on here port 1: odd."


@pytest.mark.parametrize("error", CLASSES, ids=lambda item: item.__name__)
def test_every_error_has_advice_and_a_description(error: type[MeshError]) -> None:
    assert error.__doc__
    assert error in (MeshError, InputError) or error("it failed").advice


def test_error_codes_are_unique_among_siblings() -> None:
    leaves = [item for item in CLASSES if not item.__subclasses__()]
    codes = [item.code for item in leaves if item is not errors.InternalError]
    assert len(set(codes)) == len(codes)


def test_error_text_has_the_callers_advice_only() -> None:
    assert str(DownloadFailed("It failed.")) == "It failed."
    assert str(DownloadFailed("It failed.", advice="Do this.")) == "It failed. Do this."
    assert DownloadFailed("It failed.").advice == DownloadFailed.default_advice
