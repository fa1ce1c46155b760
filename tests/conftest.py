"""Fixtures for the whole suite."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.daemons import MODEL, Daemon, daemon

# A suite that a script runs in the background inherits SIGINT as ignored, and so would every process that it starts;
# a handler, though, becomes the default in each of them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# No test is timed, by hypothesis neither: a busy machine is no defect.
settings.register_profile("mesh-llm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mesh-llm")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node that serves the real model with the real engine, for tests that leave it as they found it."""
    with daemon(tmp_path_factory.mktemp("served"), "--model", MODEL, "--ctx-size", "4096") as node:
        yield node.wait_until_serving()
