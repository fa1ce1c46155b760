"""Stopping a daemon: signals, and the time that answers in progress get.

Invariants: a second signal ends everything at once; a signal that comes later, while the daemon ends, changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

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
        end: Callable[[], None],
        show: Callable[[Callable[[Viewer], None]], None],
        changed: Callable[[], None],
        stack: AsyncExitStack,
    ) -> None:
        """`end`: end everything but the gateway. `changed`: the daemon's state has changed. `stack` ends what is begun
        here."""
        self.begun = self.signalled = False
        self._gateway = gateway
        self._end = end
        self._show = show
        self._changed = changed
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

    async def _finish_answers(self) -> None:
        def waiting(answers: int) -> None:
            self._show(lambda viewer: viewer.stopping(answers, ANSWER_GRACE_SECONDS))
            self._changed()

        try:
            if cut := await self._gateway.close(ANSWER_GRACE_SECONDS, waiting):
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
