"""Files from peers: from honest ones, and from those that lie, stall, die or talk nonsense."""

from __future__ import annotations

from pathlib import Path

from swarm_rig import content_of, digests_of, rig


async def test_from_three_at_once(tmp_path: Path) -> None:
    content = content_of(40)
    async with rig(tmp_path) as place:
        for name in "abc":
            await place.giver(name, content)
        assembly = place.assembly(content)
        await place.swarm.source("Model").feed(assembly)
        assert assembly.complete
        assert assembly.path.read_bytes() == content
        assert assembly.expected == digests_of(content)
        assert len(assembly.by_source) == 3
        assert sum(giver.total for giver in place.givers) == len(content)
        assert place.swarm.banned == {}
        assert place.swarm.taken() == []
