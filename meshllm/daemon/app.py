"""Puts a daemon together and runs it: the only file that names the concrete classes of all rooms.

Order of a start: the home is claimed, the gateway and the console listen, and only then does any work begin, so that a
caller never finds a closed port while something is built, fetched or loaded. What the mesh takes (`membership.py`, with
all that it imports) is loaded after that. A stop goes the other way.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from meshllm import __version__, paths
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.views import JoinPhase, MeshView
from meshllm.core.node import NodeCore
from meshllm.core.records import MeshId, NodeId, Role
from meshllm.core.snapshot import ModelState, Snapshot
from meshllm.core.split.lease import Lease
from meshllm.daemon.draft_selection import draft_request
from meshllm.daemon.draft_stats import DraftStats
from meshllm.daemon.node_loop import NodeLoop
from meshllm.daemon.pidfile import HomeLock
from meshllm.daemon.public_urls import KEY_VARIABLE, PublicUrls, api_key
from meshllm.daemon.settings import Settings
from meshllm.daemon.start_planner import StartPlanner
from meshllm.daemon.supervisor import Supervisor
from meshllm.engine.build import builder
from meshllm.engine.processes import llama_server
from meshllm.errors import DamagedState, EnvironmentFailure, PortTaken, UnknownModel, UsageError
from meshllm.models.catalog.entry import Wanted
from meshllm.models.catalog.resolve import resolve
from meshllm.models.library import scan
from meshllm.models.library.local_model import from_path
from meshllm.models.library.store import Store
from meshllm.tasks import Owner
from meshllm.util.threads import in_thread
from meshllm.web.console.server import Console, Invitation
from meshllm.web.console.split_status import LeaseTraffic
from meshllm.web.console.status import NodeStatus, load_status, node_status
from meshllm.web.gateway.gateway import Gateway
from meshllm.web.http.access_control import AccessPolicy

if TYPE_CHECKING:
    from meshllm.daemon.file_sharing import FileSharing
    from meshllm.daemon.mesh_session import HomeState, MeshSession
    from meshllm.net.tunnels.rpc_tunnels import RpcTunnels

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")
# Answers in progress when the daemon is told to stop get this long to be completed (seconds).
ANSWER_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the daemon listens. Callers from elsewhere need the key that lies in `key_place` (empty: none may call),
    and find the API and the console at these pairs of URLs (none: how is not for this machine to know)."""

    api: str
    console: str
    key_place: str = ""
    elsewhere: tuple[tuple[str, str], ...] = ()


class Viewer:
    """What shows a person what happens. The methods are called on the event loop and must not block."""

    def listening(self, listening: Listening) -> None:
        """The API and the console answer."""

    def invite(self, token: str) -> None:
        """This node is alone in its mesh; `token` lets others in. A secret: for a person to read, never for a log."""

    def alone(self, reason: str) -> None:
        """This node cannot be part of a mesh and goes on alone."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """Something changed."""


def find_models(settings: Settings) -> dict[str, Wanted | None]:
    """What each `--model` means, by the name callers use; None: only the mesh can know, one that is joined or that was
    left with others in it. A node that has never seen another refuses a name that it does not know.

    Raises UnknownModel, InvalidModelFile, UsageError.
    """
    store = Store(paths.models())
    wanted: dict[str, Wanted | None] = {}
    for text in settings.models:
        try:
            found = resolve(text, folder=store.folder, disk=lambda: scan.scan(store))
        except UnknownModel as error:
            if "/" in text or text.casefold().endswith(".gguf"):
                raise
            if not settings.invites and not _knows_others(settings.home):
                raise
            log.warning("%s The mesh is asked for it. %s", error.message, error.advice)
            wanted[text.strip()] = None
            continue
        if found.note:
            log.warning("%s", found.note)
        source = found.wanted
        name = from_path(source, store).name if isinstance(source, Path) else source.name
        if name in wanted and wanted[name] != source:
            raise UsageError(f"Two different models are both called {name}.", advice="Rename one of the files.")
        wanted[name] = source
    return wanted


def _knows_others(home: Path) -> bool:
    """Whether the node of `home` has been in a mesh with others."""
    from meshllm.daemon.mesh_state import knows_others  # what the mesh takes is loaded once callers are served

    return knows_others(home)


def backend_keys(settings: Settings) -> dict[str, str]:
    """The keys of the backends, from the environment. Raises UsageError for a variable that is not set."""
    keys = {}
    for backend in settings.backends:
        if backend.key_variable:
            key = os.environ.get(backend.key_variable, "")
            if not key or not key.isascii() or not key.isprintable():
                raise UsageError(
                    f"The environment variable {backend.key_variable} holds no key for {backend.url}.",
                    advice=f"Set it: export {backend.key_variable}=...",
                )
            keys[backend.url] = key
    return keys


class App:
    """A daemon. `run` it once; it returns when everything has stopped and nothing of it is left."""

    def __init__(self, settings: Settings, viewer: Viewer | None = None) -> None:
        self._settings = settings
        self._viewer = viewer or Viewer()
        self._snapshot = Snapshot()
        self._listening = Listening("", "")
        self._reach: PublicUrls | None = None
        self._membership: MeshSession | None = None
        self._sharing: FileSharing | None = None
        self._rpc: RpcTunnels | None = None
        self._alone = "it has not been looked for yet"
        self._stops = 0

    async def run(self) -> None:
        """Raises UsageError (bad models, backends or devices, the home in use) and PortTaken before anything begins;
        and PortTaken, UsageError (invites to different meshes) and DamagedState when the mesh is looked for."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        self._started = loop.time()
        self._mailbox: asyncio.Queue[e.Event] = asyncio.Queue()
        wanted, keys = find_models(settings), backend_keys(settings)
        drafts = draft_request(settings, wanted, Store(paths.models()))
        self._fitter = StartPlanner(settings.context, settings.max_memory, settings.devices, settings.threads)
        if settings.devices and (engine := builder.find()) is not None:
            await self._fitter.refresh_devices(
                engine
            )  # a name that is wrong ends this now, not after everything has begun
        claim = HomeLock(settings.home)
        owner = Owner("daemon")
        hosts = EVERYWHERE if settings.listen_all else LOOPBACK
        key, key_place = self._key()
        policy = AccessPolicy(key, allowed_hosts=frozenset(settings.allowed_hosts))
        self._console = Console(policy, self.status, self._invite)
        self._acceptance = DraftStats(llama_server.draft_counts, self._written)
        self._gateway = Gateway(
            replace(policy, allowed_origins=frozenset(settings.allowed_origins)),
            keys,
            peers=self,
            on_dial=lambda model: self._post(e.ModelRequested(model)),
            on_loads=lambda loads: self._post(e.LoadsChanged(loads)),
            on_work=self._acceptance.refresh,
            draft_counts=self._acceptance.counts,
        )
        supervisor = self._supervisor = Supervisor(wanted, keys, settings.home, self._fitter, self._post, drafts)
        try:
            # Whoever calls before the core has looked at anything is told to wait, not that there is no such model.
            self._gateway.publish(_before(settings, wanted))
            port = await self._gateway.start(hosts, settings.port)
            console = await self._console.start(hosts, settings.console)
            self._gateway.page_at(console)
            claim.announce(port, console)
            self._listening = self._heard_at(port, console, key_place)
            self._show(lambda viewer: viewer.listening(self._listening))
            supervisor.end_leftovers()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._stop_wanted, self._post, owner)
            self._wish(wanted)
            await self._enter_mesh(supervisor)
            # What has been loaded stays: the collector need not look at it again in the middle of a request.
            gc.collect()
            gc.freeze()
            await self._live(supervisor)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            await owner.close()
            await self._gateway.close()
            await self._acceptance.close()
            await self._console.close()
            if self._sharing is not None:
                await self._sharing.close()
            if self._membership is not None:
                await self._membership.close()
            await supervisor.close()
            claim.release()

    def _key(self) -> tuple[str | None, str]:
        """The key of callers from elsewhere, and where it lies, in words; None where there are none."""
        settings = self._settings
        if not settings.listen_all and not settings.allowed_hosts:
            return None, ""
        key, path = api_key(settings.home)
        return key, f"${KEY_VARIABLE}" if path is None else str(path)

    def _heard_at(self, port: int, console: int, key_place: str) -> Listening:
        """Where this node can be called, for people."""
        elsewhere: tuple[tuple[str, str], ...] = ()
        if self._settings.listen_all:
            reach = self._reach = PublicUrls(self._settings.allowed_hosts, asyncio.get_running_loop().time)
            elsewhere = tuple((f"http://{host}:{port}/v1", f"http://{host}:{console}") for host in reach.hosts())
        return Listening(f"http://localhost:{port}/v1", f"http://localhost:{console}", key_place, elsewhere)

    def _post(self, event: e.Event) -> None:
        self._mailbox.put_nowait(event)

    def _wish(self, wanted: dict[str, Wanted | None]) -> None:
        """Tell the core what people asked for: the first model is served here, the others are the mesh's to serve."""
        for place, model in enumerate(wanted):
            self._post(e.MeshModelRequested(model) if place else e.ModelWanted(model, self._settings.split))
        for backend in self._settings.backends:
            self._post(e.BackendAdded(backend.url))

    async def _enter_mesh(self, supervisor: Supervisor) -> None:
        """Take part in the mesh, or say why not and go on alone."""
        settings = self._settings
        try:
            # In a thread: nobody who calls meanwhile shall wait for imports and disks.
            kind, share, tunnels, found = await in_thread(lambda stop: _load(settings), "load the mesh")
            self._membership = kind(settings, found, self._post)
            await self._membership.begin(lambda peer: self._gateway.tunnel(peer.hex()))
        except DamagedState:
            raise
        except (EnvironmentFailure, OSError, ImportError) as error:
            if isinstance(error, PortTaken) and settings.bind_port:
                raise
            log.warning("no mesh: %s", error)
            if self._membership is not None:
                await self._membership.close()
                self._membership = None
            self._say_alone(str(error))
            return
        self._alone = ""
        self._sharing = share(
            self._membership, Store(paths.models()), self._works, share=settings.share_models, rate=settings.share_rate
        )
        self._rpc = tunnels(self._membership)
        supervisor.join(self._sharing, self._rpc, self._membership.config.node)
        if self._membership.lost:
            self._say_alone("it is a client and knows no mesh. Start it with --join INVITE.")
        if not settings.client:
            supervisor.look_at_disk()
        if self._membership.looks_for_nobody:
            token = self._invite(0).text
            self._show(lambda viewer: viewer.invite(token))

    def _say_alone(self, reason: str) -> None:
        self._alone = reason
        self._show(lambda viewer: viewer.alone(reason))

    async def _live(self, supervisor: Supervisor) -> None:
        """Until the core says that all is done."""
        membership = self._membership
        core = NodeCore(membership.config if membership is not None else None, Random())

        def carry_out(command: c.Command) -> None:
            if membership is None or not membership.carry_out(command):
                supervisor.carry_out(command)

        await NodeLoop(core, self._publish, self._mailbox).run(carry_out)

    def _stop_wanted(self, post: Callable[[e.Event], None], owner: Owner) -> None:
        self._stops += 1
        if self._stops > 1:
            post(e.StopWanted())  # a second Ctrl-C: answers in progress are not waited for
            return

        async def stop() -> None:
            await self._gateway.close(ANSWER_GRACE_SECONDS)
            post(e.StopWanted())

        owner.start(stop(), "stop")

    def _publish(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        if self._membership is not None:
            self._membership.publish(snapshot.mesh)
        if self._sharing is not None:
            self._sharing.publish(snapshot.mesh)
        self._gateway.publish(snapshot)
        self._acceptance.publish(snapshot)
        self._console.changed()
        self._show(lambda viewer: viewer.snapshot(snapshot))

    def _show(self, what: Callable[[Viewer], None]) -> None:
        """Showing is a courtesy: a closed terminal or a full disk behind it must not end the daemon."""
        try:
            what(self._viewer)
        except Exception:
            self._viewer = Viewer()
            log.exception("nothing more is shown")

    # -- what others ask for

    async def connect(self, peer: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseProtocol:
        """For the gateway: a connection into the gateway of a peer. Raises OSError."""
        if self._membership is None:
            raise ConnectionError("this node is in no mesh")
        return await self._membership.connect(peer, factory)

    def _written(self) -> None:
        """The engines here have written more."""
        split = {model.name for model in self._snapshot.models if model.split is not None}
        self._supervisor.update_speed(self._acceptance.counts(), split)
        self._console.changed()

    def _works(self) -> bool:
        """Whether an engine here works on a request."""
        return any(load.active or load.waiting for load in self._gateway.loads())

    def _invite(self, seconds: float) -> Invitation:
        if self._membership is None:
            raise EnvironmentFailure(f"This node is in no mesh: {self._alone}.")
        return self._membership.invite(seconds)

    def status(self) -> NodeStatus:
        """The state of this node, now."""
        membership = self._membership
        return node_status(
            self._snapshot,
            [load_status(desk) for desk in self._gateway.target_queues()],
            name=self._settings.node_name or socket.gethostname(),
            version=__version__,
            pid=os.getpid(),
            api=self._listening.api,
            console=self._listening.console,
            started=self._started,
            now=asyncio.get_running_loop().time(),
            vias=membership.vias() if membership is not None else {},
            mesh_reason=self._alone,
            sharing=self._sharing.status() if self._sharing is not None else None,
            machine=self._fitter.machine(),
            guesses=self._acceptance.counts(),
            traffic=self._traffic,
            elsewhere=self._elsewhere(),
        )

    def _elsewhere(self) -> tuple[str, ...]:
        """Where other machines find the console."""
        port = urlsplit(self._listening.console).port
        return () if self._reach is None else tuple(f"http://{host}:{port}" for host in self._reach.hosts())

    def _traffic(self, lease: Lease) -> Mapping[NodeId, LeaseTraffic]:
        """What the tunnels of a lease have carried."""
        tunnels = self._rpc
        found = tunnels.traffic((lease.session, lease.generation)) if tunnels is not None else {}
        return {peer: LeaseTraffic(t.sent, t.received, t.rate, t.via) for peer, t in found.items()}


def _load(settings: Settings) -> tuple[type[MeshSession], type[FileSharing], type[RpcTunnels], HomeState]:
    """What the mesh takes, imported, and what the home says of it. Slow, and blocks."""
    from meshllm.daemon.file_sharing import FileSharing
    from meshllm.daemon.mesh_session import MeshSession, look_up
    from meshllm.net.tunnels.rpc_tunnels import RpcTunnels

    return MeshSession, FileSharing, RpcTunnels, look_up(settings)


def _before(settings: Settings, wanted: dict[str, Wanted | None]) -> Snapshot:
    """What callers may know before there is a core: the model is coming, and the mesh may bring more."""
    role = Role.CLIENT if settings.client else Role.NODE
    mesh = MeshView(NodeId(bytes(32)), MeshId(bytes(16)), role, JoinPhase.DIALLING)
    return Snapshot(models=tuple(ModelState(model) for model in list(wanted)[:1]), mesh=mesh, wants=tuple(wanted))
