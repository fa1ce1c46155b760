"""Asks the nodes of the mesh for a model by its name, where neither the catalogue nor the hub can say what it is.

Law: this is done for names that a person gave, and for nothing else. What peers say by a name is believed only if all
who know the name mean the same bytes; if they differ, the person chooses. From then on the digests are what is fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from meshllm.errors import AmbiguousModel, BadMessage, LinkClosed, MeshError, UnknownModel
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.models.p2p.downloader import PeerNetwork, SwarmPeer
from meshllm.models.p2p.peer_connection import PeerConnection
from meshllm.tasks import Owner
from meshllm.wire.mesh import files as w

log = logging.getLogger(__name__)

# Peers that are asked at a time, each within so many seconds; one that is still reading its file is asked again.
MAX_REQUESTS: Final = 16
ANSWER_SECONDS: Final = 10.0
# How long a node that is just starting looks for its mesh before it is called unknown.
JOIN_SECONDS: Final = 15.0
# The longest a peer may take to read a file that nobody has asked for before: some 400 GB.
READING_SECONDS: Final = 600.0


async def find(
    network: PeerNetwork,
    name: str,
    *,
    sha256: str = "",
    ban: Callable[[SwarmPeer, str], None],
    tell: Callable[[str], None] = lambda words: None,
) -> Manifest:
    """The model that the nodes of the mesh have by that name; its (first) file has that sha256, where it is known.

    Raises UnknownModel where nobody has it, AmbiguousModel where they mean different models. `tell` hears, in words,
    what is waited for; `ban` of peers that talk nonsense.
    """
    owner = Owner("find", awaited=True)
    try:
        holders = await _peers_to_ask(network, name, owner)
        tasks = [owner.start(_ask(network, peer, name, tell), f"ask {peer}") for peer in holders]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await owner.close()
    offers: dict[tuple[str, ...], tuple[w.OfferedModel, list[SwarmPeer]]] = {}
    for peer, answer in zip(holders, answers, strict=True):
        if isinstance(answer, BadMessage):
            ban(peer, answer.message)
        elif isinstance(answer, MeshError | TimeoutError):
            log.info("%s was asked for %s: %s", peer, name, answer or "no answer in time")
        elif isinstance(answer, BaseException):
            raise answer
        else:
            for model in answer:
                if sha256 in ("", model.files[0].sha256):
                    offers.setdefault(_content(model), (model, []))[1].append(peer)
    return _agreed_manifest(name, list(offers.values()), len(holders))


async def _peers_to_ask(network: PeerNetwork, name: str, owner: Owner) -> list[SwarmPeer]:
    """Whom to ask; waits a while for a mesh that is still being looked for."""
    try:
        async with asyncio.timeout(JOIN_SECONDS):
            while not (found := list(network.holders(name))[:MAX_REQUESTS]) and network.settling:
                await owner.start(network.changed(), "news of the mesh")
    except TimeoutError:
        found = []
    return found


async def _ask(
    network: PeerNetwork, peer: SwarmPeer, name: str, tell: Callable[[str], None]
) -> tuple[w.OfferedModel, ...]:
    connection = PeerConnection()
    try:
        async with asyncio.timeout(READING_SECONDS):
            async with asyncio.timeout(ANSWER_SECONDS):
                await network.open(peer.id, lambda: connection)
            while True:
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await connection.find_models(name)
                if isinstance(answer, w.FoundModels):
                    return answer.models
                if answer.reason is not w.FileRefusalReason.PREPARING:
                    return ()
                tell(f"{peer} is reading its file ({answer.percent} %)")
                await asyncio.sleep(max(1, answer.wait))
    finally:
        connection.end(LinkClosed("It was hung up."))


def _content(model: w.OfferedModel) -> tuple[str, ...]:
    """What tells models apart: their bytes."""
    return tuple(file.sha256 for file in (*model.files, *((model.projector,) if model.projector is not None else ())))


def _agreed_manifest(name: str, offers: list[tuple[w.OfferedModel, list[SwarmPeer]]], asked: int) -> Manifest:
    if not offers:
        raise UnknownModel(
            f"No model is called {name[:128]!r} here, and none of {asked} other nodes has one."
            if asked
            else f"No model is called {name[:128]!r}, and there is no other node to ask for it.",
            advice="`mesh-llm download` lists the known ones.",
        )
    if len(offers) > 1:
        each = [
            f"{model.files[0].name} ({sum(file.size for file in model.files):,} bytes, sha256 "
            f"{model.files[0].sha256[:12]}...) at {', '.join(map(str, peers))}"
            for model, peers in offers
        ]
        raise AmbiguousModel(
            f"The nodes of the mesh mean different models by {name[:128]!r}.",
            advice=f"Rename all but one of them: {'; '.join(each)}.",
        )
    model, peers = offers[0]
    return Manifest(
        name=name,
        files=tuple(ModelFile(file.name, file.size, file.sha256) for file in model.files),
        projector=ModelFile(model.projector.name, model.projector.size, model.projector.sha256)
        if model.projector is not None
        else None,
        context_length=model.context_length,
        origin=f"the network: {', '.join(map(str, peers))}"[:500],
    )
