"""Output of a running daemon: lines and progress bars in a terminal, lines elsewhere, JSON objects for services.

Invariants: the live display runs only while something is built, downloaded or loaded.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

import orjson

from meshllm.cli.mesh_notices import MeshNotices, NoticeTone
from meshllm.cli.split_text import waiting, worker_news
from meshllm.core.serving import next_step
from meshllm.core.snapshot import EnginePhase, FilePhase, ModelPhase, ModelState, Snapshot
from meshllm.daemon.log_format import json_fields, utc_text
from meshllm.daemon.settings import StartCommand
from meshllm.daemon.viewer import Listening, Viewer
from meshllm.util.format import counted, gigabytes, printable, printable_json, printable_message
from meshllm.util.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

ENGINE_TASK = "engine"
CHECKING = "checking"
# A machine with containers has an address in each of their networks; the first ones are the most likely.
MAX_ADDRESSES = 2
# Without a terminal, progress is one line per step of this fraction.
PROGRESS_STEP = 0.1
IDLE = """This node serves no model. To serve one, start it with one of these:
  mesh-llm --model SmolLM2-135M-Instruct     a model by name (list them with
                                             `mesh-llm download`)
  mesh-llm --model ./model.gguf              a model file
  mesh-llm --backend http://localhost:8000   the models of another server
  mesh-llm --join INVITE                     join a mesh: use its models, and
                                             add this machine's memory"""
IDLE_REJOINS = """This node serves no model. It reconnects to its mesh, uses the models
there, and adds this machine's memory. To serve a model too,
start it with one of these:
  mesh-llm --model SmolLM2-135M-Instruct     a model by name (list them with
                                             `mesh-llm download`)
  mesh-llm --model ./model.gguf              a model file
  mesh-llm --backend http://localhost:8000   the models of another server"""
PLAIN = StartCommand()
STYLES = {
    NoticeTone.GOOD: "green",
    NoticeTone.PLAIN: "dim",
    NoticeTone.WARNING: "yellow",
    NoticeTone.BAD: "bold red",
}


def _progress(snapshot: Snapshot) -> dict[str, Progress]:
    """What is being built, downloaded or loaded now, by name."""
    running = {}
    if snapshot.engine.phase is EnginePhase.PREPARING:
        running[ENGINE_TASK] = snapshot.engine.progress or Progress(CHECKING)
    for model in snapshot.models:
        phase = next_step.phase(snapshot.engine, model)
        if next_step.download_failed(model):
            continue  # what it says would be the same at each attempt
        if model.file is FilePhase.FETCHING or phase in (ModelPhase.LOADING, ModelPhase.RESTARTING):
            running[model.name] = model.progress or Progress(CHECKING if _is_checked(model) else phase.value)
    return running


def _model_text(snapshot: Snapshot, model: ModelState) -> str:
    """A model's state in one line."""
    phase = next_step.phase(snapshot.engine, model)
    if next_step.download_failed(model):
        return f"cannot download {model.name}: {model.reason} {model.advice}".rstrip()
    if phase is ModelPhase.SERVING and (facts := model.server_facts) is not None:
        text = (
            f"serving {model.name} ({counted(facts.slots, 'request')} at a time, {facts.context_length:,} tokens each)"
        )
        return f"{text}: {facts.placement_text or gigabytes(facts.memory)}"
    reason = model.reason or (snapshot.engine.reason if snapshot.engine.phase is EnginePhase.FAILED else "")
    advice = model.advice or (snapshot.engine.advice if snapshot.engine.phase is EnginePhase.FAILED else "")
    told = phase in (ModelPhase.FAILED, ModelPhase.RESTARTING, ModelPhase.LOADING)
    stop = "" if reason.endswith((".", "!", "?")) else "."
    cause = f": {reason}{stop} {advice}".rstrip() if told and reason else ""
    return f"{CHECKING if _is_checked(model) else phase.value} {model.name}{cause}"


def _is_checked(model: ModelState) -> bool:
    """Whether no byte of the file is downloaded yet: a file on this disk is only read and checked."""
    verifying = model.progress is None or model.progress.stage == "verifying"
    return model.file is FilePhase.FETCHING and verifying and not next_step.download_failed(model)


class PlainConsole:
    """Writes lines to a file. Replaces rich's console, which takes 2 MB of memory, where there is no colour."""

    is_terminal = False

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def print(self, text: str, **_: object) -> None:
        """Write and flush one line."""
        self._out.write(f"{text}\n")
        self._out.flush()


class LineViewer(Viewer):
    """Writes a line for each change of a model, a backend or the mesh, and for each tenth of a progress."""

    def __init__(self, console: Console | PlainConsole, command: StartCommand = PLAIN, *, idle: bool = False) -> None:
        """`idle`: no model or backend was given, so show how to give one. Secrets are shown on a terminal only."""
        self.console = console
        self._command = command
        self._shows_secrets = console.is_terminal
        self._idle = idle
        self._shown: dict[str, str] = {}
        self._steps: dict[str, tuple[str, int]] = {}
        self._mesh = MeshNotices()

    @property
    def shows_secrets(self) -> bool:
        """Whether this is a terminal."""
        return self._shows_secrets

    def listening(self, listening: Listening) -> None:
        """Show the URLs."""
        self.console.print(f"API      {listening.api}", style="bold", highlight=False)
        if listening.ollama:
            self.console.print(f"Ollama   {listening.ollama}", highlight=False)
        # The page's URL holds a secret: in a log it would outlive the terminal. `mesh-llm console` prints it.
        page = listening.page if self._shows_secrets else listening.console
        self.console.print(f"Console  {page}", highlight=False, markup=False, soft_wrap=True)
        self._show_lan_urls(listening)

    def models_hint(self, *, rejoins: bool) -> None:
        """Show how to serve a model, if none was given."""
        if self._idle:
            text = (IDLE_REJOINS if rejoins else IDLE).replace("  mesh-llm ", f"  {self._command.program} ")
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _show_lan_urls(self, listening: Listening) -> None:
        """Show the URLs for other machines, and where the key for them is kept."""
        if not listening.key_place:
            return
        if not listening.lan_urls:
            text = f"Other machines need the key in {listening.key_place}"
            self.console.print(text, highlight=False, markup=False)
            return
        text = f"From other machines, with the key in {listening.key_place} (the console is read-only there):"
        self.console.print(text, highlight=False, markup=False)
        for api, console in listening.lan_urls[:MAX_ADDRESSES]:
            self.console.print(f"  API      {api}", highlight=False, markup=False)
            self.console.print(f"  Console  {console}", highlight=False, markup=False)

    def invite(self, token: str) -> None:
        """Show how to join this mesh. The command is alone on its line, so that it can be copied."""
        self.console.print("To add another machine to this mesh, run there:", highlight=False)
        self.console.print(
            f"\n  {self._command.elsewhere} --join {token}\n", highlight=False, markup=False, soft_wrap=True
        )
        self.console.print(
            f"If it has other users: {self._command.elsewhere} --join - and paste the invite.", highlight=False
        )

    def invite_hint(self) -> None:
        """Show how to get an invite."""
        program = self._command.program
        self._print(f"To add another machine to this mesh: '{program} invite' prints an invite for it.", "bold")

    def no_mesh(self, reason: str) -> None:
        """Show why this node runs without a mesh."""
        self._print(f"Running without a mesh: {reason}", "bold red")

    def stopping(self, answers: int, seconds: float) -> None:
        """Show what the stop waits for."""
        if answers:
            what = f"waiting up to {seconds:.0f} s for {counted(answers, 'answer')} to end."
            self._print(f"Stopping: {what} To end at once, press Ctrl-C again.", "yellow")
        else:
            self._print("Stopping.", "dim")

    def leaving_split(self, model: str, seconds: float) -> None:
        """Show what the stop waits for."""
        self._print(f"The host of {model} gets up to {seconds:.0f} s to end the answers that need this node.", "yellow")

    def answers_cut(self, answers: int) -> None:
        """Show what did not end."""
        self._print(f"{counted(answers, 'answer')} cut off by the stop.", "yellow")

    def snapshot(self, snapshot: Snapshot) -> None:
        """Show what changed."""
        for notice in [] if snapshot.mesh is None else self._mesh.changes(snapshot.mesh):
            self._print(notice.text, STYLES[notice.tone])
        for model in snapshot.models:
            phase = next_step.phase(snapshot.engine, model)
            # Between two files of a model there is no progress for a moment: no change to show.
            fetched = self._shown.get(f"model {model.name}") == f"{ModelPhase.FETCHING.value} {model.name}"
            if phase not in (ModelPhase.WAITING, ModelPhase.STOPPING) and not (fetched and _is_checked(model)):
                tone = ModelPhase.RESTARTING if next_step.download_failed(model) else phase
                self._show_change(f"model {model.name}", _model_text(snapshot, model), tone)
            if text := waiting(model):
                self._show_change(f"split {model.name}", f"{model.name}: {text}", phase)
        if text := worker_news(snapshot):
            self._show_change("worker lease", text)
        elif "worker lease" in self._shown:
            self._show_change("worker lease", "stopped serving layers for another node", ModelPhase.STOPPED)
        for backend in snapshot.backends:
            if backend.healthy:
                self._show_change(
                    f"backend {backend.url}", f"{backend.url} serves {', '.join(backend.models) or 'nothing'}"
                )
            elif backend.failures:
                self._show_change(
                    f"backend {backend.url}", f"{backend.url} does not answer: {backend.reason}", ModelPhase.FAILED
                )
        self.show_progress(_progress(snapshot))

    def show_progress(self, running: dict[str, Progress]) -> None:
        """Write a line for each tenth."""
        for name, progress in running.items():
            step = int((progress.fraction or 0.0) / PROGRESS_STEP)
            if not step and self._shown.get(f"model {name}", "").startswith(f"{progress.stage} "):
                continue  # the line about the model says as much
            if self._steps.get(name) != (progress.stage, step):
                self._steps[name] = (progress.stage, step)
                percent = "" if progress.fraction is None else f" {progress.fraction * 100:.0f}%"
                self._print(f"{name}: {progress.stage}{percent}", "dim")

    def _show_change(self, about: str, text: str, phase: ModelPhase = ModelPhase.SERVING) -> None:
        if self._shown.get(about) != text:
            self._shown[about] = text
            style = {ModelPhase.SERVING: "green", ModelPhase.FAILED: "bold red", ModelPhase.RESTARTING: "yellow"}
            self._print(text, style.get(phase, "dim"))

    def _print(self, text: str, style: str) -> None:
        """Print a line that may hold text of a model file, a peer or another server: it cannot control the terminal."""
        self.console.print(printable_message(text), style=style, highlight=False, markup=False)

    def close(self) -> None:
        """End the output."""


class LiveViewer(LineViewer):
    """The same lines, and below them a bar for each progress."""

    def __init__(self, console: Console, command: StartCommand = PLAIN, *, idle: bool = False) -> None:
        super().__init__(console, command, idle=idle)
        self._terminal = console
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def show_progress(self, running: dict[str, Progress]) -> None:
        """Draw the bars; remove the live display when there are none."""
        if not running:
            self.close()
            return
        from rich.markup import escape

        bars = self._bars or self._start()
        for name in [name for name in self._tasks if name not in running]:
            bars.remove_task(self._tasks.pop(name))
        for name, progress in running.items():
            if name not in self._tasks:
                self._tasks[name] = bars.add_task(name, total=1.0, detail="")
            stage = progress.stage.removeprefix("engine: ")
            bars.update(
                self._tasks[name],
                total=None if progress.fraction is None else 1.0,
                completed=progress.fraction or 0.0,
                description=f"{escape(printable(name))}: {printable(stage)}",
                detail=escape(printable(progress.detail[:50])),
            )

    def _start(self) -> Bars:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=self._terminal,
            transient=True,
            refresh_per_second=8,
        )
        self._bars.start()
        return self._bars

    def close(self) -> None:
        """Remove the bars."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()


class JsonViewer(Viewer):
    """Writes one JSON object per line, for services and log collectors."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown: dict[str, object] = {}
        self._mesh = MeshNotices()

    def listening(self, listening: Listening) -> None:
        """Write the URLs."""
        lan_urls = [console for _, console in listening.lan_urls]
        more = {"ollama": listening.ollama} if listening.ollama else {}
        self.write("listening", api=listening.api, console=listening.console, lan_urls=lan_urls, **more)

    def invite_hint(self) -> None:
        """Write the command that prints an invite: these lines end in log files, and an invite is a secret."""
        self.write("invite", command="mesh-llm invite")

    def no_mesh(self, reason: str) -> None:
        """Write why this node runs without a mesh."""
        self.write("no_mesh", reason=reason)

    def stopping(self, answers: int, seconds: float) -> None:
        """Write what the stop waits for."""
        self.write("stopping", answers=answers, seconds=seconds)

    def leaving_split(self, model: str, seconds: float) -> None:
        """Write what the stop waits for."""
        self.write("leaving_split", model=model, seconds=seconds)

    def answers_cut(self, answers: int) -> None:
        """Write what did not end."""
        self.write("answers_cut", answers=answers)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write what changed, without progress."""
        for notice in [] if snapshot.mesh is None else self._mesh.changes(snapshot.mesh):
            self.write(notice.event, **notice.fields)
        self._show_change("engine", engine=snapshot.engine.phase.value, reason=snapshot.engine.reason)
        for model in snapshot.models:
            phase = next_step.phase(snapshot.engine, model).value
            self._show_change("model", model=model.name, phase=phase, restarts=model.restarts, reason=model.reason)
        for backend in snapshot.backends:
            self._show_change(
                "backend",
                backend=backend.url,
                healthy=backend.healthy,
                models=list(backend.models),
                reason=backend.reason,
            )

    def _show_change(self, event: str, **fields: object) -> None:
        about = f"{event} {fields.get('model') or fields.get('backend') or ''}"
        if self._shown.get(about) != fields:
            self._shown[about] = fields
            self.write(event, **fields)

    def write(self, event: str, **fields: object) -> None:
        """Write one line."""
        entry = {"time": utc_text(datetime.now(UTC)), "event": event, **fields}
        self._out.write(printable_json(orjson.dumps(entry, default=str).decode()) + "\n")
        self._out.flush()

    def close(self) -> None:
        """End the output."""


class JsonLogHandler(logging.Handler):
    """Writes log records as lines of the same kind, event "log"."""

    def __init__(self, viewer: JsonViewer) -> None:
        super().__init__()
        self._viewer = viewer

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. A closed standard output must not raise in the code that logs."""
        try:
            fields = json_fields(record)
            del fields["time"]
            self._viewer.write("log", **fields)
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)
