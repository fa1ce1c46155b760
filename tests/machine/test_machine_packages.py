"""Wheels downloaded with pip, with a fake pip."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from meshllm.errors import DownloadFailed
from meshllm.machine.packages import PipFetcher
from meshllm.tasks import Owner

SHA = "a" * 64
GOOD = """
import pathlib, sys
arguments = sys.argv[1:]
pins = pathlib.Path(arguments[arguments.index("--requirement") + 1]).read_text()
assert pins == "thing==1.0 --hash=sha256:" + "a" * 64 + "\\n", pins
assert "--require-hashes" in arguments and "--no-deps" in arguments and "--only-binary=:all:" in arguments
target = pathlib.Path(arguments[arguments.index("--dest") + 1])
(target / "thing-1.0-py3-none-any.whl").write_bytes(b"wheel")
"""


def fetcher(tmp_path: Path, script: str) -> PipFetcher:
    path = tmp_path / "pip.py"
    path.write_text(script)
    return PipFetcher((sys.executable, str(path)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


async def test_pip_fetcher_downloads_one_wheel(tmp_path: Path, into: Path) -> None:
    wheel = await fetcher(tmp_path, GOOD).fetch("thing==1.0", SHA, into, lambda done: None)
    assert wheel == into / "thing-1.0-py3-none-any.whl"
    assert names(into) == [wheel.name]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("raise SystemExit('ERROR: Could not find it\\nERROR: No matching distribution found')", "No matching"),
        ("import sys; sys.exit('/usr/bin/python: No module named pip')", "ensurepip"),
        ("raise SystemExit(3)", "no output"),
        ("print('done')", "0 wheels"),
        ("import sys; sys.stdout.write('x' * 1000000); sys.exit(1)", "xxx"),
    ],
)
async def test_pip_fetcher_failure_contains_the_error_of_pip(
    script: str, words: str, tmp_path: Path, into: Path
) -> None:
    with pytest.raises(DownloadFailed, match=words) as failure:
        await fetcher(tmp_path, script).fetch("thing==1.0", SHA, into, lambda done: None)
    assert len(str(failure.value)) < 1000
    assert names(into) == []


async def test_pip_fetcher_without_pip_raises_download_failed(into: Path) -> None:
    with pytest.raises(DownloadFailed, match="Cannot start pip"):
        await PipFetcher(("/nonexistent/python",)).fetch("thing==1.0", SHA, into, lambda done: None)


GROWING = """
import os, pathlib, signal
scratch = pathlib.Path(os.environ["TMPDIR"])
(scratch / "unpack").mkdir()
(scratch / "unpack" / "thing.whl").write_bytes(bytes(5000))
signal.pause()
"""


async def test_pip_fetcher_reports_progress_and_cleans_up_when_cancelled(tmp_path: Path, into: Path) -> None:
    grown = asyncio.Event()
    owner = Owner("test")

    def report(done: int) -> None:
        if done >= 5000:
            grown.set()

    task = owner.start(fetcher(tmp_path, GROWING).fetch("thing==1.0", SHA, into, report), "fetch")
    async with asyncio.timeout(30):
        await grown.wait()
    children = psutil.Process().children()
    await owner.close()
    assert task.cancelled()
    assert names(into) == []
    assert not [child for child in children if child.is_running() and "pip.py" in " ".join(child.cmdline())]


def test_pip_fetcher_runs_no_module_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__main__.py").write_text("print('not pip')")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([*PipFetcher()._command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pip "), done.stdout
