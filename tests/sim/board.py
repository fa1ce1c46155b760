"""The blackboard in a mesh of whole cores: how fast a post spreads, what an idle board costs, how a node catches up.

`scripts/sim board --nodes 1000` measures all three.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.board.entries import EntryDraft, EntryHeader, EntryKind, SignedEntry, body_hash, entry_id
from meshllm.core.board.messages import BoardDifference, BoardDigest, BoardEntries, BoardMessage, BoardWant
from meshllm.core.membership.member import MeshConfig
from meshllm.core.records import BootstrapAddress
from tests.mesh_key import NOW
from tests.saved_board import SavedBoard, sign_entry
from tests.sim.simulation import SimulatedNode, Simulation

JOIN_SECONDS, SETTLE_SECONDS, IDLE_SECONDS = 30.0, 30.0, 30.0
# The bars of issue "blackboard".
SPREAD_SECONDS, ROUND_TRIPS, BYTES_RATIO = 2.0, 4, 1.1
MISSING = 5000
# Certificates of the simulation count from then on, for half an hour.
BEGUN = NOW - 900.0


class BoardSimulation(Simulation):
    """A mesh whose nodes share the blackboard; their wall clocks are right but for `clocks` (seconds, by number)."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.boards: dict[int, SavedBoard] = {}
        self.clocks: dict[int, float] = {}
        for command in (c.SavePost, c.RefusePost, c.BoardChanged):
            self._hands[command] = self._board_command

    def config(self, node: SimulatedNode) -> MeshConfig:
        """As of any simulation, with a blackboard."""
        return replace(super().config(node), sign_entry=sign_entry)

    def start(self, index: int, ways: Iterable[BootstrapAddress] = (), *, invited: bool = True) -> None:
        """Start a node; it reads what it saved."""
        super().start(index, ways, invited=invited)
        unix = BEGUN + self.now + self.clocks.get(index, 0.0)
        self.tell(index, self.boards.setdefault(index, SavedBoard()).opened(unix))

    def _board_command(self, node: SimulatedNode, command: c.Command) -> None:
        answer = self.boards[node.index].carry_out(command)
        if answer is not None:
            self._tell(node, answer)

    def post(self, index: int, text: str, number: int = 1) -> None:
        """A node writes."""
        self.tell(index, e.PostWanted(number, EntryDraft(text)))

    def grow(self, nodes: int) -> None:
        """Start so many nodes, which join by each other."""
        first = len(self.nodes)
        self.add(nodes)
        for index in range(first, first + nodes):
            ways = [self.nodes[self.rng.randrange(index)].way()] if index else []
            self.at(self.now + JOIN_SECONDS * (index - first) / nodes, self.start, index, ways)
        self.run(JOIN_SECONDS + SETTLE_SECONDS)

    def board_messages(self) -> int:
        """How many messages about the board were sent so far."""
        return sum(self.messages[kind.__name__] for kind in (BoardDigest, BoardDifference, BoardWant, BoardEntries))

    def everywhere(self, text: str) -> bool:
        """Whether all running nodes have that text."""
        return all(text in self.boards[node.index].texts for node in self.live())


@dataclass(frozen=True)
class CatchUp:
    """How a node caught up: round trips until it had all, and bytes of messages about the board against those of the
    entries themselves."""

    round_trips: int
    ratio: float
    complete: bool


def spread(simulation: BoardSimulation) -> float | None:
    """How long a post takes to be everywhere (seconds); None if it is not after 20 s."""
    author = simulation.rng.randrange(len(simulation.nodes))
    text = f"written by {author} at {simulation.now}"
    simulation.post(author, text)
    return simulation.run_until(lambda: simulation.everywhere(text), 20.0, step=0.05)


def idle(simulation: BoardSimulation, seconds: float = IDLE_SECONDS) -> int:
    """How many messages about the board a mesh sends in that time in which nobody writes."""
    before = simulation.board_messages()
    simulation.run(seconds)
    return simulation.board_messages() - before


def written(simulation: BoardSimulation, entries: int, authors: int, begun: float, seconds: float) -> list[SignedEntry]:
    """Entries of the first `authors` nodes, spread over the time from `begun` (unix s)."""
    found = []
    each = entries // authors
    for index in range(authors):
        node = simulation.nodes[index]
        for seq in range(1, each + 1):
            moment = int((begun + seconds * (seq - 1 + index / authors) / each) * 1000)
            body = f"FINDING: number {seq} of node {index}: the test of the parser fails since the last merge"
            header = EntryHeader(
                node.mesh, node.id, 1, seq, moment, EntryKind.FINDING, "owner/repository", f"user-{index}", "codex",
                b"", (), "", 0, b"", len(body), body_hash(body.encode()),
            )  # fmt: skip
            data, signature = sign_entry(header)
            found.append(SignedEntry(header, data, signature, entry_id(data), body, moment))
    return found


def catch_up(nodes: int, missing: int = MISSING, *, seed: int = 1) -> CatchUp:
    """A node that was away while the others wrote `missing` entries comes back."""
    simulation = BoardSimulation(seed)
    simulation.add(nodes)
    authors = min(nodes - 1, 50)
    entries = written(simulation, missing // authors * authors, authors, BEGUN - 86_400, 86_300)
    certificates = [simulation.mesh_key.certify(simulation.nodes[index].id).data for index in range(authors)]
    for index in range(nodes - 1):
        board = simulation.boards[index] = SavedBoard()
        board.entries = {entry.id: entry for entry in entries}
        board.certificates = list(certificates)
        own = [entry for entry in entries if entry.header.author == simulation.nodes[index].id]
        if own:
            board.last_seq, board.last_time = own[-1].header.seq, own[-1].header.time
        ways = [simulation.nodes[random.Random(index).randrange(index)].way()] if index else []
        simulation.at(JOIN_SECONDS * index / nodes, simulation.start, index, ways)
    simulation.run(JOIN_SECONDS + SETTLE_SECONDS)
    back = simulation.nodes[nodes - 1]
    received, asked = 0, 0
    deliver = simulation._deliver

    def count(node: SimulatedNode, sender: object, link: object, message: object, size: int) -> None:
        nonlocal received
        if node is back and isinstance(message, BoardMessage):
            received += size
        deliver(node, sender, link, message, size)  # type: ignore[arg-type]

    def send(node: SimulatedNode, command: c.Send) -> None:
        nonlocal asked
        if node is back and isinstance(command.message, BoardWant):
            asked += 1
        simulation.send(node, command)

    simulation._deliver = count  # type: ignore[method-assign]
    simulation._hands[c.Send] = send
    simulation.counting = True
    simulation.start(back.index, [simulation.nodes[0].way()])
    board = simulation.boards[back.index]
    simulation.run_until(lambda: len(board.entries) >= len(entries), 60.0)
    asked_then = asked
    simulation.run(20.0)
    itself = sum(len(entry.data) + len(entry.signature) + entry.header.body_bytes for entry in entries)
    # One round trip compares the chains.
    return CatchUp(asked_then + 1, received / itself, len(board.entries) == len(entries))


def main(arguments: list[str]) -> int:
    """Measure at the size that was asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/sim board", description="The blackboard on virtual time.")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--missing", type=int, default=MISSING)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    gc.disable()
    console, begun = Console(), time.perf_counter()
    table = Table("figure", "value", "bar")
    with console.status("a mesh grows"):
        simulation = BoardSimulation(options.seed)
        simulation.grow(options.nodes)
    with console.status("posts spread"):
        took = [spread(simulation) for _ in range(3)]
        simulation.run(5.0)
        messages = idle(simulation)
    table.add_row("a post is everywhere", ", ".join("never" if t is None else f"{t:.2f} s" for t in took), "2 s")
    table.add_row("messages of an idle board", str(messages), "0")
    with console.status("a node comes back"):
        caught = catch_up(min(options.nodes, 50), options.missing, seed=options.seed)
    table.add_row("round trips to catch up", str(caught.round_trips), str(ROUND_TRIPS))
    table.add_row("bytes against the entries'", f"{caught.ratio:.3f}", str(BYTES_RATIO))
    console.print(table)
    console.print(f"{options.nodes} nodes, seed {options.seed}, {time.perf_counter() - begun:.0f} s of work")
    good = all(t is not None and t <= SPREAD_SECONDS for t in took) and messages == 0
    caught_up = caught.complete and caught.round_trips <= ROUND_TRIPS and caught.ratio <= BYTES_RATIO
    return 0 if good and caught_up else 1
