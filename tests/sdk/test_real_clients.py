"""Clients of the registries that install in seconds, as `scripts/clients` tries all of them: through a client node."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.client_trials.place import place
from scripts.client_trials.trial import NotInstalled, all_trials
from tests.daemons import OPEN_WAIT_SECONDS

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.mark.parametrize("name", ["llm"])
def test_client_works_through_a_client_node(tmp_path: Path, name: str) -> None:
    trial = all_trials()[name]
    try:
        trial.install()
    except NotInstalled as error:
        if error.away:
            pytest.skip(f"{name} cannot be installed: its registry cannot be reached")
        raise
    with place(tmp_path) as mesh:
        outcome = mesh.try_client(trial, OPEN_WAIT_SECONDS)
    assert outcome.works, outcome.problem
