"""Attacks of a hostile host on a real rpc-server: it refuses them, lives on, and serves the next host."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from meshllm.engine.build import builder
from scripts.benchmarks.split_nodes import Scene, Worker
from tests.engine.processes.rpc_wire import F16, F32, GRAPH_COMPUTE, I32, Q8_0, Hostile, Tensor, graph

pytestmark = pytest.mark.engine

LEASE = 16 << 20
MARGIN = 64 << 20
BUFFER = 1 << 20
# Of enum ggml_op in the pinned source.
OPS = 103
ADD, MUL_MAT, GET_ROWS, SET_ROWS, ARGSORT = 2, 29, 40, 42, 71
POINTER = struct.pack("<8Q", *[0x4141414141414141] * 8)


@pytest.fixture(scope="module")
def programs() -> Path:
    found = builder.find()
    if found is None:
        pytest.skip("the engine is not built (mesh-llm engine build)")
    return found.server.parent


@pytest.fixture(scope="module")
def worker(programs: Path) -> Iterator[Worker]:
    with ExitStack() as stack:
        yield Scene(stack, programs).worker(memory=LEASE)


def runs(worker: Worker) -> bool:
    return worker.child.process.status() != psutil.STATUS_ZOMBIE


def is_alive(worker: Worker) -> bool:
    """Whether the process runs and serves a new connection."""
    with Hostile(worker.endpoint) as next_host:
        return next_host.is_served() and runs(worker)


def refused(worker: Worker, *tensors: Tensor, nodes: tuple[int, ...] | None = None) -> bool:
    """Whether the worker closes the connection because of a graph."""
    with Hostile(worker.endpoint) as host:
        assert host.allocate(1, BUFFER)
        host.send(GRAPH_COMPUTE, graph(*tensors, nodes=nodes))
        return not host.is_served()


@pytest.mark.parametrize("op", range(OPS + 1))
def test_function_pointer_in_parameters_of_any_operation(worker: Worker, op: int) -> None:
    operands = [Tensor((8, 4), offset=4096 * i) for i in range(3)]
    refused(worker, *operands, Tensor((8, 4), op, src=(1, 2, 3), params=POINTER, offset=65536))
    assert is_alive(worker)


@pytest.mark.parametrize("op", [OPS, 500, 5000, 2**31, 2**32 - 1])
def test_unknown_operation_is_refused(worker: Worker, op: int) -> None:
    assert refused(worker, Tensor((8,)), Tensor((8,), op, src=(1,), offset=4096))
    assert is_alive(worker)


def made_up_graphs(op: int) -> Iterator[tuple[Tensor, ...]]:
    """Graphs of one node whose shapes, types and sources do not fit."""
    shapes = [(8, 4), (7,), (1, 1, 1, 1), (64, 64, 2), (4096, 1), (0, 4)]
    for shape, n_sources in itertools.product(shapes, (0, 1, 2, 7)):
        kinds = (F32, I32, F16, F32, Q8_0)
        sources = [
            Tensor(shape[::-1] if i % 2 else shape, type=kinds[(i + n_sources) % 5], offset=65536 * i)
            for i in range(n_sources)
        ]
        node = Tensor(shape, op, src=tuple(range(1, n_sources + 1)), offset=4096, params=bytes([n_sources]))
        yield (*sources, node)


@pytest.mark.parametrize("op", range(OPS))
def test_made_up_shapes(worker: Worker, op: int) -> None:
    for tensors in made_up_graphs(op):
        refused(worker, *tensors)
        assert runs(worker), tensors
    assert is_alive(worker)


@pytest.mark.parametrize("op", range(OPS))
def test_steps_from_row_to_row_that_are_not_even(worker: Worker, op: int) -> None:
    """Rows lie far from each other within a matrix, and close across matrices: a kernel that goes through all rows by
    the step of the first two reads 80 GB beyond the buffer."""
    shape, strides = (1, 2, 50_000), (4, 800_000, 4, 4)
    for n_sources, parameters in itertools.product((1, 2, 3), (b"", struct.pack("<2f", -1.0, 1.0))):
        sources = [Tensor(shape, strides=strides) for _ in range(n_sources)]
        node = Tensor(shape, op, src=tuple(range(1, n_sources + 1)), params=parameters, buffer=2)
        with Hostile(worker.endpoint) as host:
            assert host.allocate(1, BUFFER)
            assert host.allocate(2, BUFFER)
            host.send(GRAPH_COMPUTE, graph(*sources, node))
            host.is_served()
        assert runs(worker), (n_sources, parameters)
    assert is_alive(worker)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor((8,), data=0x414141414141),
        Tensor((8,), offset=BUFFER),
        Tensor((8,), offset=BUFFER - 4),
        Tensor((8,), offset=-4),
        Tensor((8,), buffer=77),
        Tensor((8,), type=5000),
        Tensor((8,), type=4),
        Tensor((7,), type=Q8_0),
        Tensor((2**31, 2**31, 2**31, 2**31)),
        Tensor((4, 4), strides=(4, 2**32 - 4, 4, 4)),
        Tensor((4,), offset=1),
        Tensor((2**20,), strides=(0, 0, 0, 0)),
    ],
    ids=str,
)
def test_tensor_outside_of_its_buffer_is_refused(worker: Worker, tensor: Tensor) -> None:
    assert refused(worker, tensor, Tensor((8,), ADD, src=(1, 1), offset=4096))
    with Hostile(worker.endpoint) as host:
        assert host.allocate(1, BUFFER)
        assert host.get(tensor, 32) is None
    with Hostile(worker.endpoint) as host:
        assert host.allocate(1, BUFFER)
        host.set(tensor, bytes(32))
        assert not host.is_served()
    assert is_alive(worker)


@pytest.mark.parametrize("index", [-1, 4, 2**31 - 1, -(2**31)])
def test_index_out_of_range_is_refused(worker: Worker, index: int) -> None:
    rows, indices = Tensor((8, 4)), Tensor((1,), type=I32, offset=4096)
    for node in (
        Tensor((8, 1), GET_ROWS, src=(1, 2), offset=8192),
        Tensor((8, 4), SET_ROWS, src=(3, 2, 1)),
    ):
        with Hostile(worker.endpoint) as host:
            assert host.allocate(1, BUFFER)
            host.set(indices, struct.pack("<i", index))
            host.send(GRAPH_COMPUTE, graph(rows, indices, Tensor((8, 1), offset=16384), node))
            assert not host.is_served()
    assert is_alive(worker)


def test_index_that_the_graph_computes_is_looked_at(worker: Worker) -> None:
    """Indices are sums of two numbers, out of range only while the graph computes."""
    copy = 34
    a, b = Tensor((1,), offset=0), Tensor((1,), offset=64)
    total = Tensor((1,), ADD, src=(1, 2), offset=128)
    target = Tensor((1,), type=I32, offset=192)
    as_index = Tensor((1,), copy, type=I32, src=(3, 4), offset=192)
    rows = Tensor((8, 4), offset=4096)
    for value, is_refused in ((1.5, False), (2000.0, True)):
        with Hostile(worker.endpoint) as host:
            assert host.allocate(1, BUFFER)
            host.set(a, struct.pack("<f", value))
            host.set(b, struct.pack("<f", 1.0))
            host.set(target, bytes(4))
            host.send(
                GRAPH_COMPUTE,
                graph(a, b, total, target, as_index, rows, Tensor((8, 1), GET_ROWS, src=(6, 5), offset=8192)),
            )
            assert host.is_served() != is_refused


def test_what_models_compute_is_computed(worker: Worker) -> None:
    a, b = Tensor((4, 2)), Tensor((4, 3), offset=4096)
    product = Tensor((2, 3), MUL_MAT, src=(1, 2), offset=8192)
    with Hostile(worker.endpoint) as host:
        assert host.allocate(1, BUFFER)
        host.set(a, struct.pack("<8f", *range(8)))
        host.set(b, struct.pack("<12f", *[1.0] * 12))
        host.send(GRAPH_COMPUTE, graph(a, b, product))
        found = host.get(Tensor((2, 3), offset=8192), 24)
    assert found is not None
    assert struct.unpack("<6f", found) == (6.0, 22.0) * 3


def test_buffers_beyond_the_lease_are_refused(worker: Worker) -> None:
    before = rss(worker)
    with Hostile(worker.endpoint) as host:
        assert host.allocate(1, LEASE)
        host.set(Tensor((LEASE // 4,)), bytes(LEASE))
        assert not host.allocate(2, LEASE)
        assert rss(worker) < before + LEASE + MARGIN
    for size in (700 << 20, 1 << 45, 2**64 - 1):
        with Hostile(worker.endpoint) as host:
            assert not host.allocate(1, size)
    with Hostile(worker.endpoint) as host:
        granted = list(itertools.takewhile(lambda number: host.allocate(number, 1 << 20), range(1, 100)))
        assert len(granted) < (LEASE + MARGIN) >> 20
    assert is_alive(worker)


@pytest.mark.parametrize("command", range(27))
@pytest.mark.parametrize("size", [0, 1, 700 << 20, 2**63, 2**64 - 1])
def test_sizes_of_messages_are_bounded(worker: Worker, command: int, size: int) -> None:
    before = rss(worker)
    with Hostile(worker.endpoint) as host:
        assert host.allocate(1, BUFFER)
        host.send(command, bytes(4096), size=size)
    assert rss(worker) < before + MARGIN
    assert is_alive(worker)


def rss(worker: Worker) -> int:
    return int(worker.child.process.memory_info().rss)
