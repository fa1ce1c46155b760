"""Relays: when a target has taken too long."""

from __future__ import annotations

import pytest

from meshllm.core.routing.routes import TargetKind
from meshllm.web.gateway.relay import PEER_SILENCE_SECONDS, Overdue, overdue


@pytest.mark.parametrize(("doubted", "silences"), [(False, 3), (True, 2)])
def test_peer_that_answers_no_pings_either_is_lost_sooner(doubted: bool, silences: int) -> None:
    def after(seconds: float) -> Overdue | None:
        return overdue(TargetKind.PEER, seconds, connecting=False, complete=False, doubted=doubted)

    assert after(silences * PEER_SILENCE_SECONDS) is None
    assert after(silences * PEER_SILENCE_SECONDS + 0.1) is Overdue.SEND
