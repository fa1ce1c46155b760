"""Downloads the wheel of a Python package with pip, using the user's pip configuration (index, proxy, certificates).

Invariants: one pinned version with its sha256, wheels only, no dependencies, so no foreign code runs. A cancelled
download leaves no process behind. Progress is the size of pip's temporary folder: pip reports none without a terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from meshllm.errors import DownloadFailed
from meshllm.tasks import Owner

from .programs import end

SAMPLE_SECONDS: Final = 0.2  # interval of progress reports
MAX_OUTPUT_BYTES: Final = 64 << 10


class PipFetcher:
    """`python -m pip download` for one package. `command`: how to start pip (for tests)."""

    def __init__(self, command: tuple[str, ...] | None = None) -> None:
        self._command = command or (sys.executable, "-P", "-m", "pip")

    async def fetch(self, requirement: str, sha256: str, into: Path, report: Callable[[int], None]) -> Path:
        """Download the wheel of `requirement` ("name==1.2") with this sha256 to the existing folder `into`.

        `report` gets the bytes downloaded so far. Raises DownloadFailed. If cancelled, pip is killed first.
        """
        scratch = Path(tempfile.mkdtemp(prefix="pip-", dir=into))
        watcher = Owner("pip-fetch")
        try:
            pins, target = scratch / "pins.txt", scratch / "wheels"
            pins.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
            target.mkdir()
            watcher.start(_watch(scratch, report), "watch")
            await self._run(pins, target, scratch, requirement)
            wheels = list(target.glob("*.whl"))
            if len(wheels) != 1:
                raise DownloadFailed(f"pip downloaded {len(wheels)} wheels for {requirement} instead of one.")
            return wheels[0].replace(into / wheels[0].name)
        finally:
            await watcher.close()
            shutil.rmtree(scratch, ignore_errors=True)

    async def _run(self, pins: Path, target: Path, scratch: Path, requirement: str) -> None:
        arguments = (
            "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input",
            "--disable-pip-version-check",
            "--progress-bar=off", "--retries=2", "--require-hashes", "--requirement", str(pins), "--dest", str(target),
        )  # fmt: skip
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(scratch)},
                start_new_session=True,
            )
        except OSError as error:
            raise DownloadFailed(f"Cannot start pip: {error}.") from error
        try:
            output = await _tail(process)
            status = await process.wait()
        finally:
            await end(process)
        if status != 0:
            raise DownloadFailed(f"pip cannot download {requirement}: {_reason(output)}")


async def _tail(process: asyncio.subprocess.Process) -> str:
    """The last MAX_OUTPUT_BYTES of the output."""
    kept = b""
    assert process.stdout is not None
    while chunk := await process.stdout.read(8192):
        kept = (kept + chunk)[-MAX_OUTPUT_BYTES:]
    return kept.decode("utf-8", "replace")


def _reason(output: str) -> str:
    """The error in pip's output."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "pip is not installed; run `python -m ensurepip`."
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    chosen = (errors or lines or ["no output"])[-1]
    return chosen[:300].rstrip(".") + "."


async def _watch(folder: Path, report: Callable[[int], None]) -> None:
    """Report the size of the folder whenever it has grown."""
    last = 0
    while True:
        await asyncio.sleep(SAMPLE_SECONDS)
        if (size := _bytes_in(folder)) > last:
            last = size
            report(size)


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).stat().st_size
    return total
