"""The wire of the patched rpc-server, spoken by hand: what a hostile host could send."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Self

HELLO_BYTES = 8 + 32 + 16 * 34  # what a worker says first
ADDRESS_BITS = 40
ALLOC_BUFFER, SET_TENSOR, GET_TENSOR, GRAPH_COMPUTE, GET_DEVICE_MEMORY, HELLO = 0, 6, 8, 10, 11, 14
F32, F16, Q8_0, I32 = 0, 1, 8, 26
COMPUTE = 16  # GGML_TENSOR_FLAG_COMPUTE
SIZES = {F32: 4, F16: 2, I32: 4}
_TENSOR = struct.Struct("<QIQ4I4II16ii10QQQQ64si")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a graph. `src`: places of other tensors, from 1. `offset`: bytes into the buffer."""

    shape: tuple[int, ...]
    op: int = 0
    type: int = F32
    src: tuple[int, ...] = ()
    params: bytes = b""
    buffer: int = 1
    offset: int = 0
    strides: tuple[int, ...] | None = None
    data: int | None = None

    def encode(self, place: int) -> bytes:
        """As `struct rpc_tensor`; sources are numbers of steps back, as in a packed graph."""
        ne = (*self.shape, 1, 1, 1)[:4]
        nb = [SIZES.get(self.type, 4)]
        for size in ne[:3]:
            nb.append(nb[-1] * size & 0xFFFFFFFF)
        src = [place - other if other else 0 for other in (*self.src, *[0] * 10)][:10]
        data = (self.buffer << ADDRESS_BITS) + self.offset if self.data is None else self.data
        params = struct.unpack("<16i", self.params.ljust(64, b"\0"))
        return _TENSOR.pack(
            0, self.type, self.buffer, *ne, *(self.strides or nb), self.op, *params,
            COMPUTE, *src, 0, 0, data, b"x", 1,
        )  # fmt: skip


def number(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def graph(*tensors: Tensor, nodes: tuple[int, ...] | None = None, device: int = 0) -> bytes:
    """A packed graph: `nodes` are places of tensors, in order (None: those with an operation)."""
    chosen = nodes if nodes is not None else tuple(i for i, tensor in enumerate(tensors, 1) if tensor.op)
    out = number(device) + number(len(chosen)) + number(len(tensors))
    last = 0
    for place in chosen:
        out += number(place - last)
        last = place
    for place, tensor in enumerate(tensors, 1):
        changes = [(at, byte) for at, byte in enumerate(tensor.encode(place)) if byte]
        out += number(0) + number(len(changes))
        before = 0
        for at, byte in changes:
            out += number(at - before) + bytes([byte])
            before = at
    return out


class Hostile:
    """A connection to a worker, after the handshake."""

    def __init__(self, endpoint: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(endpoint)
        self.send(HELLO, bytes(24))
        if self._read(HELLO_BYTES) is None:
            raise ConnectionResetError("the worker said nothing")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, command: int, message: bytes, *, size: int | None = None) -> None:
        """Send a command; `size`: what its header says, if that is not true."""
        try:
            self._socket.sendall(bytes([command]) + struct.pack("<Q", len(message) if size is None else size) + message)
        except (BrokenPipeError, ConnectionResetError):
            return  # seen by the next answer

    def answer(self) -> bytes | None:
        """The next answer; None if the worker has closed the connection."""
        head = self._read(8)
        return None if head is None else self._read(struct.unpack("<Q", head)[0])

    def allocate(self, buffer: int, size: int) -> bool:
        """Ask for a buffer; whether there is one."""
        self.send(ALLOC_BUFFER, struct.pack("<IQQ", 0, size, buffer))
        return self.answer() == b"\1"

    def set(self, tensor: Tensor, data: bytes, *, size: int | None = None) -> None:
        """Write to a tensor."""
        message = tensor.encode(1) + b"\0" + struct.pack("<Q", 0) + data
        self.send(SET_TENSOR, message, size=size)

    def get(self, tensor: Tensor, size: int) -> bytes | None:
        """Read from a tensor."""
        self.send(GET_TENSOR, tensor.encode(1) + struct.pack("<QQ", 0, size))
        return self.answer()

    def is_served(self) -> bool:
        """Whether the worker still answers on this connection."""
        self.send(GET_DEVICE_MEMORY, struct.pack("<I", 0))
        return self.answer() is not None

    def _read(self, size: int) -> bytes | None:
        out = b""
        while len(out) < size:
            try:
                more = self._socket.recv(size - len(out))
            except ConnectionResetError:
                return None
            if not more:
                return None
            out += more
        return out
