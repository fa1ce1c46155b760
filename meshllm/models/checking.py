"""Digests of model files: of the whole, and of each chunk, so that other nodes can check what they get of it.

Law: one pass over the bytes gives both, and a file that is arriving is read while it arrives, so that a finished one is
not read again from its start. All of it runs in threads that can be stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .assembly import Assembly
from .threads import Stop

# What has arrived is flushed to the disk at least this often: a power cut costs no more. Rarely enough to cost nothing.
CHECKPOINT_BYTES: Final = 256 << 20
# How soon a follower notices that it should stop, in seconds, while nothing arrives.
_TICK_SECONDS: Final = 0.1
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Digests:
    """`sha256` of a whole file in hex, and `chunks`: those of its chunks one after the other, 32 raw bytes each."""

    sha256: str
    chunks: bytes


def digests(stop: Stop, path: Path, chunk_bytes: int, report: Callable[[int], None]) -> Digests:
    """Of a file that is there whole; `report` hears how many bytes were read. Raises OSError."""
    whole, chunks, done = hashlib.sha256(), bytearray(), 0
    with path.open("rb", buffering=0) as file:
        while True:
            chunk, begin = hashlib.sha256(), done
            while data := file.read(min(_READ_BYTES, chunk_bytes - (done - begin))):
                with stop:
                    done += len(data)
                whole.update(data)
                chunk.update(data)
                report(done)
            if done == begin:
                return Digests(whole.hexdigest(), bytes(chunks))
            chunks += chunk.digest()


def follow(stop: Stop, assembly: Assembly, report: Callable[[int], None]) -> Digests:
    """Of a file that is arriving; returns once it is complete and read.

    `report` hears how many bytes were read. What was spoilt meanwhile is read again. Raises OSError.
    """
    saved = assembly.arrived
    while True:
        spoilt, whole, chunks = assembly.spoilt, hashlib.sha256(), bytearray()
        with assembly.path.open("rb", buffering=0) as file:
            for chunk in range(assembly.count):
                begin, end = assembly.span(chunk)
                while assembly.wait_for_prefix(end - 1, _TICK_SECONDS) < end:
                    with stop:
                        pass
                    if assembly.spoilt != spoilt:
                        break
                if assembly.spoilt != spoilt:
                    break
                data = file.read(end - begin)
                with stop:
                    whole.update(data)
                    chunks += assembly.checked.get(chunk) or hashlib.sha256(data).digest()
                if assembly.arrived - saved >= CHECKPOINT_BYTES:
                    saved = assembly.arrived
                    assembly.checkpoint()
                report(end)
            else:
                if assembly.complete and assembly.spoilt == spoilt:
                    assembly.checkpoint()  # what is called verified is on the disk
                    return Digests(whole.hexdigest(), bytes(chunks))


def differing(found: bytes, expected: bytes) -> list[int]:
    """The chunks of which two lists of digests say different things."""
    return [
        place // 32 for place in range(0, len(found), 32) if found[place : place + 32] != expected[place : place + 32]
    ]
