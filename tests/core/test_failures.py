"""Every command that the core waits on has an answer for its failure."""

from __future__ import annotations

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.failures import failure
from meshllm.core.records import BootstrapAddress
from meshllm.core.split.lease import Lease
from tests.core.board.made_entries import entry

LEASE = Lease(b"s" * 16, 3, "m", (), ())
WAY = BootstrapAddress(b"p" * 16, ())
ANSWERED: list[tuple[c.Command, type[e.Event]]] = [
    (c.PrepareEngine(), e.EngineFailed),
    (c.FetchModel("m"), e.FileFailed),
    (c.MeasureModel("m"), e.MeasureFailed),
    (c.StartServer("m", 1), e.ServerGone),
    (c.StopServer("m", 1), e.ServerGone),
    (c.StartWorker(LEASE), e.WorkerGone),
    (c.StopWorker(b"s" * 16, 3), e.WorkerGone),
    (c.ProbeBackend("http://b"), e.BackendSilent),
    (c.DialPeer(WAY), e.DialFailed),
    (c.SavePost(1, entry(1)), e.PostFailed),
]


@pytest.mark.parametrize(("command", "answer"), ANSWERED, ids=lambda one: getattr(one, "__name__", ""))
def test_failed_command_is_answered(command: c.Command, answer: type[e.Event]) -> None:
    found = failure(command, "why")
    assert isinstance(found, answer)
    assert "why" in found.reason  # type: ignore[attr-defined]
    if isinstance(found, e.FileFailed):
        assert not found.final, "the download is tried again"


def test_commands_that_promise_an_answer_are_all_among_them() -> None:
    promised = {kind.__name__ for kind in c.Command.__subclasses__() if "nswered" in (kind.__doc__ or "")}
    # HangUp: the link that is closed ends by itself. TakeCertificate: asked for again by a timer.
    others = {"HangUp", "TakeCertificate"}
    assert promised - others == {type(command).__name__ for command, _ in ANSWERED}
