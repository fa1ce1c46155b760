"""Kills a process that posts on a blackboard, again and again, and checks what is on the disk."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from meshllm.board.store import SqliteStore
from meshllm.wire.mesh.board import decode_header
from tests.board.board_samples import node

ROOT = Path(__file__).resolve().parent.parent.parent
# Entries of this age may have been removed by the process itself.
KEPT = 100


@dataclass(slots=True)
class Kills:
    """What happened: kills, posts that were acknowledged, and what must not be: posts lost, numbers used twice."""

    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    reused: int = 0


def kill_while_posting(home: Path, rounds: int, rng: Random, most_seconds: float = 0.4) -> Kills:
    """Post and kill in `rounds`, at random moments after the process has opened the board."""
    result, numbers = Kills(), dict[tuple[int, int], str]()
    for _ in range(rounds):
        acknowledged = _killed(home, rng.uniform(0.0, most_seconds))
        result.kills += 1
        result.acknowledged += len(acknowledged)
        store = SqliteStore(home / "board.db", decode_header)
        stored = store.open(node(1), 0.0)
        store.close()
        own = {entry.id.hex(): entry.header for entry in stored.entries if entry.header.author == node(1)}
        result.lost += sum(item not in own for item in acknowledged[-KEPT // 2 :])
        for item, header in own.items():
            result.reused += numbers.setdefault((header.epoch, header.seq), item) != item
            result.reused += header.epoch == stored.epoch and header.seq > stored.last_seq
    return result


def _killed(home: Path, seconds: float) -> list[str]:
    """The ids that a process had acknowledged when it was killed."""
    command = [sys.executable, "-m", "tests.daemon.board_poster", str(home)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == "open\n", "the process did not open the board"
        time.sleep(seconds)
        process.kill()
        lines = process.stdout.read().splitlines(keepends=True)
    return [line.strip() for line in lines if line.endswith("\n")]
