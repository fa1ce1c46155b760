"""What happens to a split when its worker is killed during a reply: `scripts/bench split --only kill`.

Each loss is followed to its end: what the client received, whether a process of the worker is left, and when the next
reply came. A spare worker always exists; a killed worker is restarted and becomes the next spare.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

import psutil

from . import report
from .native import BenchError
from .split_daemons import TIMEOUT_S, Daemons, Here, Node

TOKENS_BEFORE = 4
LONG_ANSWER = 1500
PROMPT = "Count from one to a thousand in words."


@dataclass
class Losses:
    """How often each came about. `seconds` from the kill to the first word of the next answer; `cut`: streams that
    ended without an error or an end."""

    errors: int = 0
    answers: int = 0
    hangs: int = 0
    cut: int = 0
    orphans: int = 0
    recovered: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)

    def words(self) -> str:
        """For people."""
        times = "; ".join(f"{how} {_times(values)}" for how, values in self.seconds.items())
        return f"{self.errors} typed errors, {self.answers} answers; to the next word: {times}"


def kill(daemons: Daemons, times: int) -> Losses:
    """Kill `times` workers: in turn the daemon, and its rpc-server alone."""
    told = Losses()
    first = daemons.worker(Here(), "worker-0")
    workers = [first, daemons.worker(Here(), "worker-1", join=first)]
    host = daemons.host(Here(), "host", "--no-speculation", join=first)
    host.wait_until_split()
    for number in range(times):
        how = "rpc-server" if number % 2 else "daemon"
        report.progress(f"kill {number + 1} of {times}: {how}")
        _once(daemons, told, host, workers, how)
    return told


def _once(daemons: Daemons, told: Losses, host: Node, workers: list[Node], how: str) -> None:
    carrier = _carrier(host, workers)
    left = carrier.engines("ggml-rpc-server")
    stream = host.stream(PROMPT, LONG_ANSWER)
    for _ in range(TOKENS_BEFORE):
        event = next(stream)
        if "error" in event:
            raise BenchError(f"no stream to kill a worker in: {event['error']}")
    began = time.monotonic()
    victim = carrier.child.process if how == "daemon" else left[0]
    with suppress(psutil.NoSuchProcess):
        victim.kill()
    _hear(told, stream)
    if _first_word(told, host):
        told.recovered += 1
        told.seconds.setdefault(how, []).append(time.monotonic() - began)
    _, alive = psutil.wait_procs(left, timeout=TIMEOUT_S / 10)
    told.orphans += len(alive)
    if how == "daemon":
        workers.remove(carrier)
        carrier.child.stop()
        again = daemons.start(Here(), carrier.name, *carrier.options, home=carrier.home)
        workers.append(again)
        node = again.node_id()
        host.wait_for("the worker back", lambda status: _alive(status, node))
    host.wait_until_split()


def _carrier(host: Node, workers: list[Node]) -> Node:
    """Who carries the host's layers now."""
    node = host.wait_until_split()["shares"][1]["node"]
    return next(one for one in workers if one.node_id() == node)


def _alive(status: dict[str, Any], node: str) -> bool:
    peers = status["mesh"]["peers"]
    return any(peer["id"] == node and peer["status"] == "alive" for peer in peers)


def _hear(told: Losses, stream: Iterator[dict[str, Any]]) -> None:
    """The rest of a stream, and how it ended."""
    ended = "cut"
    try:
        for event in stream:
            if "error" in event:
                ended = "errors"
                told.complaints.append(str(event["error"].get("message")))
            elif event.get("done") and ended == "cut":
                ended = "answers"
    except TimeoutError:
        ended = "hangs"
    except OSError as error:
        told.complaints.append(repr(error))
    setattr(told, ended, getattr(told, ended) + 1)


def _first_word(told: Losses, host: Node) -> bool:
    """Whether the next request is answered; asked while the host is still busy with the loss."""
    try:
        for event in host.stream("Say hello.", 1):
            if "error" in event:
                told.complaints.append(f"the next request: {event['error'].get('message')}")
                return False
            if any(choice.get("delta", {}).get("content") for choice in event.get("choices", ())):
                return True
    except OSError as error:  # TimeoutError is one
        told.complaints.append(f"the next request: {error!r}")
    return False


def _times(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f} s" if values else "never"
    return f"median {median(values):.1f} s, p90 {quantiles(values, n=10)[-1]:.1f} s, longest {max(values):.1f} s"
