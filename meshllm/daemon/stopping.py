"""Stopping a daemon: signals, and the time that answers in progress get, those of a host it computes for, too.

Invariants: a second signal ends everything at once; a signal that comes later, while the daemon ends, changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from meshllm.core import events as e
from meshllm.core.snapshot import Snapshot
from meshllm.core.split.lease import LeasePhase
from meshllm.tasks import Owner

if TYPE_CHECKING:
    from meshllm.daemon.viewer import Viewer
    from meshllm.web.gateway.gateway import Gateway

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Answers that are being written when the daemon is asked to stop get this long to end (seconds).
ANSWER_GRACE_SECONDS = 5.0


class Stopping:
    """Stops a daemon once. `begun`: it was asked to; `signalled`: by a signal."""

    def __init__(
        self,
        gateway: Gateway,
        post: Callable[[e.Event], None],
        show: Callable[[Callable[[Viewer], None]], None],
        changed: Callable[[], None],
        stack: AsyncExitStack,
    ) -> None:
        """`post`: give an event to the core. `changed`: the daemon's state has changed. `stack` ends what is begun
        here."""
        self.begun = self.signalled = False
        self._gateway = gateway
        self._post = post
        self._show = show
        self._changed = changed
        self._free = asyncio.Event()  # this node computes for no host
        self._free.set()
        self._works_on = ""
        self._owner = Owner("stop")
        stack.push_async_callback(self._owner.close)

    def handle_signals(self) -> None:
        """Stop in order on SIGINT and SIGTERM, and on SIGHUP (a closed terminal) unless it is ignored (nohup)."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self.on_signal, number)

    def on_signal(self, number: signal.Signals) -> None:
        """Begin to stop; the second time, end at once."""
        self.signalled = True
        log.info("stopping", extra={"fields": {"signal": number.name}})
        if not self.begin():
            # Without requests the engines end at once.
            self._gateway.cut_answers()
            self._end()

    def begin(self) -> bool:
        """Let answers in progress end, then end everything. False if that was begun before."""
        if self.begun:
            return False
        self.begun = True
        self._owner.start(self._finish_answers(), "stop")
        return True

    def publish(self, snapshot: Snapshot) -> None:
        """Take in whether this node computes for a host now."""
        lease = snapshot.worker_lease
        if lease is None or lease.phase is not LeasePhase.COMMITTED:
            self._free.set()
        else:
            self._free.clear()
            self._works_on = lease.lease.model

    def _end(self) -> None:
        """End the core, and with it the daemon."""
        self._post(e.StopWanted())

    async def _leave_split(self) -> None:
        """Let the host that this node computes for finish its answers."""
        if self._free.is_set():
            return
        self._show(lambda viewer: viewer.leaving_split(self._works_on, ANSWER_GRACE_SECONDS))
        try:
            async with asyncio.timeout(ANSWER_GRACE_SECONDS):
                await self._free.wait()
        except TimeoutError:
            log.warning("the host of %s still used this node when it stopped", self._works_on)

    async def _finish_answers(self) -> None:
        def waiting(answers: int) -> None:
            self._show(lambda viewer: viewer.stopping(answers, ANSWER_GRACE_SECONDS))
            self._changed()

        self._post(e.StopAnnounced())
        leaving = self._owner.start(self._leave_split(), "leave the split")
        try:
            cut = await self._gateway.close(ANSWER_GRACE_SECONDS, waiting)
            await leaving
            if cut:
                log.warning("answers cut off by the stop: %d", cut)
                self._show(lambda viewer: viewer.answers_cut(cut))
        finally:
            self._end()


def release_signals(*, ignore: bool) -> None:
    """The last step of a stop: signals have their default actions again. `ignore`: none, because the process ends."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        if loop.remove_signal_handler(number) and ignore:
            signal.signal(number, signal.SIG_IGN)
