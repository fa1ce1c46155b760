"""Fixtures for the whole suite."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import psutil
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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Kill the processes that tests left behind: they would hold pipes and ports, and the machine of the CI."""
    # A process that was told to end may take a moment.
    _, left = psutil.wait_procs([child for child in psutil.Process().children() if not _helper(child)], timeout=10)
    for child in left:
        print(f"\nleft behind by a test: {_command(child)}")
        for process in [*_below(child), child]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _helper(process: psutil.Process) -> bool:
    """Whether Python itself started it; it ends with this process."""
    return "resource_tracker" in _command(process)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node that serves the real model with the real engine, shared by tests that do not change it."""
    with daemon(tmp_path_factory.mktemp("served"), "--model", MODEL, "--ctx-size", "4096") as node:
        yield node.wait_until_serving()
