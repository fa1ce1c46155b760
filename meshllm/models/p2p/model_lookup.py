"""Looks up a model by name in the mesh, if neither the catalogue nor the hub knows it.

Invariants: only for names that the user gave, or of models on the owner's machines (`asks`). The result is used only if
all peers that know the name mean the same bytes; otherwise the user chooses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from meshllm.errors import AmbiguousModel, BadMessage, LinkClosed, MeshError, UnknownModel
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.models.p2p.downloader import PeerNetwork, SwarmPeer
from meshllm.models.p2p.peer_connection import PeerConnection
from meshllm.tasks import Owner
from meshllm.wire.mesh import files as w

log = logging.getLogger(__name__)

# Peers asked at once, each with this deadline; a peer that is hashing its file is asked again.
MAX_REQUESTS: Final = 16
ANSWER_SECONDS: Final = 10.0
# Seconds that a starting node waits for its mesh before the lookup fails.
JOIN_SECONDS: Final = 15.0
# Seconds that a peer may take to hash its file, enough for 400 GB.
READING_SECONDS: Final = 600.0


async def find(
    network: PeerNetwork,
    name: str,
    *,
    sha256: str = "",
    ban: Callable[[SwarmPeer, str], None],
    tell: Callable[[str], None] = lambda words: None,
    asks: Callable[[SwarmPeer], bool] = lambda peer: True,
) -> Manifest:
    """The manifest of the model of that name in the mesh; `sha256`: of its first file, if known.

    Raises UnknownModel if no peer has it, AmbiguousModel if peers mean different models. `tell` is called with progress
    texts, `ban` with peers that send invalid answers. Only peers that `asks` accepts are asked.
    """
    owner = Owner("find", awaited=True)
    try:
        holders = await _peers_to_ask(network, name, owner, asks)
        tasks = [owner.start(_ask(network, peer, name, tell), f"ask {peer}") for peer in holders]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await owner.close()
    offers: dict[tuple[str, ...], tuple[w.OfferedModel, list[SwarmPeer]]] = {}
    for peer, answer in zip(holders, answers, strict=True):
        if isinstance(answer, BadMessage):
            ban(peer, answer.message)
        elif isinstance(answer, MeshError | TimeoutError):
            log.info("asked %s for %s: %s", peer, name, answer or "no answer in time")
        elif isinstance(answer, BaseException):
            raise answer
        else:
            for model in answer:
                if sha256 in ("", model.files[0].sha256):
                    offers.setdefault(_content(model), (model, []))[1].append(peer)
    return _agreed_manifest(name, list(offers.values()), len(holders))


def verifiable_part(found: Manifest, source: Wanted | None) -> Manifest:
    """Of the mesh's files for a model of the catalogue only the first has a digest in the catalogue; what else a member
    names could be anything, a vision projector for instance, and is left out."""
    if not isinstance(source, CatalogEntry):
        return found
    return replace(found, files=found.files[:1], projector=None)


async def _peers_to_ask(
    network: PeerNetwork, name: str, owner: Owner, asks: Callable[[SwarmPeer], bool]
) -> list[SwarmPeer]:
    """The peers to ask; waits up to JOIN_SECONDS for a mesh."""
    try:
        async with asyncio.timeout(JOIN_SECONDS):
            while not (found := list(filter(asks, network.holders(name)))[:MAX_REQUESTS]) and network.settling:
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
                tell(f"{peer} is hashing its file ({answer.percent} %)")
                await asyncio.sleep(max(1, answer.wait))
    finally:
        connection.end(LinkClosed("The lookup ended."))


def _content(model: w.OfferedModel) -> tuple[str, ...]:
    """The digests of all files, which identify the content."""
    return tuple(file.sha256 for file in (*model.files, *((model.projector,) if model.projector is not None else ())))


def _agreed_manifest(name: str, offers: list[tuple[w.OfferedModel, list[SwarmPeer]]], asked: int) -> Manifest:
    if not offers:
        raise UnknownModel(
            f"No model is called {name[:128]!r}, and no other node of the mesh has it (asked {asked})."
            if asked
            else f"No model is called {name[:128]!r}, and there is no other node to ask.",
            advice="`mesh-llm download` lists the known models.",
        )
    if len(offers) > 1:
        each = [
            f"{model.files[0].name} ({sum(file.size for file in model.files):,} bytes, sha256 "
            f"{model.files[0].sha256[:12]}...) at {', '.join(map(str, peers))}"
            for model, peers in offers
        ]
        raise AmbiguousModel(
            f"Nodes of the mesh have different models called {name[:128]!r}.",
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
