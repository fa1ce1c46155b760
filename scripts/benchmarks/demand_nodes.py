"""Models and nodes for `scripts/bench demand`: files with the weights of one model, how long one takes to load, and the
engine processes of a node."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import psutil

from meshllm import paths
from tests.gguf_edit import with_value

from .children import owner_headers
from .mesh_nodes import Node, Nodes
from .native import BenchError
from .report import Bar

MODEL = "SmolLM2-135M-Instruct"
TIMEOUT_S = 120.0
# How exactly a state is timed; asking takes a daemon about a millisecond.
LOOK_S = 0.02
# How often the memory of the engine processes is read.
SAMPLE_S = 0.05


@dataclass(frozen=True)
class Part:
    """What a part of the measurement found: `rows` of a table, `bars`, `notes`, and `figures` for a program."""

    rows: list[list[str]]
    bars: list[Bar]
    notes: list[str]
    figures: dict[str, Any]


def weights() -> Path:
    """The file of the model on this disk. Raises BenchError without one."""
    found = sorted(paths.models().glob(f"{MODEL}*.gguf"))
    if not found:
        raise BenchError(f"{MODEL} is not on this disk; `mesh-llm download {MODEL}` fetches it")
    return found[0]


def folder_with_model(scratch: Path) -> Path:
    """A folder of models with that one under its own name."""
    folder = scratch / "models"
    folder.mkdir()
    shutil.copyfile(weights(), folder / weights().name)
    return folder


def folder_with_copies(scratch: Path, count: int) -> Path:
    """A folder with `count` models that have the same weights and another name in the header: other files, of which no
    two share pages or a digest."""
    folder = scratch / "copies"
    folder.mkdir()
    for number in range(count):
        name = f"copy-{number:02d}"
        with_value(weights(), folder / f"{name}.gguf", "general.name", name)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """What a node needs to have the models in `folder` on its disk, and no others, and to fetch none."""
    nowhere = str(folder.parent / "nowhere")
    return {
        "MESH_LLM_MODELS": str(folder),
        "HF_HOME": nowhere,
        "OLLAMA_MODELS": nowhere,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PIP_NO_INDEX": "1",
    }


def loaded(node: Node, model: str) -> bool:
    """Whether it has `model` in memory. Raises OSError while it does not answer."""
    return any(one["name"] == model and one["loaded"] for one in node.status()["models"])


def wait_until_loaded(node: Node, model: str) -> float:
    """When it had `model` in memory (monotonic)."""
    node.child.wait_for(f"{model} in memory", lambda: loaded(node, model), TIMEOUT_S, every=LOOK_S)
    return time.monotonic()


def wait_for_peers(node: Node, count: int) -> None:
    """Until it knows so many living nodes."""

    def there() -> bool:
        return sum(peer["status"] == "alive" for peer in node.peers()) >= count

    node.child.wait_for(f"{count} peers", there, TIMEOUT_S)


def owner_post(node: Node, path: str, body: dict[str, Any]) -> Any:
    """The owner's request to the console."""
    headers = {**owner_headers(node.home), "content-type": "application/json"}
    url = f"http://127.0.0.1:{node.console}{path}"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60) as answer:
        return json.load(answer)


def load_seconds(nodes: Nodes, folder: Path, model: str, times: int) -> float:
    """The median time from the owner's word to a fresh node until it has `model` in memory: the engine is looked for,
    the memory is planned, the process starts."""
    taken = []
    for _ in range(times):
        with ExitStack() as stack:
            node = nodes.start("alone", stack=stack, env=environment(folder))
            node.child.wait_for("status", node.status, TIMEOUT_S)
            begun = time.monotonic()
            owner_post(node, "/api/models/load", {"model": model})
            taken.append(wait_until_loaded(node, model) - begun)
    return median(taken)


def engines(node: Node) -> list[psutil.Process]:
    """Its llama-server processes now."""
    found = []
    for one in node.child.process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if one.name() == "llama-server":
                found.append(one)
    return found


def served_name(process: psutil.Process) -> str:
    """The model of an engine process. Raises psutil.Error."""
    words = process.cmdline()
    return words[words.index("--alias") + 1] if "--alias" in words else ""


@dataclass(slots=True)
class Seen:
    """An engine process as it was seen: its model, the most bytes of RAM that it took, and when it was gone first."""

    model: str
    most: int = 0
    gone: float | None = None


class EngineWatch:
    """Samples the engine processes of a node. `most`: the most bytes that all of them took at once, `together`: the
    largest number of them; of a process that is ending, what it still takes counts. Resident pages: those of
    the program and its libraries, some 16 MB, count for each process, though all share them."""

    def __init__(self, node: Node) -> None:
        self.most = 0
        self.together = 0
        self.samples = 0
        self.seen: dict[int, Seen] = {}
        self._node = node
        self._stop = Event()

    def sample(self) -> None:
        """Look once."""
        whole, alive = 0, set()
        for process in engines(self._node):
            with suppress(psutil.Error):
                name = served_name(process)
                if used := int(process.memory_info().rss):
                    known = self.seen.setdefault(process.pid, Seen(name))
                    known.most = max(known.most, used)
                    alive.add(process.pid)
                    whole += used
        for pid, known in self.seen.items():
            if pid not in alive and known.gone is None:
                known.gone = time.monotonic()
        count = len(alive)
        self.most, self.together, self.samples = max(self.most, whole), max(self.together, count), self.samples + 1

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.sample()

    @contextmanager
    def running(self) -> Iterator[EngineWatch]:
        """Sample in a thread of its own until the end of the block."""
        thread = Thread(target=self._watch)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()
