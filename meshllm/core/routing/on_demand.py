"""The models that a node of the mesh would load for a request: which nodes could, and which one is asked. Pure.

Every node computes the same order (`placement.load_order`) from the records, so that requests which come to different
nodes at the same time make one node load the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from meshllm.core.ids import NodeId
from meshllm.core.records import NodeRecord
from meshllm.core.serving import fetching, placement

# Models of all nodes together that are listed as available.
MAX_AVAILABLE = 10_000


@dataclass(frozen=True, slots=True)
class Loader:
    """A node that may load models for requests. `owned`: it is one of the owner's own machines."""

    record: NodeRecord
    owned: bool


class Loaders:
    """The nodes that may load models for requests, by model. What they could load is collected when it is asked for: a
    mesh of a thousand nodes changes several times a second."""

    def __init__(self, loaders: Iterable[Loader] = ()) -> None:
        self._loaders = [loader for loader in loaders if loader.record.room or loader.record.loading]
        self._by_model: dict[str, list[Loader]] | None = None
        self._names: dict[str, None] = {}

    def __contains__(self, model: str) -> bool:
        return model in self._found

    def __iter__(self) -> Iterator[str]:
        """The names to list: one for each file of a node."""
        return iter(self._names if self._found else ())

    def of(self, model: str) -> Sequence[Loader]:
        """The nodes that could load `model`, or do."""
        return self._found.get(model, ())

    @property
    def _found(self) -> dict[str, list[Loader]]:
        if self._by_model is None:
            self._by_model = {}
            for loader in self._loaders:
                others = {alias for alias, _ in loader.record.aliases}
                for model in loader.record.on_disk:
                    if placement.may_load(loader.record, model):
                        if model not in self._by_model and len(self._by_model) >= MAX_AVAILABLE:
                            continue
                        self._by_model.setdefault(model, []).append(loader)
                        if model not in others:
                            self._names[model] = None
                for model in loader.record.loading:
                    if loader not in self._by_model.get(model, ()):
                        self._by_model.setdefault(model, []).append(loader)
        return self._by_model


def may_download(loaders: Iterable[Loader], model: str, catalog: Mapping[str, int]) -> bool:
    """Whether one of these living nodes downloads `model`, which none has in memory, if it is asked for."""
    found = list(loaders)
    if not any(loader.record.download_room for loader in found):
        return False
    owned = {loader.record.node for loader in found if loader.owned}
    return bool(fetching.downloaders([loader.record for loader in found], model, owned, catalog))


def ordered(loaders: Iterable[Loader], model: str) -> list[NodeId]:
    """The ids of the nodes that may load `model`, the first to be asked first."""
    found = list(loaders)
    owned = {loader.record.node for loader in found if loader.owned}
    return [record.node for record in placement.load_order([loader.record for loader in found], model, owned)]
