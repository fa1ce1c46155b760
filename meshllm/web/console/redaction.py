"""Redaction: the allow-list of status fields that a caller on another machine may see, and its application.

Invariants: a field that is not in PUBLIC is withheld. Paths, process ids, network addresses, session ids and error
texts are never public; an error text quotes the path or address that it is about.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pydantic.fields import FieldInfo

from meshllm.core.routing.routes import TargetKind
from meshllm.web.console.mesh_status import (
    AwayInfo,
    ClientInfo,
    DemandStatus,
    MeshStatus,
    NodePlanStatus,
    PeerInfo,
    ServedStatus,
)
from meshllm.web.console.request_status import AttemptStatus, RequestsAnswer, RequestStatus
from meshllm.web.console.split_status import ForecastStatus, SplitStatus, WorkerLeaseStatus, WorkerShareStatus
from meshllm.web.console.status import (
    BackendStatus,
    BannedStatus,
    DeviceStatus,
    EngineStatus,
    FileStatus,
    LoadStatus,
    MachineStatus,
    ModelStatus,
    NodeStatus,
    ProgressStatus,
    ServerStatus,
    SharingStatus,
    SpeculationStatus,
    TransferStatus,
)
from meshllm.web.console.status_model import StatusModel

WITHHELD: Final = "Details are visible on the node's own machine only."
# Paths, URLs, e-mail addresses and IP addresses inside a sentence.
_ADDRESS: Final = re.compile(r"[/\\@]|\d+\.\d+\.\d+\.\d+|[0-9A-Fa-f]*:[0-9A-Fa-f:]*:")


@dataclass(frozen=True, slots=True)
class Audience:
    """A caller on another machine: the URLs of the API and the console as it reaches them, and the names that stand for
    the URLs of backends."""

    api: str
    console: str
    backends: Mapping[str, str] = field(default_factory=dict)


Rule = Callable[[Any, Audience, Any], Any]
"""Makes the public value of a field from its value, the audience and the model that holds it."""

Model = TypeVar("Model", bound=StatusModel)


def _passed(value: Any, audience: Audience, owner: Any) -> Any:
    return value


def _hinted(text: str, audience: Audience, owner: Any) -> str:
    """Tells that there is a text, but not what it says."""
    return WITHHELD if text else ""


def _without_addresses(text: str, audience: Audience, owner: Any) -> str:
    """The text, unless it names a path or an address."""
    return WITHHELD if _ADDRESS.search(text) else text


def _kind_only(text: str, audience: Audience, owner: Any) -> str:
    """The first word of "backend URL", "remote ADDRESS"; "peer ID", "engine" and "local" as they are."""
    return text if text.startswith("peer ") else text.partition(" ")[0]


def _backend_name(url: str, audience: Audience, owner: Any) -> str:
    return audience.backends.get(url, "backend")


def _load_target(target: str, audience: Audience, load: LoadStatus) -> str:
    """A backend's URL is replaced; a model name and a node id are public."""
    return _backend_name(target, audience, load) if load.kind is TargetKind.BACKEND else target


def _fields(names: str, **rules: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), _passed) | rules


PUBLIC: Final[Mapping[type[StatusModel], Mapping[str, Rule]]] = {
    NodeStatus: _fields(
        "name version snapshot uptime_seconds stopping engine models backends load splits mesh sharing machine "
        "worker_lease",
        api=lambda value, audience, owner: audience.api,
        console=lambda value, audience, owner: audience.console,
        mesh_reason=_hinted,
        read_only=lambda value, audience, owner: True,
    ),
    EngineStatus: _fields("phase version progress", reason=_hinted),
    ProgressStatus: _fields("stage fraction"),
    ModelStatus: _fields("name purpose phase progress file engine restarts input_modalities", reason=_hinted),
    FileStatus: _fields("size architecture quantization context_length"),
    ServerStatus: _fields(
        "slots context_length memory memory_used memory_parts placement_text serving_seconds speculation"
    ),
    SpeculationStatus: _fields("kind draft_model draft_tokens accepted_tokens acceptance"),
    BackendStatus: _fields("healthy models", url=_backend_name, reason=_hinted),
    LoadStatus: _fields("active waiting slots kind model tokens_per_second", target=_load_target),
    MachineStatus: _fields("memory_total memory_available memory_limited offered cap devices"),
    DeviceStatus: _fields("name description backend memory_total memory_free shared used"),
    SplitStatus: _fields(
        "model generation committed forecast measured corrected considered shares",
        deviation=_without_addresses,
        reason=_without_addresses,  # the planner's own sentence, unless it quotes another node
    ),
    ForecastStatus: _fields("nodes seconds_per_token"),
    WorkerShareStatus: _fields("node name first layers memory memory_used phase rtt transport sent received rate"),
    WorkerLeaseStatus: _fields(
        "model host host_name generation phase first layers memory memory_used",
    ),
    MeshStatus: _fields(
        "node role phase incarnation wants clients peers memory memory_planned memory_used on_disk aliases client_list "
        "away demand plans",
        reason=_hinted,
    ),
    PeerInfo: _fields(
        "id name software status since_seconds linked rtt transport models wants memory memory_planned memory_used "
        "active waiting serves on_disk aliases"
    ),
    ClientInfo: _fields("id name since_seconds rtt"),
    AwayInfo: _fields("id name models seen_seconds"),
    DemandStatus: _fields(
        "model requests nodes wishes hosts loading active waiting obstacles", outlook=_without_addresses
    ),
    NodePlanStatus: _fields("node name act model seconds", text=_without_addresses),
    ServedStatus: _fields("name purpose context_length slots size active waiting input_modalities"),
    SharingStatus: _fields(
        "upload_enabled upload_limit uploaded_bytes uploads downloads banned", checks=lambda value, audience, owner: []
    ),
    TransferStatus: _fields("peer name what bytes rate transport"),
    BannedStatus: _fields("peer name", reason=_hinted),
    RequestsAnswer: _fields("requests"),
    RequestStatus: _fields(
        "id api path model node status outcome stream started_at queue_seconds first_byte_seconds duration_seconds "
        "prompt_tokens cached_tokens completion_tokens attempts",
        caller=_kind_only,
        target=_kind_only,
        error=_hinted,
    ),
    AttemptStatus: _fields(
        "number node started_seconds connect_seconds first_byte_seconds duration_seconds outcome",
        target=_kind_only,
        error=_hinted,
    ),
}
"""The public fields of each model. A model that is not listed has none."""


def redacted(model: Model, audience: Audience) -> Model:
    """`model` as `audience` may see it: public fields by their rules, all others blank."""
    rules = PUBLIC.get(type(model), {})
    values = {}
    for name, info in type(model).model_fields.items():
        rule = rules.get(name)
        values[name] = (
            _blank(info) if rule is None else _redacted(rule(getattr(model, name), audience, model), audience)
        )
    return type(model)(**values)


def redacted_status(status: NodeStatus, *, api: str, console: str) -> NodeStatus:
    """`status` for a caller on another machine that reaches the API and the console at these URLs."""
    backends = {backend.url: f"backend {number}" for number, backend in enumerate(status.backends, 1)}
    return redacted(status, Audience(api, console, backends))


def _redacted(value: Any, audience: Audience) -> Any:
    if isinstance(value, StatusModel):
        return redacted(value, audience)
    if isinstance(value, list):
        return [_redacted(item, audience) for item in value]
    return value


def _blank(info: FieldInfo) -> Any:
    """The value that stands for a withheld field: its default, null, or the empty value of its type."""
    if not info.is_required():
        return info.get_default(call_default_factory=True)
    kind: Any = info.annotation
    if isinstance(kind, types.UnionType) and types.NoneType in typing.get_args(kind):
        return None
    plain: Any = typing.get_origin(kind) or kind
    if plain in (str, int, float, bool, list, dict, tuple):
        return plain()
    raise TypeError(f"There is no blank value of {kind}: make the field public, nullable or give it a default.")
