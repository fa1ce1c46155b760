"""A process that posts on the blackboard of a home until it is killed: `python -m tests.daemon.board_poster HOME`.

It prints each message that was acknowledged, and retracts one of ten, so that it is killed while the file is written
again, too.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from meshllm.board.store import SqliteStore
from meshllm.core.board.service import PostWish
from meshllm.wire.mesh.board import decode_header
from tests.board.board_samples import SampleNode
from tests.daemon.small_board import SmallMesh


async def _post_on(home: Path) -> None:
    mesh = SmallMesh()
    board, core = await mesh.board(store=SqliteStore(home / "board.db", decode_header))
    print("open", flush=True)
    other = SampleNode(2)
    number = 0
    while True:
        number += 1
        answer = await board.post(PostWish(f"message {number} of process {core.seq} " + "x" * (number % 7 * 500)))
        print(answer.post.id, flush=True)
        core.take([other.write(int(mesh.now() * 1000), f"theirs {core.epoch} {core.seq} {number}")])
        if number % 10 == 0:
            await board.retract(answer.post.id)
        if len(core.entries) > 200:  # the oldest expire
            core.remove(*list(core.entries)[:50])


if __name__ == "__main__":
    asyncio.run(_post_on(Path(sys.argv[1])))
