"""Fixtures for the whole suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemons import MODEL, Daemon, daemon


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node that serves the real model with the real engine, for tests that leave it as they found it."""
    with daemon(tmp_path_factory.mktemp("served"), "--model", MODEL, "--ctx-size", "4096") as node:
        yield node.wait_until_serving()
