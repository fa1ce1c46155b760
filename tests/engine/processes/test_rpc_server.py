"""The engine's RPC with our patches: real workers, a real host, and a relay that counts bytes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gguf
import psutil
import pytest

from meshllm import paths
from meshllm.engine.build import builder
from scripts.benchmarks.native import BenchError
from scripts.benchmarks.relay import Relay, connect
from scripts.benchmarks.split_nodes import Host, Scene, Worker, digest_of, disk_reads

pytestmark = pytest.mark.engine

PROMPT = "List the planets of the solar system and say one thing about each."
TOKENS = 40
HIDDEN = 576 * 4  # bytes of SmolLM2-135M's hidden state
LOGITS = 49152 * 4
GRAPHS = 150_000  # bytes; what a load sends beside weights takes less, the weights of one layer more
HELLO = 8 + 32 + 16 * 34  # bytes of what a worker says first


@pytest.fixture(scope="module")
def programs() -> Path:
    found = builder.find()
    if found is None:
        pytest.skip("the engine is not built (mesh-llm engine build)")
    return found.server.parent


@pytest.fixture(scope="module")
def model() -> Path:
    found = sorted(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    if not found:
        pytest.skip("the model is not here (mesh-llm download SmolLM2-135M-Instruct)")
    return found[0]


@pytest.fixture(scope="module")
def copy(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the model's file at another path and with another name."""
    path = tmp_path_factory.mktemp("other machine") / "my copy.gguf"
    shutil.copyfile(model, path)
    return path


@pytest.fixture(scope="module")
def parts(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same model in four files."""
    folder = tmp_path_factory.mktemp("parts")
    reader = gguf.GGUFReader(model)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture, split_max_tensors=70)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def scene(stack: ExitStack, programs: Path) -> Scene:
    return Scene(stack, programs)


@pytest.fixture(scope="module")
def solo(programs: Path, model: Path) -> str:
    """The text of a single node."""
    with ExitStack() as stack:
        return str(Scene(stack, programs).host(model).complete(PROMPT, TOKENS)["content"])


def text(host: Host) -> str:
    return str(host.complete(PROMPT, TOKENS)["content"])


# -- weights from the worker's own file


@pytest.mark.parametrize("way", ["mapped", "read"])
def test_worker_with_the_file_receives_no_weights(
    scene: Scene, stack: ExitStack, model: Path, copy: Path, solo: str, way: str
) -> None:
    worker = scene.worker(files=scene.list_of(copy))
    wire = stack.enter_context(Relay(worker.endpoint))
    options = ("--load-mode", "none") if way == "read" else ()
    host = scene.host(model, [wire.endpoint], *options, files=scene.list_of(model))
    assert wire.sent < GRAPHS
    assert text(host) == solo


def test_host_does_not_read_the_weights_of_the_worker(scene: Scene, copy: Path, tmp_path: Path) -> None:
    cold = tmp_path / "cold.gguf"
    shutil.copyfile(copy, cold)
    with cold.open("rb") as file:
        os.fsync(file.fileno())
        if not hasattr(os, "posix_fadvise"):
            pytest.skip("this system cannot forget a file")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    worker = scene.worker(files=scene.list_of(copy))
    host = scene.host(cold, [worker.endpoint], files=_list(scene, cold, copy))
    read = disk_reads(host.child)
    assert read is not None
    assert read < cold.stat().st_size * 0.7  # the embedding, its own, is 0.3 of this model; then the system reads ahead


def _list(scene: Scene, file: Path, same: Path) -> str:
    """A file list of `file` with the digest of its copy: computing it would read the file."""
    return scene.list_of(file, digest=digest_of(same))


def test_worker_loads_all_parts_of_a_split_file(
    scene: Scene, stack: ExitStack, parts: list[Path], tmp_path: Path, solo: str
) -> None:
    assert len(parts) == 4
    theirs = [shutil.copyfile(part, tmp_path / f"{number}.bin") for number, part in enumerate(parts)]
    workers = [scene.worker(files=scene.list_of(*theirs)) for _ in range(2)]
    wires = [stack.enter_context(Relay(worker.endpoint)) for worker in workers]
    host = scene.host(parts[0], [wire.endpoint for wire in wires], files=scene.list_of(*parts))
    assert all(wire.sent < GRAPHS for wire in wires)
    assert text(host) == solo


def test_weights_missing_on_the_worker_are_sent(
    scene: Scene, stack: ExitStack, parts: list[Path], model: Path, solo: str
) -> None:
    worker = scene.worker(files=scene.list_of(parts[1], parts[3]))
    wire = stack.enter_context(Relay(worker.endpoint))
    host = scene.host(parts[0], [wire.endpoint], files=scene.list_of(*parts))
    size = sum(part.stat().st_size for part in (parts[0], parts[2]))
    assert GRAPHS < wire.sent < size + GRAPHS
    assert text(host) == solo


@pytest.mark.parametrize("fault", ["changed", "other digest", "no list", "list without the file", "host has no list"])
def test_worker_refuses_a_changed_file(
    scene: Scene, stack: ExitStack, model: Path, copy: Path, tmp_path: Path, solo: str, fault: str
) -> None:
    theirs, mine = scene.list_of(copy), scene.list_of(model)
    if fault == "changed":
        changed = tmp_path / "changed.gguf"
        shutil.copyfile(copy, changed)
        theirs = scene.list_of(changed)
        with changed.open("r+b") as file:
            start = gguf.GGUFReader(copy).data_offset
            file.seek(start)
            file.write(bytes(copy.stat().st_size - start))
    elif fault == "other digest":
        theirs = scene.list_of(copy, digest="0" * 64)
    elif fault == "no list":
        theirs = ""
    elif fault == "list without the file":
        Path(theirs).write_text(Path(theirs).read_text().replace("my copy", "no copy"))
    else:
        mine = ""
    worker = scene.worker(files=theirs)
    wire = stack.enter_context(Relay(worker.endpoint))
    host = scene.host(model, [wire.endpoint], files=mine)
    assert wire.sent > model.stat().st_size / 2
    assert text(host) == solo
    if fault == "changed":  # what the host sent went into the worker's memory, not into its file
        assert not any(changed.read_bytes()[start:])


# -- what comes back


def test_worker_returns_hidden_state_not_logits(scene: Scene, stack: ExitStack, model: Path, copy: Path) -> None:
    wire = stack.enter_context(Relay(scene.worker(files=scene.list_of(copy)).endpoint))
    host = scene.host(model, [wire.endpoint], files=scene.list_of(model))
    text(host)
    before = wire.received
    text(host)
    assert HIDDEN <= (wire.received - before) / TOKENS < HIDDEN + 1024 < LOGITS


def test_loading_takes_few_round_trips(scene: Scene, stack: ExitStack, model: Path, copy: Path) -> None:
    wire = stack.enter_context(Relay(scene.worker(files=scene.list_of(copy)).endpoint, 0.02))
    scene.host(model, [wire.endpoint], "--no-warmup", files=scene.list_of(model))
    assert wire.connections == 1
    assert wire.turns < 6  # three, if nothing else holds up the host


def test_worker_sends_its_properties_first(scene: Scene) -> None:
    with connect(scene.worker().endpoint) as connection:
        assert len(connection.recv(HELLO, socket.MSG_WAITALL)) == HELLO


def test_graphs_are_sent_packed(scene: Scene, stack: ExitStack, model: Path, copy: Path) -> None:
    wire = stack.enter_context(Relay(scene.worker(files=scene.list_of(copy)).endpoint))
    host = scene.host(model, [wire.endpoint], files=scene.list_of(model))
    before = wire.sent
    host.complete("One.", 1)
    assert wire.sent - before < 50_000  # a graph of 1,290 tensors, of 296 bytes each


def test_host_ends_if_a_worker_cannot_allocate(scene: Scene, model: Path, copy: Path, solo: str) -> None:
    worker = scene.worker(files=scene.list_of(copy))
    process = worker.child.process
    if not hasattr(process, "rlimit"):
        pytest.skip("this system cannot limit another process")
    limits, room = process.rlimit(psutil.RLIMIT_AS), process.memory_info().vms + 2 * model.stat().st_size
    process.rlimit(psutil.RLIMIT_AS, (room, limits[1]))
    with pytest.raises(BenchError, match=r"ended with 1(?s:.*)failed to allocate(?s:.*)lost"):
        scene.host(model, [worker.endpoint], "--no-warmup", "--ctx-size", "32768", files=scene.list_of(model))
    process.rlimit(psutil.RLIMIT_AS, limits)
    assert text(scene.host(model, [worker.endpoint], files=scene.list_of(model))) == solo


# -- from worker to worker


class Chain:
    """Two workers and their host; the first worker pushes to the second over a separate relay."""

    def __init__(self, stack: ExitStack, scene: Scene, model: Path, copy: Path, delay: float = 0.0) -> None:
        files, push = scene.list_of(copy), scene.endpoint()
        self.second = scene.worker(files=files, push=push)
        self.between = stack.enter_context(Relay(push, delay))
        self.first = scene.worker(files=files, peers={"second": self.between.endpoint})
        self.wires = [stack.enter_context(Relay(each.endpoint)) for each in (self.first, self.second)]
        endpoints = [wire.endpoint for wire in self.wires]
        peers = dict(zip(("first", "second"), endpoints, strict=True))
        self.host = scene.host(model, endpoints, files=scene.list_of(model), peers=peers)


@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_workers_push_tensors_to_each_other(
    stack: ExitStack, scene: Scene, model: Path, copy: Path, solo: str, delay: float
) -> None:
    """The second worker waits for the push, however late it arrives."""
    chain = Chain(stack, scene, model, copy, delay)
    before, pushed = chain.wires[0].received, chain.between.sent
    assert text(chain.host) == solo
    assert chain.wires[0].received == before  # nothing at all comes back from the first
    assert (chain.between.sent - pushed) / TOKENS > HIDDEN
    long = chain.host.complete("The quick brown fox jumps over the lazy dog. " * 120, 4)
    assert long["timings"]["prompt_n"] > 1000  # several batches, which follow one another down the chain


@pytest.mark.parametrize("lacking", ["names", "a way", "a port"])
def test_tensors_go_through_the_host_without_a_push_port(
    scene: Scene, model: Path, copy: Path, solo: str, lacking: str
) -> None:
    files, push, nowhere = scene.list_of(copy), scene.endpoint(), scene.endpoint()
    second = scene.worker(files=files, push="" if lacking == "a port" else push)
    reach = nowhere if lacking == "a way" else push
    first = scene.worker(files=files, peers={} if lacking == "names" else {"second": reach})
    workers = [first.endpoint, second.endpoint]
    host = scene.host(model, workers, files=scene.list_of(model), peers={"second": second.endpoint})
    assert text(host) == solo


def test_two_devices_of_one_worker(scene: Scene, model: Path, copy: Path, solo: str) -> None:
    worker = scene.worker(files=scene.list_of(copy), devices="CPU,CPU")
    host = scene.host(model, [worker.endpoint], "--tensor-split", "15,16", files=scene.list_of(model))
    assert text(host) == solo


# -- losses


def killed_in_the_stream(host: Host, worker: Worker) -> dict[str, object]:
    """Kill a worker at the tenth token; returns the last event."""
    event: dict[str, object] = {}
    for number, event in enumerate(host.stream(PROMPT, 1000)):  # noqa: B007 (the last one is wanted)
        if number == 10:
            worker.child.process.kill()
    return event


@pytest.mark.parametrize("which", ["first", "second"])
def test_lost_worker_fails_the_request_and_others_survive(
    stack: ExitStack, scene: Scene, model: Path, copy: Path, solo: str, which: str
) -> None:
    chain = Chain(stack, scene, model, copy)
    event = killed_in_the_stream(chain.host, getattr(chain, which))
    assert event["error"] == {"code": 500, "message": "Compute error.", "type": "server_error"}
    assert "error" in chain.host.complete(PROMPT, 1)
    assert chain.host.child.process.is_running()
    chain.host.child.stop()
    survivor = chain.second if which == "first" else chain.first
    again = scene.host(model, [survivor.endpoint], files=scene.list_of(model))
    assert text(again) == solo


def test_broken_connection_counts_as_a_lost_worker(stack: ExitStack, scene: Scene, model: Path, copy: Path) -> None:
    chain = Chain(stack, scene, model, copy)
    chain.between.cut()
    assert "error" in chain.host.complete(PROMPT, TOKENS)


def test_host_does_not_start_without_its_worker(scene: Scene, model: Path) -> None:
    nobody = scene.endpoint()
    with pytest.raises(BenchError, match="no RPC server at"):
        scene.host(model, [nobody])


def test_host_ends_if_a_worker_dies_while_loading(stack: ExitStack, scene: Scene, model: Path) -> None:
    worker = scene.worker()
    wire = stack.enter_context(Relay(worker.endpoint))
    host = scene.start_host(model, [wire.endpoint])
    host.child.wait_for("weights on the wire", lambda: wire.sent > 1_000_000)
    worker.child.process.kill()
    with pytest.raises(BenchError, match=r"ended with 1(?s:.*)lost"):
        host.wait_until_healthy()


# -- hostile neighbours


def all_that_comes(connection: socket.socket) -> bytes:
    """The bytes received until the other side closes."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):  # it left something unread
        while data := connection.recv(4096):
            answer += data
    return answer


def test_worker_survives_invalid_messages(scene: Scene, model: Path, copy: Path, solo: str) -> None:
    push = scene.endpoint()
    worker = scene.worker(files=scene.list_of(copy), push=push)
    hello = struct.pack("<BQ", 14, 24) + bytes(24)
    allocate, set_tensor, graph, load, map_file, push_tensor = 0, 6, 10, 18, 19, 23
    entry = struct.pack("<QQIIIIIIQQ", 1, 2, 0, 1, 1, 1, 1, 0, 0, 0)
    for command, body in (
        (load, b""),
        (load, struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF)),
        (load, struct.pack("<II", 0, 1) + entry),
        (load, struct.pack("<II", 1, 1) + bytes(72) + entry),
        (map_file, b"short"),
        (map_file, struct.pack("<IQ64sQQQQ", 7, 1, b"0" * 64, 1, 0, 1, 1)),
        (push_tensor, bytes(320)),
        (255, b""),
        (allocate, struct.pack("<IQQ", 0, 64, 0)),  # buffers are numbered from 1
        (allocate, struct.pack("<IQQ", 0, 64, 1 << 60)),
        (set_tensor, bytes(12) + struct.pack("<Q", 1 << 46) + bytes(296 - 20 + 9) + b"somewhere"),
        (graph, b""),
        (graph, b"\0\1\1"),  # promises more than there is
        (graph, b"\0\xff\xff\xff\x7f\1"),
        (graph, b"\0" + b"\xff" * 12),
        (graph, b"\0\1\1\2\0\0"),  # a node that is no tensor
        (graph, b"\0\1\1\0\0\0"),
        (graph, b"\0\1\1\1\1\0"),  # a tensor like the one before the first
        (graph, b"\0\1\1\1\0\1\xa8\2x"),  # a byte after the end of a tensor
        (graph, b"\0\1\1\1\0\1\x7c\1"),  # made of one that does not come before it
        (graph, b"\0\1\1\1\0\0x"),
        (graph, b"\x63\1\1\1\0\0"),  # for a device that it does not have
    ):
        with connect(worker.endpoint) as connection:
            connection.sendall(hello + struct.pack("<BQ", command, len(body)) + body)
            answer = all_that_comes(connection)
        assert answer[8:9] == bytes([108])  # the version; a stock client or server ends here
        assert len(answer) == HELLO  # and nothing else
    with connect(push) as connection:
        connection.sendall(struct.pack("<Q", 12345))  # an unknown session
        assert connection.recv(10) == b"\0"
        assert connection.recv(10) == b""
    host = scene.host(model, [worker.endpoint], files=scene.list_of(model))
    assert text(host) == solo


def test_build_contains_the_rpc_patches(programs: Path) -> None:
    told = json.loads((programs.parent / "manifest.json").read_text())
    assert [name for name in told["info"]["patches"] if "rpc" in name] != []
