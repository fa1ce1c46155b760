"""Made-up meshes of up to 300 nodes, served by the daemon's own console server; the nodes come from a seed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from threading import Event, Thread

from meshllm.core.demand.levels import DemandLevel, keyed
from meshllm.core.demand.mesh_demand import DemandClaim
from meshllm.core.membership.views import ClientView, JoinPhase, MeshView, PeerStatus, PeerView
from meshllm.core.memory.devices import Device, MachineMemory
from meshllm.core.memory.fit_preview import FitOutlook
from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.records import MeshId, ModelLoad, NodeId, NodeRecord, PeerAddress, RecordVersion, Role, ServedModel
from meshllm.core.routing.routes import TargetKind
from meshllm.core.serving.demand_outlook import DemandOutlook, OwnSituation, outlook_of
from meshllm.core.serving.demand_placement import LoadingClaims
from meshllm.core.snapshot import (
    BackendState,
    EnginePhase,
    EngineState,
    FilePhase,
    ModelFacts,
    ModelState,
    Purpose,
    ServerFacts,
    ServerPhase,
    Snapshot,
)
from meshllm.core.split.host import SplitState
from meshllm.core.split.lease import Lease, LeasePhase, MemberState
from meshllm.core.split.measurement import MeasuredSplit
from meshllm.core.split.planner import SplitForecast, SplitPlan, WorkerShare
from meshllm.errors import MeshError
from meshllm.util.progress import Progress
from meshllm.web.console.downloads import DownloadEvent, DownloadExpected, DownloadRequest, DownloadStep
from meshllm.web.console.endpoints import CatalogModelFacts, DiskModelFacts, LibraryAnswer
from meshllm.web.console.invitation import Invitation, InviteWish
from meshllm.web.console.model_acts import LoadBegun
from meshllm.web.console.server import Console
from meshllm.web.console.split_status import LeaseTraffic
from meshllm.web.console.status import (
    NodeStatus,
    SharingStatus,
    StartStatus,
    StatusInputs,
    TargetLoad,
    TransferStatus,
    node_status,
)
from meshllm.web.console.status_model import TransportKind
from meshllm.web.gateway.request_log import AttemptSummary, Outcome, RequestSummary
from meshllm.web.http.access_control import AccessPolicy
from tests.console.staged_board import StagedBoard, filled

GB, MB = 10**9, 10**6
# Upper bound of a wait.
OPEN_WAIT_SECONDS = 60.0
MESH = MeshId(bytes.fromhex("6989ec9eacd6b822cdeb1c806dc611ec"))
HERE = NodeId(b"h" * 32)
WORDS = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath",
    "islet", "juniper", "kelp", "larch", "maple", "north", "ocean", "pine",
)  # fmt: skip
# Name, size in GB, context length.
MODELS = (
    ("Qwen3-8B-Q4_K_M", 4.7, 32768),
    ("Llama-3.3-70B-Instruct-Q4_K_M", 39.6, 32768),
    ("gemma-3-27b-it-Q4_0", 14.6, 32768),
    ("Qwen3-32B-Q4_K_M", 18.4, 32768),
    ("SmolLM2-135M-Instruct", 0.09, 8192),
    ("Mistral-Small-24B-Q4_K_M", 13.3, 32768),
)
# The token of the run of every Stage.
TOKEN = "token-of-the-stage"
HIDDEN_TOKEN = (
    "mesh2-AQABAgMEBQYHCAkKCwwNDg8AAQIDBAUGBwgJCgsMDQ4PAAAAAAAAAAA_a0nSAAHhM4AAAAAAAAAAAAAAAAAAAAAAABEAAXx_AAAB90mWEw"
)


def peer(number: int, rng: Random, now: float = 0.0) -> PeerView:
    """Node `number` of a mesh: every third serves a model, one in forty is suspect."""
    node = NodeId(hashlib.sha256(f"node {number}".encode()).digest())
    name = f"{WORDS[number % len(WORDS)]}{'' if number < len(WORDS) else f'-{number // len(WORDS)}'}"
    model, size, context = MODELS[number % len(MODELS)]
    serves = number % 3 == 0
    memory = int(max(size * 1.3, rng.choice((8, 16, 24, 48, 64))) * GB)
    record = NodeRecord(
        node=node,
        version=RecordVersion(3, 4),
        mesh=MESH,
        name=name,
        software="mesh-llm 0.1.0",
        addresses=(PeerAddress(f"192.0.2.{number % 250 + 1}", 41000 + number),),
        serves=(ServedModel(model, Purpose.GENERATE, context, 4, int(size * GB)),) if serves else (),
        on_disk=(model,) if number % 4 == 0 else (),
        memory=memory,
        planned=int(size * 1.4 * GB) if serves else 0,
        used=int(size * 1.1 * GB) if serves else 0,
    )
    status = (
        PeerStatus.SUSPECT if number % 40 == 7 else PeerStatus.UNVERIFIED if number % 40 == 23 else PeerStatus.ALIVE
    )
    linked = status is PeerStatus.ALIVE and (number < 30 or number % 5 == 0)
    loads = (ModelLoad(model, rng.randint(0, 4), 0),) if serves else ()
    return PeerView(record, status, linked, rng.uniform(0.0004, 0.04) if linked else None, loads, now - 60.0 * number)


def served(name: str, size: float, context: int, memory: float) -> ModelState:
    """A model that this node's engine serves."""
    facts = ModelFacts(f"/models/{name}.gguf", int(size * GB), "llama", context, "Q4_K_M", "sha256:0")
    server = ServerFacts(f"/run/{name}.sock", 4242, 4, context, int(memory * GB))
    state = ModelState(name, file=FilePhase.READY, facts=facts, server=ServerPhase.SERVING, server_facts=server)
    return replace(state, memory_used=int(memory * 0.8 * GB))


class StagedModels:
    """What the page asks of the node's models. `asked`: each act and its model; `problem`: what acts are refused with.

    A download reports one step, and goes on when `go` is set (in the thread of the console)."""

    def __init__(self, show: Callable[[str, str], None]) -> None:
        """`show`: called with each act that begins, and its model."""
        self.asked: list[tuple[str, str]] = []
        self.problem: MeshError | None = None
        self.go = asyncio.Event()
        self.stopped = Event()
        self._show = show

    async def load(self, text: str) -> LoadBegun:
        """Begin to load."""
        self._act("load", text)
        return LoadBegun(text, 1, serves=False)

    async def drop(self, text: str) -> str:
        """Drop."""
        self._act("drop", text)
        return text

    async def library(self) -> LibraryAnswer:
        """A model on the disk, and a catalogue."""
        disk = [DiskModelFacts(name="bge-m3", size=600 * MB)]
        catalog = [
            _listed("SmolLM2-135M-Instruct", 0.1, FitOutlook.FITS),
            _listed("Qwen3-32B", 19.8, FitOutlook.LESS_CONTEXT, context_length=8192),
            _listed("Llama-3.3-70B-Instruct", 42.5, FitOutlook.SPLIT, machines=3, percent=40),
        ]
        return LibraryAnswer(disk=disk, catalog=catalog)

    async def download(self, request: DownloadRequest, emit: Callable[[DownloadEvent], None]) -> tuple[str, ...]:
        """Download half, and the rest on `go`."""
        self._act("download", request.name)
        emit(DownloadExpected(files={"a.gguf": 4 * GB}))
        emit(DownloadStep(stage="downloading", file="a.gguf", source="amber", done=2 * GB, total=4 * GB))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        if self.problem is not None:
            raise self.problem
        return (request.name,)

    def _act(self, act: str, model: str) -> None:
        self.asked.append((act, model))
        if self.problem is not None and act != "download":
            raise self.problem
        self._show(act, model)


def _listed(name: str, size: float, fit: FitOutlook, **more: int) -> CatalogModelFacts:
    facts: dict[str, int] = {"context_length": 32768, "machines": 1, "percent": 0, **more}
    return CatalogModelFacts(
        name=name,
        size=int(size * GB),
        purpose=Purpose.GENERATE,
        vision=False,
        license="apache-2.0",
        fit=fit,
        on_disk=False,
        **facts,
    )


@dataclass
class Stage:
    """A console server in a thread, and the state that it serves. `show` changes the state from any thread."""

    snapshot: Snapshot = field(default_factory=Snapshot)
    name: str = "workbench"
    api: str = "http://localhost:9/v1"
    load: tuple[TargetLoad, ...] = ()
    transports: dict[NodeId, str] = field(default_factory=dict)
    machine: MachineMemory | None = None
    sharing: SharingStatus | None = None
    invite_problem: Exception | None = None
    drafts: dict[str, DraftCounts] = field(default_factory=dict)
    traffic: dict[NodeId, LeaseTraffic] = field(default_factory=dict)
    policy: AccessPolicy = field(default_factory=AccessPolicy)
    hosts: tuple[str, ...] = ("127.0.0.1", "::1")
    lan_urls: tuple[str, ...] = ()
    requests: tuple[RequestSummary, ...] = ()
    notices: tuple[str, ...] = ()
    start: StartStatus | None = None
    port: int = 0
    board: StagedBoard = field(default_factory=StagedBoard)

    def __post_init__(self) -> None:
        self.models = StagedModels(self._acted)

    def _acted(self, act: str, name: str) -> None:
        """A model is being loaded, or is gone."""
        others = tuple(model for model in self.snapshot.models if model.name != name)
        loading = Progress.at("loading", 0.4, "")
        if act == "load":
            self.show(replace(self.snapshot, models=(*others, ModelState(name, progress=loading))))
        elif act == "drop":
            self.show(replace(self.snapshot, models=others))

    def go_on(self) -> None:
        """Let downloads end."""
        self._loop.call_soon_threadsafe(self.models.go.set)

    def _outlook(self) -> DemandOutlook | None:
        mesh = self.snapshot.mesh
        if mesh is None or mesh.record is None:
            return None
        records = [mesh.record, *(view.record for view in mesh.peers if view.status is PeerStatus.ALIVE)]
        claims = [DemandClaim(record, record.node, owned=True) for record in records]
        return outlook_of(claims, LoadingClaims(), OwnSituation(free=False, asked=("Mixtral-8x22B-Q4_K_M",)), 0.0)

    def status(self) -> NodeStatus:
        """The status of the state."""
        inputs = StatusInputs(
            snapshot=self.snapshot,
            loads=self.load,
            name=self.name,
            version="0.1.0",
            pid=1,
            api=self.api,
            console=self.url,
            started=-7384.0,
            transports=self.transports,
            machine=self.machine,
            sharing=self.sharing,
            drafts=self.drafts,
            traffic=lambda lease: self.traffic,
            lan_urls=self.lan_urls,
            notices=self.notices,
            start=self.start,
            outlook=self._outlook(),
        )
        return node_status(inputs, 0.0)

    @property
    def url(self) -> str:
        """The URL of the page."""
        return f"http://localhost:{self.port}"

    async def _invite(self, wish: InviteWish) -> Invitation:
        if self.invite_problem is not None:
            raise self.invite_problem
        return Invitation(HIDDEN_TOKEN, int(1_800_000_000 + (wish.seconds or 86_400)))

    async def begin(self) -> None:
        """Listen."""
        self._loop = asyncio.get_running_loop()
        self._console = Console(
            self.policy,
            self.status,
            self._invite,
            requests=lambda: self.requests,
            token=TOKEN,
            models=lambda: self.models,
            download=self.models.download,
            board=lambda: self.board,
        )
        self.board.changed = lambda: self._loop.call_soon_threadsafe(self._board_changed)
        self.port = await self._console.start(self.hosts, self.port)

    def _board_changed(self) -> None:
        self._console.board_changed(str(len(self.board.posts)))

    async def end(self) -> None:
        """Stop listening."""
        self.board.changed = lambda: None
        await self._console.close()

    def show(self, snapshot: Snapshot) -> None:
        """Serve this snapshot from now on."""
        self.snapshot = replace(snapshot, version=self.snapshot.version + 1)
        self._loop.call_soon_threadsafe(self._console.changed)

    def peers(self, change: Callable[[tuple[PeerView, ...]], tuple[PeerView, ...]]) -> None:
        """Change the peers."""
        assert self.snapshot.mesh is not None
        mesh = replace(self.snapshot.mesh, peers=change(self.snapshot.mesh.peers))
        self.show(replace(self.snapshot, mesh=mesh))


@contextmanager
def staged(stage: Stage) -> Iterator[Stage]:
    """Run the server of `stage`."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="console", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(stage.begin(), loop).result(OPEN_WAIT_SECONDS)
        try:
            yield stage
        finally:
            asyncio.run_coroutine_threadsafe(stage.end(), loop).result(OPEN_WAIT_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def idle() -> Stage:
    """A node without models and peers."""
    mesh = MeshView(HERE, MESH, Role.NODE, record=NodeRecord(HERE, RecordVersion(1, 1), MESH, "workbench"))
    machine = MachineMemory(32 * GB, 27 * GB, known=True)
    return Stage(Snapshot(mesh=mesh), machine=machine)


def mesh_of(count: int, *, seed: int = 1) -> Stage:
    """A node that serves a model, in a mesh of `count` nodes."""
    rng = Random(seed)
    peers = tuple(peer(number, rng) for number in range(count - 1))
    record = NodeRecord(
        HERE,
        RecordVersion(1, 1),
        MESH,
        "workbench",
        on_disk=("Qwen3-8B-Q4_K_M", "bge-m3-Q8_0", "bge-m3"),
        aliases=(("bge-m3-Q8_0", "bge-m3"),),
        memory=56 * GB,
        serves=(ServedModel("Qwen3-8B-Q4_K_M", Purpose.GENERATE, 32768, 4, int(4.7 * GB)),),
        wants=("Llama-3.3-70B-Instruct-Q4_K_M",),
        demand=keyed([DemandLevel("Qwen3-8B-Q4_K_M", 4), DemandLevel("Mixtral-8x22B-Q4_K_M", 2)]),
    )
    mesh = MeshView(HERE, MESH, Role.NODE, JoinPhase.JOINED if peers else JoinPhase.ALONE, record=record, peers=peers)
    models = [served("Qwen3-8B-Q4_K_M", 4.7, 32768, 9.2)]
    backends: tuple[BackendState, ...] = ()
    if count > 2:
        fetching = Progress.at("downloading", 0.42, "5.6 of 13.3 GB, 88 MB/s")
        models.append(ModelState("Mistral-Small-24B-Q4_K_M", file=FilePhase.FETCHING, progress=fetching))
        backends = (BackendState("http://localhost:8000", True, ("gpt-oss-120b",), ""),)
    wants = ("DeepSeek-R1-0528-Q4_K_M",) if count > 2 else ()
    snapshot = Snapshot(
        engine=EngineState(EnginePhase.READY, version="llama.cpp 0c1e570"),
        models=tuple(models),
        backends=backends,
        mesh=replace(mesh, clients=_clients(3 if count > 2 else 0)),
        wants=wants,
    )
    linked = [view for view in peers if view.linked]
    transports = {view.node: "lane" if place % 3 else "quic" for place, view in enumerate(linked) if place % 4 != 3}
    card = Device("CUDA0", "NVIDIA RTX 4090", "CUDA", 24 * GB, 13 * GB)
    machine = MachineMemory(64 * GB, 39 * GB, devices=(card,), used=("CUDA0",), known=True)
    load = [_load(TargetKind.ENGINE, "/run/Qwen3-8B-Q4_K_M.sock", "", 1, 87.3)]
    for view in linked[:6]:
        for model in view.record.serves:
            load.append(_load(TargetKind.PEER, view.node.hex(), model.name, 0, rng.uniform(12, 90)))
    return Stage(snapshot, load=tuple(load), transports=transports, machine=machine, sharing=_sharing(peers))


def split_over(stage: Stage, committed: bool = True, plain: float = 0.118, text: str = "") -> Stage:
    """The same mesh, in which this node hosts a pipeline split with two workers. `plain`: its forecast without the
    correction; `text`: why the forecast is off."""
    assert stage.snapshot.mesh is not None
    workers = [view for view in stage.snapshot.mesh.peers if not view.record.serves and view.linked][:2]
    one, two = (view.node for view in workers)
    shares = (WorkerShare(HERE, 0, 34, 17 * GB), WorkerShare(one, 34, 26, 13 * GB), WorkerShare(two, 60, 20, 10 * GB))
    considered = (
        SplitForecast((HERE, one, two), 0.118),
        SplitForecast((HERE, two), 0.131),
        SplitForecast((HERE,), 2.4),
    )
    reason = "39.6 GB of weights do not fit into this node's 24.0 GB; the two nearest nodes have room for the rest"
    plan = SplitPlan(shares, 0.118, reason, considered, plain)
    name = "Llama-3.3-70B-Instruct-Q4_K_M"
    lease = Lease(b"s" * 16, 1, name, (), shares)
    phase = LeasePhase.COMMITTED if committed else LeasePhase.PREPARING
    detail = "" if committed else "loads its layers, 40 %"
    members = (MemberState(one, phase, detail), MemberState(two, phase))
    split = SplitState(reason, plan=plan, lease=lease, members=members, committed=committed)
    if committed:
        split = replace(split, measured=MeasuredSplit(0.121, 1000.0, text))
    model = replace(served(name, 39.6, 16384, 17.4), split=split)
    if not committed:
        model = replace(model, server=ServerPhase.NONE, server_facts=None)
    others = [other for other in stage.snapshot.models if other.file is FilePhase.READY]
    stage.snapshot = replace(stage.snapshot, models=(model, *others))
    stage.traffic = {
        one: LeaseTraffic(31 * MB, 29 * MB, 1840, "lane"),
        two: LeaseTraffic(22 * MB, 21 * MB, 1310, "lane"),
    }
    stage.transports = {**stage.transports, one: "lane", two: "lane"}
    return stage


def _clients(count: int) -> tuple[ClientView, ...]:
    names = ("laptop", "phone", "tablet")
    return tuple(
        [ClientView(NodeId(hashlib.sha256(name.encode()).digest()), name, -300.0, 0.004) for name in names[:count]]
    )


def _sharing(peers: tuple[PeerView, ...]) -> SharingStatus:
    # Two peers upload the model that is fetched, over both transports.
    downloads = [
        TransferStatus(
            peer=view.node.hex(),
            name=view.record.name,
            what="Mistral-Small-24B-Q4_K_M",
            bytes=(place + 2) * GB,
            rate=(62 - place * 40) * MB,
            transport=(TransportKind.LANE, TransportKind.QUIC)[place],
        )
        for place, view in enumerate(peers[:2])
    ]
    return SharingStatus(
        upload_enabled=True,
        upload_limit=None,
        uploaded_bytes=31 * GB,
        uploads=[],
        downloads=downloads,
        banned=[],
        checks=[],
    )


def _load(kind: TargetKind, address: str, model: str, active: int, speed: float) -> TargetLoad:
    return TargetLoad(kind, address, active, waiting=0, slots=4, model=model, tokens_per_second=round(speed, 1))


def with_requests(stage: Stage, count: int = 40, *, seed: int = 2) -> Stage:
    """The same node after `count` API requests, the newest first: most are answered, some fail over to a peer."""
    assert stage.snapshot.mesh is not None
    rng = Random(seed)
    serving = [view for view in stage.snapshot.mesh.peers if view.record.serves and view.linked]
    peer_ids = [view.node.hex()[:10] for view in serving] or ["0123456789"]
    stage.requests = tuple(_request(number, rng, peer_ids[number % len(peer_ids)]) for number in range(count))
    return stage


def with_board(stage: Stage, count: int = 9, *, numbered: bool = True) -> Stage:
    """The same node with a blackboard of `count` messages; the newest three are a thread."""
    filled(stage.board, count, numbered=numbered)
    return stage


def _request(number: int, rng: Random, peer_id: str) -> RequestSummary:
    queue = round(rng.uniform(0.0, 0.4), 3) if number % 3 == 0 else 0.0
    first_byte, stream = rng.uniform(0.08, 0.9), rng.uniform(0.5, 6.0)
    first = AttemptSummary(1, "engine", "", queue, 0.001, first_byte, first_byte + stream, Outcome.ANSWERED, "")
    attempts = [first]
    outcome, status, error = Outcome.ANSWERED, 200, ""
    if number % 7 == 1:
        failed = AttemptSummary(
            1, f"peer {peer_id}", peer_id, queue, 0.012, None, 0.6, Outcome.FAILED, "The tunnel to the peer was closed."
        )
        attempts = [failed, replace(first, number=2, started_seconds=queue + 0.62)]
    if number % 11 == 4:
        outcome, status, error = Outcome.FAILED, 502, "No target answered: the engine stopped."
        attempts = [replace(first, first_byte_seconds=None, duration_seconds=0.3, outcome=Outcome.FAILED, error=error)]
    last = attempts[-1]
    answered = outcome is Outcome.ANSWERED
    offset = last.started_seconds
    return RequestSummary(
        request_id=f"req_{hashlib.sha256(str(number).encode()).hexdigest()[:24]}",
        api=("openai", "anthropic", "openai", "ollama")[number % 4],
        path=("/v1/chat/completions", "/v1/messages", "/v1/chat/completions", "/api/chat")[number % 4],
        model=MODELS[0][0],
        caller="local" if number % 5 else f"peer {peer_id}",
        target=last.target,
        node=last.node,
        status=status,
        outcome=outcome,
        error=error,
        stream=True,
        started_at=1_790_000_000.0 - 17.0 * number,
        queue_seconds=queue,
        first_byte_seconds=offset + last.first_byte_seconds if last.first_byte_seconds is not None else None,
        duration_seconds=offset + (last.duration_seconds or 0.0),
        prompt_tokens=rng.randint(200, 9000) if answered else None,
        cached_tokens=rng.randint(0, 190) if answered else None,
        completion_tokens=rng.randint(20, 900) if answered else None,
        attempts=tuple(attempts),
    )
