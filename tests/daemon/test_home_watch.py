"""A home that is deleted or replaced while its daemon runs."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from meshllm.daemon.home_watch import HomeWatch
from meshllm.daemon.pidfile import LOCK_FILE, HomeLock
from tests.daemons import OPEN_WAIT_SECONDS, daemon


def _deleted(home: Path) -> None:
    shutil.rmtree(home)


def _replaced(home: Path) -> None:
    home.rename(home.with_name("elsewhere"))
    home.mkdir()


def _is_a_file(home: Path) -> None:
    shutil.rmtree(home)
    home.write_text("")


@pytest.mark.parametrize("lose", [_deleted, _replaced, _is_a_file])
async def test_lost_home_is_noticed_once(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / LOCK_FILE).touch()
    noticed = asyncio.Event()
    watch = HomeWatch(home, noticed.set, seconds=0.01)
    await asyncio.sleep(0.05)
    (home / "file").write_text("what happens in the home is no matter")
    assert not watch.gone
    lose(home)
    async with asyncio.timeout(10):
        await noticed.wait()
    assert watch.gone
    watch.close()


def test_daemon_without_its_home_stops_and_says_so(tmp_path: Path) -> None:
    with daemon(tmp_path / "home", "--client") as node:
        shutil.rmtree(node.home)
        assert node.process.wait(OPEN_WAIT_SECONDS) == 1
        node._readers[1].join(OPEN_WAIT_SECONDS)
        assert f"The home {node.home} was deleted or replaced while the node ran" in node.errors


def test_release_leaves_the_note_of_another_daemon(tmp_path: Path) -> None:
    lock = HomeLock(tmp_path)
    lock.announce(1, 2)
    note = json.loads((tmp_path / "daemon.json").read_text())
    parent = _parent()
    (tmp_path / "daemon.json").write_text(json.dumps({**note, **parent}))
    lock.release()
    assert (tmp_path / "daemon.json").exists()


def _parent() -> dict[str, object]:
    """Another process that runs."""
    import psutil

    found = psutil.Process().parent()
    assert found is not None
    return {"pid": found.pid, "started": found.create_time()}
