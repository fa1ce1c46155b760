"""Fixtures for the whole suite."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.daemons import MODEL, Daemon, daemon

# A suite that runs in the background of a script inherits an ignored SIGINT, and so do its child processes. A handler
# becomes the default action in them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Under `nohup` SIGHUP is ignored, in child processes as well.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# No deadlines: a busy machine must not fail a test.
settings.register_profile("mesh-llm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mesh-llm")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node that serves the real model with the real engine, shared by tests that do not change it."""
    with daemon(tmp_path_factory.mktemp("served"), "--model", MODEL, "--ctx-size", "4096") as node:
        yield node.wait_until_serving()
