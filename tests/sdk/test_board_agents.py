"""A real agent posts to the blackboard, and one on another node is told and answers, as `scripts/board_trials` tries
with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.board_trial.place import board_place
from scripts.client_trials.trial import NotInstalled, all_trials
from tests.daemons import OPEN_WAIT_SECONDS

pytestmark = pytest.mark.slow


def test_agent_asks_and_one_on_another_node_is_told_and_answers(tmp_path: Path) -> None:
    trial = all_trials()["claude"]
    try:
        trial.install()
    except NotInstalled as error:
        if error.away:
            pytest.skip("claude cannot be installed: its registry cannot be reached")
        raise
    with board_place(tmp_path) as place:
        asked = place.ask(trial, OPEN_WAIT_SECONDS)
        assert asked.problem == ""
        (question,) = asked.posts
        assert (question["kind"], question["to"], question["program"]) == ("question", ["ben"], "claude-code")
        answered = place.answer(trial, question["id"], OPEN_WAIT_SECONDS)
        assert answered.problem == ""
        assert answered.posts[0]["name"] == "ben"
