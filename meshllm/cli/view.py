"""What a person sees of a running daemon: moving bars in a terminal, lines where there is none, JSON for services.

Law: showing costs nothing while nothing moves: the live display runs only while something is built, fetched or loaded.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

import orjson

from meshllm.cli.mesh_notices import MeshNotices, NoticeTone
from meshllm.cli.split_text import lent_news, waiting
from meshllm.core.serving import next_step
from meshllm.core.snapshot import EnginePhase, FilePhase, ModelPhase, ModelState, Snapshot
from meshllm.daemon.app import Listening, Viewer
from meshllm.util.format import gigabytes
from meshllm.util.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

ENGINE_TASK = "engine"
LOOKING = "looking for"
# A machine with containers has an address in each of their networks; the first are the likeliest.
MOST_ADDRESSES = 2
# A line that only tells how far something is comes at most this often, in steps of the fraction.
PLAIN_STEP = 0.1
IDLE = """Serving nothing. Start it with one of these to change that:
  mesh-llm --model SmolLM2-135M-Instruct     a model of those that
                                             `mesh-llm download` lists
  mesh-llm --model ./model.gguf              a model file
  mesh-llm --backend http://localhost:8000   what another server here serves
  mesh-llm --join INVITE                     lend this machine to a mesh, and
                                             use its models"""
STYLES = {NoticeTone.GOOD: "green", NoticeTone.PLAIN: "dim", NoticeTone.WORRYING: "yellow", NoticeTone.BAD: "bold red"}


def _moving(snapshot: Snapshot) -> dict[str, Progress]:
    """What is on its way now, by what it is."""
    moving = {}
    if snapshot.engine.phase is EnginePhase.PREPARING:
        moving[ENGINE_TASK] = snapshot.engine.progress or Progress("looking for it")
    for model in snapshot.models:
        phase = next_step.phase(snapshot.engine, model)
        if model.file is FilePhase.FETCHING or phase in (ModelPhase.LOADING, ModelPhase.RESTARTING):
            moving[model.name] = model.progress or Progress(LOOKING if _is_looked_for(model) else phase.value)
    return moving


def _words(snapshot: Snapshot, model: ModelState) -> str:
    """A model's state in one sentence."""
    phase = next_step.phase(snapshot.engine, model)
    if phase is ModelPhase.SERVING and (facts := model.server_facts) is not None:
        told = f"serving {model.name} ({facts.slots} x {facts.context_length} tokens of context)"
        return f"{told}: {facts.placement_text or gigabytes(facts.memory)}"
    reason = model.reason or (snapshot.engine.reason if snapshot.engine.phase is EnginePhase.FAILED else "")
    advice = model.advice or (snapshot.engine.advice if snapshot.engine.phase is EnginePhase.FAILED else "")
    told = f": {reason} {advice}".rstrip() if phase in (ModelPhase.FAILED, ModelPhase.RESTARTING) and reason else ""
    return f"{LOOKING if _is_looked_for(model) else phase.value} {model.name}{told}"


def _is_looked_for(model: ModelState) -> bool:
    """Whether nothing of it is on its way yet: its file may lie here already, and only be read to be sure of it."""
    return model.file is FilePhase.FETCHING and (model.progress is None or model.progress.stage == "verifying")


class PlainConsole:
    """Lines in a file, in the place of rich's console: that takes 2 MB, to no end where nothing has colour."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def print(self, text: str, **_: object) -> None:
        """One line, at once."""
        self._out.write(f"{text}\n")
        self._out.flush()


class LineViewer(Viewer):
    """Lines on a console: a model's every change of phase, a backend's coming and going, progress now and then."""

    def __init__(self, console: Console | PlainConsole, *, idle: bool = False) -> None:
        """`idle`: nothing was asked to be served, so say what could be."""
        self.console = console
        self._idle = idle
        self._said: dict[str, str] = {}
        self._steps: dict[str, tuple[str, int]] = {}
        self._mesh = MeshNotices()
        self._url = ""

    def listening(self, listening: Listening) -> None:
        """Where callers find us."""
        self._url = listening.api
        self.console.print(f"API      {listening.api}", style="bold", highlight=False)
        self.console.print(f"Console  {listening.console}", highlight=False)
        self._elsewhere(listening)
        if self._idle:
            self.console.print(IDLE, highlight=False, markup=False)

    def _elsewhere(self, listening: Listening) -> None:
        """Where others find us, and what they need."""
        if not listening.key_place:
            return
        if not listening.elsewhere:
            words = f"Callers from elsewhere need the key in {listening.key_place}"
            self.console.print(words, highlight=False, markup=False)
            return
        words = f"From other machines, with the key in {listening.key_place} (the console is read-only there):"
        self.console.print(words, highlight=False, markup=False)
        for api, console in listening.elsewhere[:MOST_ADDRESSES]:
            self.console.print(f"  API      {api}", highlight=False, markup=False)
            self.console.print(f"  Console  {console}", highlight=False, markup=False)

    def invite(self, token: str) -> None:
        """How others get in. The command is alone on its line, however long: it is there to be copied."""
        self.console.print("To let another machine into this node's mesh, run there:", highlight=False)
        self.console.print(f"\n  mesh-llm --join {token}\n", highlight=False, markup=False, soft_wrap=True)

    def alone(self, reason: str) -> None:
        """There is no mesh for this node."""
        self.console.print(f"This node goes on alone: {reason}", style="bold red", highlight=False, markup=False)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Say what is new."""
        for news in [] if snapshot.mesh is None else self._mesh.news(snapshot.mesh):
            self.console.print(news.words, style=STYLES[news.tone], highlight=False, markup=False)
        for model in snapshot.models:
            phase = next_step.phase(snapshot.engine, model)
            # Between two files of a model nothing is on its way for a moment: that is no news.
            fetched = self._said.get(f"model {model.name}") == f"{ModelPhase.FETCHING.value} {model.name}"
            if phase not in (ModelPhase.WAITING, ModelPhase.STOPPING) and not (fetched and _is_looked_for(model)):
                self._say(f"model {model.name}", _words(snapshot, model), phase)
            if words := waiting(model):
                self._say(f"split {model.name}", f"{model.name}: {words}", phase)
        if words := lent_news(snapshot):
            self._say("lent", words)
        elif "lent" in self._said:
            self._say("lent", "carries nothing for others any more", ModelPhase.STOPPED)
        for backend in snapshot.backends:
            if backend.healthy:
                self._say(f"backend {backend.url}", f"{backend.url} serves {', '.join(backend.models) or 'nothing'}")
            elif backend.failures:
                self._say(f"backend {backend.url}", f"{backend.url} is away: {backend.reason}", ModelPhase.FAILED)
        self.moving(_moving(snapshot))

    def moving(self, moving: dict[str, Progress]) -> None:
        """How far things are: a line per tenth."""
        for name, progress in moving.items():
            step = int((progress.fraction or 0.0) / PLAIN_STEP)
            if self._steps.get(name) != (progress.stage, step):
                self._steps[name] = (progress.stage, step)
                percent = "" if progress.fraction is None else f" {progress.fraction * 100:.0f}%"
                self.console.print(f"{name}: {progress.stage}{percent}", style="dim", highlight=False, markup=False)

    def _say(self, about: str, words: str, phase: ModelPhase = ModelPhase.SERVING) -> None:
        if self._said.get(about) != words:
            self._said[about] = words
            style = {ModelPhase.SERVING: "green", ModelPhase.FAILED: "bold red", ModelPhase.RESTARTING: "yellow"}
            self.console.print(words, style=style.get(phase, "dim"), highlight=False, markup=False)

    def close(self) -> None:
        """Nothing more will be shown."""


class LiveViewer(LineViewer):
    """The same lines, and below them a bar for each thing that is on its way."""

    def __init__(self, console: Console, *, idle: bool = False) -> None:
        super().__init__(console, idle=idle)
        self._terminal = console
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def moving(self, moving: dict[str, Progress]) -> None:
        """Draw the bars; take the display away when nothing moves."""
        if not moving:
            self.close()
            return
        from rich.markup import escape

        bars = self._bars or self._start()
        for name in [name for name in self._tasks if name not in moving]:
            bars.remove_task(self._tasks.pop(name))
        for name, progress in moving.items():
            if name not in self._tasks:
                self._tasks[name] = bars.add_task(name, total=1.0, detail="")
            stage = progress.stage.removeprefix("engine: ")
            bars.update(
                self._tasks[name],
                total=None if progress.fraction is None else 1.0,
                completed=progress.fraction or 0.0,
                description=f"{escape(name)}: {stage}",
                detail=escape(progress.detail[:50]),
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
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()


class JsonViewer(Viewer):
    """One JSON object a line, for services and their log collectors."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._said: dict[str, object] = {}
        self._mesh = MeshNotices()

    def listening(self, listening: Listening) -> None:
        """Where callers find us."""
        elsewhere = [console for _, console in listening.elsewhere]
        self.write("listening", api=listening.api, console=listening.console, elsewhere=elsewhere)

    def invite(self, token: str) -> None:
        """What is written here ends in log files, and an invite is a secret: say how to get it."""
        self.write("invite", command="mesh-llm invite")

    def alone(self, reason: str) -> None:
        """There is no mesh for this node."""
        self.write("alone", reason=reason)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Say what is new, without the progress of things."""
        for news in [] if snapshot.mesh is None else self._mesh.news(snapshot.mesh):
            self.write(news.event, **news.fields)
        self._say("engine", engine=snapshot.engine.phase.value, reason=snapshot.engine.reason)
        for model in snapshot.models:
            phase = next_step.phase(snapshot.engine, model).value
            self._say("model", model=model.name, phase=phase, restarts=model.restarts, reason=model.reason)
        for backend in snapshot.backends:
            self._say(
                "backend",
                backend=backend.url,
                healthy=backend.healthy,
                models=list(backend.models),
                reason=backend.reason,
            )

    def _say(self, event: str, **fields: object) -> None:
        about = f"{event} {fields.get('model') or fields.get('backend') or ''}"
        if self._said.get(about) != fields:
            self._said[about] = fields
            self.write(event, **fields)

    def write(self, event: str, **fields: object) -> None:
        """One line."""
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        self._out.write(orjson.dumps(entry, default=str).decode() + "\n")
        self._out.flush()

    def close(self) -> None:
        """Nothing to take away."""


class JsonLogHandler(logging.Handler):
    """Log records as lines of the same kind."""

    def __init__(self, viewer: JsonViewer) -> None:
        super().__init__()
        self._viewer = viewer

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        fields = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = logging.Formatter().formatException(record.exc_info)
        self._viewer.write("log", **fields)
