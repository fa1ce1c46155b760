"""Assembles a daemon from its parts, starts it, and stops it.

Order of a start: the home is locked, the API and the console listen, then the engine, models and the mesh are started,
so that a caller never finds a closed port while something is built, downloaded or loaded. `mesh_session` and its
imports (QUIC, TLS) are loaded last. A stop goes the other way.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from meshllm import __version__, paths
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.certificates import NO_RIGHTS, trust_domain
from meshllm.core.node import NodeCore
from meshllm.core.records import NodeId
from meshllm.core.snapshot import ModelOrigin, Snapshot
from meshllm.core.split.lease import Lease
from meshllm.daemon import demand_downloads, dropped_models, port_holder, sandbox_facts
from meshllm.daemon.alias_check import AliasCheck
from meshllm.daemon.attachments import Attachments
from meshllm.daemon.audit_log import AuditLog
from meshllm.daemon.board_start import BoardPart
from meshllm.daemon.change_log import ChangeLog
from meshllm.daemon.downloads import DownloadService
from meshllm.daemon.draft_selection import DraftRequest, draft_request
from meshllm.daemon.draft_stats import DraftStats
from meshllm.daemon.drains import Drains
from meshllm.daemon.home_watch import HomeWatch
from meshllm.daemon.loop_lag import LoopLag
from meshllm.daemon.message_counters import MessageCounters
from meshllm.daemon.node_loop import NodeLoop
from meshllm.daemon.open_ports import OpenPorts, open_ports
from meshllm.daemon.owner_models import OwnerModels
from meshllm.daemon.pidfile import HomeLock, new_token, owner_page
from meshllm.daemon.public_urls import KEY_VARIABLE, PublicUrls, api_key
from meshllm.daemon.settings import Settings
from meshllm.daemon.start_log import log_start
from meshllm.daemon.start_planner import StartPlanner
from meshllm.daemon.start_wishes import backend_keys, find_models, first_snapshot
from meshllm.daemon.stopping import Stopping, release_signals
from meshllm.daemon.supervisor import Supervisor
from meshllm.daemon.viewer import CLIENT_WITHOUT_MESH, Listening, Viewer
from meshllm.daemon.wall_clock import system_time
from meshllm.engine.build import builder
from meshllm.engine.processes import llama_server
from meshllm.errors import BadInvite, DamagedState, EnvironmentFailure, MeshError, PortTaken, unusable_file
from meshllm.models.catalog.entry import Wanted
from meshllm.models.library.store import Store
from meshllm.models.p2p.share_policy import Share
from meshllm.util.isolate import Isolation
from meshllm.util.threads import in_thread
from meshllm.web.console.invitation import Invitation, InviteWish
from meshllm.web.console.server import Console
from meshllm.web.gateway.gateway import Gateway
from meshllm.web.gateway.metrics import NodeCounters
from meshllm.web.gateway.request_log import RequestSummary
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.http.access_control import AccessPolicy
from meshllm.web.http.connections import raise_file_limit
from meshllm.web.http.key_guard import KeyGuard

if TYPE_CHECKING:
    from meshllm.daemon.file_sharing import FileSharing
    from meshllm.daemon.log_file import LogFile
    from meshllm.daemon.member_management import HomeState, MemberManagement
    from meshllm.daemon.mesh_session import MeshSession
    from meshllm.net.tunnels.rpc_tunnels import RpcTunnels
    from meshllm.web.console.split_status import LeaseTraffic
    from meshllm.web.console.status import NodeStatus, TargetLoad

log = logging.getLogger(__name__)

JOIN_AGAIN = "Then start this node again with it: mesh-llm --join INVITE"


class App:
    """A daemon. `run` it once; it returns when everything has stopped."""

    def __init__(
        self,
        settings: Settings,
        viewer: Viewer | None = None,
        log_file: LogFile | None = None,
        *,
        ends_process: bool = False,
    ) -> None:
        """`log_file` is started once this process holds the home; its owner closes it. `ends_process`: this process
        ends with the daemon, unless there are `next_settings`."""
        self._ends_process = ends_process
        self._settings = settings
        self._viewer = viewer or Viewer()
        self._log_file = log_file
        self._snapshot = Snapshot()
        self._listening = Listening("", "")
        self._isolation = Isolation()
        self._changes = ChangeLog()
        self._audit = AuditLog(settings.home)
        self._token = new_token()
        self._public_urls: PublicUrls | None = None
        self._session: MeshSession | None = None
        self._sharing: FileSharing | None = None
        self._rpc: RpcTunnels | None = None
        self._no_mesh_reason = "the mesh is not started yet"
        self._next: Settings | None = None
        self._stopping: Stopping | None = None
        self._failure: MeshError | None = None
        self._core: NodeCore | None = None

    async def run(self) -> None:
        """Start, serve until a stop is asked for, stop.

        Raises UsageError (bad models, backends or devices, home in use), DamagedState (a file of the home cannot be
        read) and PortTaken before anything is started; PortTaken, UsageError (invites to different meshes) and
        DamagedState when the mesh is started; BadInvite if the invite is void and there is nothing else to do.
        """
        settings = self._settings
        self._started = asyncio.get_running_loop().time()
        self._mailbox: asyncio.Queue[e.Event] = asyncio.Queue()
        wanted, keys = find_models(settings), backend_keys(settings)
        drafts = draft_request(settings, wanted, Store(paths.models()))
        self._sandboxing = await sandbox_facts.find(settings)
        self._planner = StartPlanner(
            settings.context, settings.max_memory, settings.devices, settings.threads, self._sandboxing
        )
        if settings.devices and (engine := builder.find()) is not None:
            # A wrong device name ends the start here, before anything is started.
            await self._planner.refresh_devices(engine)
        async with AsyncExitStack() as stack:
            lock = HomeLock(settings.home)
            # Last: a signal must not interrupt what ends the engine.
            stack.callback(lambda: release_signals(ignore=self._ends_process and self.next_settings is None))
            stack.callback(lock.release)
            if self._log_file is not None:
                self._log_file.start()
            self._audit.start()
            stack.callback(self._audit.close)
            log_start(settings)
            for notice in settings.notices:
                log.warning("%s", notice)
            sandbox_facts.log_start(self._sandboxing, settings)
            stack.callback(self._log_stop)
            raise_file_limit()
            try:
                supervisor = self._assemble(stack, wanted, keys, drafts)
            except OSError as error:
                raise DamagedState(
                    f"{error.filename or settings.home} cannot be used: {error.strerror or error}.",
                    advice="Make it readable and writable for this user, or set MESH_LLM_HOME to another folder.",
                ) from error
            await self._listen(wanted, lock)
            self._isolation.run("ending processes of an earlier daemon", supervisor.end_leftovers)
            self._request_models(wanted)
            await self._enter_mesh(supervisor)
            self._board.open(self._session, self._no_mesh_reason)
            if not settings.client:
                supervisor.observe()
            # What has been loaded stays: the collector need not look at it again in the middle of a request.
            gc.collect()
            gc.freeze()
            await self._run_core(supervisor)
        if self._watch.gone:
            raise EnvironmentFailure(
                f"The home {settings.home} was deleted or replaced while the node ran. Its key was there.",
                advice="Restore it from a backup, or start again with a new identity and an invite.",
            )
        if self._failure is not None:
            raise self._failure

    def _assemble(
        self, stack: AsyncExitStack, wanted: dict[str, Wanted | None], keys: dict[str, str], drafts: DraftRequest
    ) -> Supervisor:
        """Make the parts, and have `stack` close them in the reverse order. Raises DamagedState."""
        settings = self._settings
        key, self._key_place = self._api_key()
        guard = KeyGuard(lambda event, address: self._audit.write(event, address=address))
        policy = AccessPolicy(key, allowed_hosts=frozenset(settings.allowed_hosts), guard=guard)
        self._draft_stats = DraftStats(llama_server.draft_counts, self._tokens_written)
        # The gateway is made later.
        self._drains = Drains(
            lambda *it: self._gateway.is_busy(*it),  # noqa: PLW0108
            lambda *it: self._gateway.had_guest(*it),  # noqa: PLW0108
            self._is_working,
        )
        supervisor = self._supervisor = Supervisor(
            wanted,
            keys,
            settings.home,
            self._planner,
            self._post,
            drafts,
            self._sandboxing,
            settings.lease_cache,
            settings.chat_template,
            self._drains,
            settings.download_limit,
            self._drains if settings.save_prompts else None,
            dict(settings.declared_tools),
        )
        models = OwnerModels(settings, supervisor, self._post, lambda: self._snapshot, self._planner.machine)
        stack.push_async_callback(supervisor.close)
        stack.push_async_callback(self._leave_mesh)
        downloads = DownloadService(lambda: self._sharing)
        self._console = Console(
            policy,
            self.status,
            self._invite,
            requests=self._last_requests,
            download=downloads.download,
            members=self._members,
            models=lambda: models,
            token=self._token,
            audit=lambda event, fields: self._audit.write(event, **fields),
            attach=Attachments(lambda: self._stopping, ends=settings.until_detached).begin(stack).attach,
            board=lambda: self._board.board,
            mcp=lambda *it: self._board.mcp.exchange(*it),  # noqa: PLW0108
        )
        # The console is told of changes.
        self._board = BoardPart(settings, self._post, self._console.board_changed)
        stack.push_async_callback(self._console.close)
        stack.push_async_callback(self._board.mcp.close)
        stack.push_async_callback(self._draft_stats.close)
        self._gateway = Gateway(
            replace(policy, allowed_origins=frozenset(settings.allowed_origins), require_key=settings.require_key),
            keys,
            peers=self,
            on_dial=lambda model: self._post(e.ModelRequested(model)),
            on_loads=lambda loads: self._post(e.LoadsChanged(loads)),
            on_work=self._worked,
            on_requests=lambda counts: self._post(e.ModelsAsked(tuple(counts.items()))),
            draft_counts=self._draft_stats.counts,
            counters=self._counters,
            is_guest=self._is_guest,
            may_use=self._may_use,
            only_from=settings.only_from,
            aliases=dict(settings.aliases),
        )
        stack.push_async_callback(self._gateway.close)
        self._alias_check = AliasCheck(self._gateway.unknown_aliases)
        stack.callback(self._alias_check.close)
        self._stopping = Stopping(self._gateway, self._post, self._show, self._console.changed, stack)
        self.loop_lag = LoopLag()
        self.loop_lag.start()
        stack.callback(self.loop_lag.stop)
        self._stopping.handle_signals()
        self._watch = HomeWatch(settings.home, self._stopping.begin)
        stack.callback(self._watch.close)
        return supervisor

    async def _listen(self, wanted: dict[str, Wanted | None], lock: HomeLock) -> None:
        """Open the ports of the API and the console, and announce them. Raises PortTaken."""
        settings = self._settings
        # A caller that comes before the core has run gets "loading", not "unknown model".
        self._gateway.publish(first_snapshot(settings, wanted))
        ports = await open_ports(settings, self._gateway, self._console)
        self._gateway.page_at(ports.console)
        lock.announce(ports.api, ports.console, self._token)
        self._listening = self._urls(ports)
        log.info("listening", extra={"fields": {"api": self._listening.api, "console": self._listening.console}})
        self._show(lambda viewer: viewer.listening(self._listening))

    def _api_key(self) -> tuple[str | None, str]:
        """The key that other machines need and where it is kept; None if other machines may not call."""
        settings = self._settings
        if not (settings.listen_all or settings.allowed_hosts or settings.require_key):
            return None, ""
        key, path = api_key(settings.home)
        return key, f"${KEY_VARIABLE}" if path is None else str(path)

    def _urls(self, ports: OpenPorts) -> Listening:
        """The URLs of the API and the console."""
        port, console = ports.api, ports.console
        lan_urls: tuple[tuple[str, str], ...] = ()
        if self._settings.listen_all:
            found = self._public_urls = PublicUrls(self._settings.allowed_hosts, asyncio.get_running_loop().time)
            lan_urls = tuple((f"http://{host}:{port}/v1", f"http://{host}:{console}") for host in found.hosts())
        page = f"http://localhost:{console}"
        ollama = "" if ports.ollama is None else f"http://localhost:{ports.ollama}"
        secret = owner_page(page, self._token)
        return Listening(f"http://localhost:{port}/v1", page, self._key_place, lan_urls, secret, ollama)

    def _post(self, event: e.Event) -> None:
        self._mailbox.put_nowait(event)

    def _request_models(self, wanted: dict[str, Wanted | None]) -> None:
        """Pass the command line's models and backends to the core: the first model runs here, others in the mesh or,
        if no other node takes them, here as well."""
        settings = self._settings
        for number, (model, source) in enumerate(wanted.items()):
            unknown = source is None
            if settings.serve_all:
                self._post(e.ModelWanted(model, settings.split and not number, ModelOrigin.LOADED, unknown))
            elif number:
                self._post(e.MeshModelRequested(model, unknown))
            else:
                self._post(e.ModelWanted(model, settings.split, unknown=unknown))
        for backend in self._settings.backends:
            self._post(e.BackendAdded(backend.url))

    async def _enter_mesh(self, supervisor: Supervisor) -> None:
        """Start the mesh part, or say why the node runs without one. Raises as `run`."""
        settings = self._settings
        try:
            # In a thread: callers must not wait for imports and disks.
            session_type, sharing_type, rpc_type, home_state = await in_thread(
                lambda stop: _load(settings), "load the mesh"
            )
            self._session = session_type(
                settings,
                home_state,
                self._post,
                self._audit.write,
                lease_refusal=self._sandboxing.refusal,
                restart=lambda: self._restart("with a new key"),
                refused=self._invite_refused,
            )
            await self._session.begin(lambda peer: self._gateway.tunnel(peer.hex()))
        except DamagedState:
            raise
        except (EnvironmentFailure, OSError, ImportError) as error:
            if isinstance(error, PortTaken) and settings.bind_port:
                raise port_holder.explained(error, {port_holder.UDP: settings.bind_port}) from error
            if isinstance(error, OSError) and error.filename is not None:
                error = unusable_file(error)
            log.warning("running without a mesh: %s", error)
            if self._session is not None:
                await self._session.close()
                self._session = None
            self._show(lambda viewer: viewer.models_hint(rejoins=False))
            self._show_no_mesh(str(error))
            return
        self._no_mesh_reason = ""
        self._sharing = sharing_type(
            self._session,
            Store(paths.models()),
            self._is_working,
            share=Share(settings.share),
            rate=settings.upload_limit,
            on_digest=supervisor.refresh_files,
        )
        self._rpc = rpc_type(self._session)
        supervisor.join(self._sharing, self._rpc, self._session.config.node)
        rejoins = not (self._session.starts_alone or self._session.has_no_mesh)
        self._show(lambda viewer: viewer.models_hint(rejoins=rejoins))
        if self._session.has_no_mesh:
            self._show_no_mesh(CLIENT_WITHOUT_MESH)
        if self._session.starts_alone:
            self._show_invite()

    def _show_invite(self) -> None:
        if not self._viewer.shows_secrets:
            self._show(lambda viewer: viewer.invite_hint())
            return
        try:
            token = self._joined().invite_here(InviteWish()).text
        except MeshError as error:
            log.warning("no invite: %s", error)
            return
        self._show(lambda viewer: viewer.invite(token))

    async def _leave_mesh(self) -> None:
        await self._board.close()
        if self._sharing is not None:
            await self._sharing.close()
        if self._session is not None:
            await self._session.close()

    def _show_no_mesh(self, reason: str) -> None:
        self._no_mesh_reason = reason
        self._show(lambda viewer: viewer.no_mesh(reason))

    async def _run_core(self, supervisor: Supervisor) -> None:
        """Run the core until it has stopped everything."""
        session = self._session
        config = session.config if session is not None else None
        now, home = asyncio.get_running_loop().time(), self._settings.home
        dropped = await in_thread(lambda stop: dropped_models.load(home, now, system_time()), "dropped models")
        core = self._core = NodeCore(
            config,
            Random(),
            idle_unload=self._settings.idle_unload,
            dropped=dropped,
            corrections=session.corrections() if session is not None else (),
            on_demand=session.on_demand if session is not None else self._settings.loads_on_demand(founded=True),
            catalog=demand_downloads.CatalogSizes(),
            declared_tools=dict(self._settings.declared_tools),
        )

        def execute(command: c.Command) -> None:
            if not self._board.carry_out(command) and (session is None or not session.carry_out(command)):
                supervisor.carry_out(command)

        await NodeLoop(core, self._publish, self._mailbox, self._isolation).run(execute)

    def _invite_refused(self, reason: str) -> None:
        """The invite is void, which no retry changes. Go on in the mesh of before, if there is one, or with the models
        here; else end, with an error."""
        session, settings = self._session, self._settings
        if session is not None and session.knows_others:
            log.warning("The invite was refused: %s This node goes on in the mesh that it was in.", reason)
            self._restart("in the mesh that it was in")
        elif settings.models or settings.backends:
            log.warning("The invite was refused: %s This node serves its own models, and dials no more.", reason)
        elif self._stopping is not None and self._stopping.begin():
            self._failure = BadInvite(f"The invite was refused: {reason}", advice=JOIN_AGAIN)

    def _restart(self, how: str) -> None:
        """Stop as for a signal; the caller of `run` then starts another daemon with `next_settings`."""
        if self._stopping is not None and self._stopping.begin():
            ports = [urlsplit(url).port or 0 for url in (self._listening.api, self._listening.console)]
            # The invites have been used: this node is a member.
            self._next = replace(self._settings, port=ports[0], console=ports[1], invites=(), notices=())
            log.info("starting again %s", how)

    @property
    def next_settings(self) -> Settings | None:
        """What to start once this daemon has ended; None: nothing, as after a signal."""
        return None if self._stopping is None or self._stopping.signalled else self._next

    def _log_stop(self) -> None:
        uptime = asyncio.get_running_loop().time() - self._started
        log.info("stopped", extra={"fields": {"uptime_seconds": round(uptime, 1)}})

    def _publish(self, snapshot: Snapshot) -> None:
        """Give `snapshot` to each subscriber. One that raises is logged by name; the others still get it."""
        self._snapshot = snapshot
        run = self._isolation.run
        if (session := self._session) is not None:
            run("snapshot subscriber: mesh session", lambda: session.publish(snapshot.mesh))
        if (sharing := self._sharing) is not None:
            run("snapshot subscriber: file sharing", lambda: sharing.publish(snapshot.mesh))
        if (stopping := self._stopping) is not None:
            run("snapshot subscriber: stopping", lambda: stopping.publish(snapshot))
        run("snapshot subscriber: gateway", lambda: self._gateway.publish(snapshot))
        run("snapshot subscriber: draft stats", lambda: self._draft_stats.publish(snapshot))
        run("snapshot subscriber: change log", lambda: self._changes.publish(snapshot))
        run("snapshot subscriber: console", self._console.changed)
        self._show(lambda viewer: viewer.snapshot(snapshot))

    def _show(self, show: Callable[[Viewer], None]) -> None:
        """Show something on the terminal. A closed terminal or a full disk behind it must not end the daemon."""
        try:
            show(self._viewer)
        except OSError as error:
            self._viewer = Viewer()
            log.warning("the terminal cannot be written to (%s); no more output there", error.strerror or error)
        except Exception:
            self._viewer = Viewer()
            log.exception("the output on the terminal failed; no more output there")

    # -- what others ask for

    async def connect(self, peer: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseProtocol:
        """For the gateway: a connection into the gateway of a peer. Raises OSError."""
        if self._session is None:
            raise ConnectionError("this node is in no mesh")
        return await self._session.connect(peer, factory)

    def _tokens_written(self) -> None:
        """The engines here have written more."""
        split = {model.name for model in self._snapshot.models if model.split is not None}
        self._supervisor.update_speed(self._draft_stats.counts(), split)
        self._supervisor.measure_splits(self._draft_stats.current(), split)
        self._console.changed()

    def _worked(self) -> None:
        """Requests of the engines here began or ended."""
        self._drains.changed()
        self._draft_stats.refresh()

    def _is_working(self) -> bool:
        """Whether an engine here works on a request."""
        return any(load.active or load.waiting for load in self._gateway.loads())

    def _joined(self) -> MeshSession:
        """The node's part in its mesh. Raises EnvironmentFailure without a mesh."""
        if self._session is None:
            why = (self._no_mesh_reason or "it is just starting").rstrip(".")
            raise EnvironmentFailure(f"This node is in no mesh: {why}.")
        return self._session

    def _members(self) -> MemberManagement:
        return self._joined().members

    async def _invite(self, wish: InviteWish) -> Invitation:
        return await self._joined().invite(wish)

    def _last_requests(self) -> tuple[RequestSummary, ...]:
        """The last requests of the API, for the console."""
        return self._gateway.requests.snapshot()

    def status(self) -> NodeStatus:
        """The status of this node now."""
        # Loaded with the console's handlers.
        from meshllm.web.console.status import StartStatus, StatusInputs, node_status

        session, command, core = self._session, self._settings.command, self._core
        now = asyncio.get_running_loop().time()
        inputs = StatusInputs(
            snapshot=replace(self._snapshot, stopping=self._stopping is not None and self._stopping.begun),
            name=self._settings.node_name or socket.gethostname(),
            version=__version__,
            pid=os.getpid(),
            api=self._listening.api,
            console=self._listening.console,
            started=self._started,
            loads=[_target_load(queue) for queue in self._gateway.target_queues()],
            transports=session.vias() if session is not None else {},
            mesh_reason=self._no_mesh_reason,
            notices=(
                *self._settings.notices,
                *self._alias_check.notices,
                *(session.notices if session is not None else ()),
            ),
            sharing=self._sharing.status() if self._sharing is not None else None,
            machine=self._planner.machine(),
            drafts=self._draft_stats.counts(),
            traffic=self._traffic,
            lan_urls=self._lan_urls(),
            sandbox=sandbox_facts.status(self._sandboxing, self._settings),
            start=StartStatus(program=command.program, command=command.text, elsewhere=command.elsewhere),
            outlook=core.demand_outlook(now) if core is not None else None,
        )
        return node_status(inputs, now)

    def _counters(self) -> NodeCounters:
        """What the metrics show beside the snapshot."""
        session = self._session
        uploaded, downloaded = self._sharing.transferred() if self._sharing is not None else (0, 0)
        messages = session.message_counters if session is not None else MessageCounters()
        return NodeCounters(
            lanes=session.lanes() if session is not None else 0,
            loop_lag_seconds=self.loop_lag.worst(),
            messages=messages.messages,
            message_bytes=messages.bytes,
            rate_limited=messages.rate_limited,
            uploaded_bytes=uploaded,
            downloaded_bytes=downloaded,
        )

    def _is_guest(self, peer: str) -> bool:
        """Whether the requests of a peer (node id in hexadecimal) have a trust domain of their own."""
        node = NodeId(bytes.fromhex(peer))
        session = self._session
        return bool(trust_domain(node, session.members.rights_of(node) if session is not None else NO_RIGHTS))

    def _may_use(self, peer: str) -> bool:
        """Whether a peer (node id in hexadecimal) has the right to send requests."""
        return self._session is not None and self._session.may_use(NodeId(bytes.fromhex(peer)))

    def _lan_urls(self) -> tuple[str, ...]:
        """URLs of the console for other machines."""
        port = urlsplit(self._listening.console).port
        return () if self._public_urls is None else tuple(f"http://{host}:{port}" for host in self._public_urls.hosts())

    def _traffic(self, lease: Lease) -> Mapping[NodeId, LeaseTraffic]:
        """What the tunnels of a lease have carried."""
        from meshllm.web.console.split_status import LeaseTraffic

        tunnels = self._rpc
        found = tunnels.traffic((lease.session, lease.generation)) if tunnels is not None else {}
        return {peer: LeaseTraffic(t.sent, t.received, t.rate, t.transport) for peer, t in found.items()}


def _target_load(queue: TargetQueue) -> TargetLoad:
    """The load of a gateway target, for the status."""
    from meshllm.web.console.status import TargetLoad

    target = queue.target
    return TargetLoad(
        kind=target.kind,
        address=target.address,
        active=queue.active,
        waiting=queue.waiting,
        slots=queue.limit,
        model=target.model,
        tokens_per_second=queue.tokens_per_second,
    )


def _load(settings: Settings) -> tuple[type[MeshSession], type[FileSharing], type[RpcTunnels], HomeState]:
    """What the mesh takes, imported, and what the home says of it. Slow, and blocks."""
    from meshllm.daemon.file_sharing import FileSharing
    from meshllm.daemon.member_management import load_home_state
    from meshllm.daemon.mesh_session import MeshSession
    from meshllm.net.tunnels.rpc_tunnels import RpcTunnels

    return MeshSession, FileSharing, RpcTunnels, load_home_state(settings)
