"""Builds: atomic, resumable, one at a time, and every failure has advice."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from meshllm.engine.build import builder as build
from meshllm.engine.build import clean, installed, recipe
from meshllm.engine.build.builder import BuildStage, Engine
from meshllm.engine.build.pin import Patch
from meshllm.errors import EngineUnavailable, NotEnoughSpace, ToolMissing, UsageError
from meshllm.tasks import Owner
from meshllm.util.progress import Progress
from tests.engine.build.build_kit import FILES, HAS_COMPILER, NO_COMPILER, Bench, patch

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason=NO_COMPILER)

BROKEN = {**FILES, "tools/server.cpp": "#error broken on purpose\n"}


def greeting(name: str, before: str, after: str) -> Patch:
    lines = [f'{sign}const char * greeting() {{ return "{word}"; }}\n' for sign, word in (("-", before), ("+", after))]
    return patch(name, "--- a/src/llama.cpp\n+++ b/src/llama.cpp\n@@ -1 +1 @@\n" + "".join(lines))


PATCHES = (greeting("1.patch", "one", "two"), greeting("2.patch", "two", "three"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def make(bench: Bench, *, again: bool = False) -> Engine:
    return await build.ensure(
        bench.recipe, bench.where, progress=bench.steps.append, fetch=bench.index.fetch, again=again
    )


def said_by(program: Path) -> str:
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.strip()


def processes_of(folder: Path) -> list[psutil.Process]:
    """Running processes whose command lines contain `folder`."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if str(folder) in " ".join(process.info["cmdline"] or ())]


def processes_in(folder: Path) -> list[str]:
    """Their command lines."""
    return [" ".join(process.info["cmdline"]) for process in processes_of(folder)]


async def test_ensure_builds_once(bench: Bench) -> None:
    assert build.find(bench.recipe, bench.where) is None
    engine = await make(bench)
    assert bench.stages == [
        BuildStage.FETCH,
        BuildStage.VERIFY,
        BuildStage.UNPACK,
        BuildStage.CONFIGURE,
        BuildStage.COMPILE,
        BuildStage.INSTALL,
    ]
    compiled = [step for step in bench.steps if step.stage is BuildStage.COMPILE and step.total]
    assert compiled[-1].done == compiled[-1].total >= 5
    assert [step.done for step in compiled] == sorted(step.done for step in compiled)
    assert said_by(engine.server) == "one"
    assert engine.rpc_server.is_file()
    assert (engine.templates / "tools.jinja").is_file()
    assert (
        engine.info.size
        == sum(path.lstat().st_size for path in engine.directory.rglob("*") if path.is_file())
        - (engine.directory / "manifest.json").stat().st_size
    )
    assert list(bench.where.work.iterdir()) == []
    bench.steps.clear()
    assert await make(bench) == engine == build.find(bench.recipe, bench.where)
    assert bench.steps == []
    assert bench.index.fetched == 1


async def test_build_works_after_its_directory_is_moved(bench: Bench, tmp_path: Path) -> None:
    engine = await make(bench)
    moved = tmp_path / "elsewhere"
    engine.directory.rename(moved)
    assert said_by(moved / "bin/llama-server") == "one"


async def test_build_applies_patches_in_series_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path, patches=PATCHES)
    engine = await make(bench)
    assert said_by(engine.server) == "three"
    assert engine.info.patches == ("1.patch", "2.patch")
    other = Bench(tmp_path, patches=PATCHES[::-1])
    assert other.recipe.key != bench.recipe.key
    with pytest.raises(EngineUnavailable, match=r"2\.patch.*src/llama\.cpp: hunk 1 \(line 1\)"):
        await make(other)


async def test_two_concurrent_builds_build_once(bench: Bench) -> None:
    seen: list[Progress] = []
    second = build.ensure(bench.recipe, bench.where, progress=seen.append, fetch=bench.index.fetch)
    first, other = await asyncio.gather(make(bench), second)
    assert first == other
    assert bench.index.fetched == 1
    waiting = seen if bench.stages[0] is not BuildStage.WAIT else bench.steps
    assert [step.stage for step in waiting] == [BuildStage.WAIT]


async def test_failed_build_shows_errors_and_log(tmp_path: Path) -> None:
    bench = Bench(tmp_path, BROKEN)
    with pytest.raises(EngineUnavailable, match="broken on purpose") as caught:
        await make(bench)
    log = bench.where.work / bench.recipe.key / "build.log"
    assert str(log) in caught.value.message
    assert "broken on purpose" in log.read_text()
    assert caught.value.advice
    assert build.find(bench.recipe, bench.where) is None
    with pytest.raises(EngineUnavailable):  # and again, without starting from nothing
        await make(bench)
    assert bench.index.fetched == 1
    assert bench.stages.count(BuildStage.CONFIGURE) == 1


async def test_build_whose_server_does_not_start_is_not_installed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {**FILES, "tools/server.cpp": "int main() { return 3; }\n"})
    with pytest.raises(EngineUnavailable, match="start after the build"):
        await make(bench)
    assert build.find(bench.recipe, bench.where) is None


# -- interruptions


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compiling blocks until this FIFO is written."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    monkeypatch.setenv("FAKE_GATE", str(path))
    return path


async def interrupt(bench: Bench) -> None:
    """Start a build and cancel it while a compilation blocks."""
    compiling = asyncio.Event()

    def report(step: Progress) -> None:
        # What is linked of it shows that the object that is looked for afterwards is whole: ninja removes what is not.
        if step.stage is BuildStage.COMPILE and next(bench.where.work.rglob("libllama.*"), None):
            compiling.set()

    owner = Owner("test", lambda *_: None)
    work = owner.start(build.ensure(bench.recipe, bench.where, progress=report, fetch=bench.index.fetch), "build")
    await compiling.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_cancelled_build_ends_its_processes_and_is_resumed(
    bench: Bench, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupt(bench)
    assert processes_in(bench.where.root) == []
    compiled = {path: path.stat().st_mtime_ns for path in bench.where.work.rglob("llama.cpp.o")}
    assert compiled
    monkeypatch.delenv("FAKE_GATE")
    kept: list[bool] = []

    def report(step: Progress) -> None:
        if step.stage is BuildStage.INSTALL and not kept:
            kept.append(all(path.stat().st_mtime_ns == time for path, time in compiled.items()))
        bench.steps.append(step)

    engine = await build.ensure(bench.recipe, bench.where, progress=report, fetch=bench.index.fetch)
    assert said_by(engine.server) == "one"
    assert kept == [True]
    assert bench.stages == [BuildStage.COMPILE, BuildStage.INSTALL]


async def test_damaged_objects_of_an_interrupted_build_are_rebuilt(
    bench: Bench, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupt(bench)
    for spoilt in [*bench.where.work.rglob("*.o"), *bench.where.work.rglob("libllama.*")]:
        times = spoilt.stat().st_atime_ns, spoilt.stat().st_mtime_ns
        spoilt.write_bytes(b"")
        os.utime(spoilt, ns=times)  # the name and the time got to the disk, the content did not
    monkeypatch.delenv("FAKE_GATE")
    engine = await make(bench)
    assert said_by(engine.server) == "one"
    assert any("starting again" in step.detail for step in bench.steps)


async def test_killed_build_ends_its_processes(bench: Bench, gate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""
import asyncio, pathlib
from meshllm.engine.build import builder as build
from tests.engine.build.build_kit import Bench
bench = Bench(pathlib.Path({str(bench.where.root.parent)!r}))
def report(step):
    if step.stage is build.BuildStage.COMPILE and step.done:
        print("compiling", flush=True)
asyncio.run(build.ensure(bench.recipe, bench.where, progress=report, fetch=bench.index.fetch))
"""
    builder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert builder.stdout is not None
    assert await builder.stdout.readline() == b"compiling\n"
    assert processes_in(bench.where.root)
    builder.kill()
    await builder.wait()
    # Whoever builds next waits for this lock: it is free once the last process of the killed build is gone.
    with (bench.where.locks / f"{bench.recipe.key}.running").open("rb") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
    # The kernel lets go of a dying process's locks a moment before it is gone from its table.
    await asyncio.to_thread(psutil.wait_procs, processes_of(bench.where.root), 60)
    assert processes_in(bench.where.root) == []
    monkeypatch.delenv("FAKE_GATE")
    assert said_by((await make(bench)).server) == "one"
    assert bench.index.fetched == 0


async def test_interrupted_unpacking_is_repeated(bench: Bench) -> None:
    work = bench.where.work / bench.recipe.key
    (work / "source.part/src").mkdir(parents=True)
    (work / "source.part/src/llama.cpp").write_text("half of it")
    (work / "source.key").write_text(bench.recipe.source_key)
    assert said_by((await make(bench)).server) == "one"


# -- what counts as built


async def test_damaged_build_is_built_again(bench: Bench) -> None:
    engine = await make(bench)
    for file in (engine.server, engine.directory / "LICENSE", engine.directory / "manifest.json"):
        file.write_bytes(b"")
        assert build.find(bench.recipe, bench.where) is None
        engine = await make(bench)
        assert said_by(engine.server) == "one"
    assert bench.index.fetched == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "key": 2, "files": 3}', "[" * 9999]
)
async def test_build_with_an_invalid_manifest_is_ignored(bench: Bench, text: str) -> None:
    directory = bench.where.builds / bench.recipe.key
    directory.mkdir(parents=True)
    (directory / installed.MANIFEST).write_text(text)
    assert build.find(bench.recipe, bench.where) is None


async def test_build_key_depends_on_all_inputs(bench: Bench) -> None:
    base = bench.recipe
    assert base.compiler is not None
    newer = dataclasses.replace(base.compiler, version="another")
    others = [
        dataclasses.replace(base, processor="another"),
        dataclasses.replace(base, extra=("-DX=1",)),
        dataclasses.replace(base, compiler=newer),
        dataclasses.replace(base, source=dataclasses.replace(base.source, patches=PATCHES)),
        dataclasses.replace(base, source=dataclasses.replace(base.source, patches=PATCHES[::-1])),
    ]
    assert len({base.key, *(other.key for other in others)}) == len(others) + 1


async def test_build_is_found_after_the_compiler_was_removed(bench: Bench) -> None:
    engine = await make(bench)
    bare = dataclasses.replace(bench.recipe, compiler=None)
    assert build.find(bare, bench.where) == engine
    other = dataclasses.replace(bare, processor="another")
    assert build.find(other, bench.where) is None
    with pytest.raises(ToolMissing, match="No C\\+\\+ compiler") as caught:
        await build.ensure(other, bench.where)
    assert "install" in caught.value.advice


async def test_rebuild_replaces_the_build(bench: Bench) -> None:
    engine = await make(bench)
    (engine.directory / "mark").touch()
    assert await make(bench, again=True) == dataclasses.replace(engine, info=(await make(bench)).info)
    assert not (engine.directory / "mark").exists()


# -- room, jobs, cleaning


async def test_build_checks_disk_space_before_the_download(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(bench.where.root.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(NotEnoughSpace, match="has 1 MB") as caught:
        await make(bench)
    assert "MESH_LLM_CACHE" in caught.value.advice
    assert bench.index.fetched == 0


def test_jobs_follow_cores_memory_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(build.JOBS_VARIABLE, raising=False)
    assert 1 <= build.jobs() <= (os.cpu_count() or 1)
    monkeypatch.setenv(build.JOBS_VARIABLE, "7")
    assert build.jobs() == 7
    for bad in ("0", "-1", "many", "9999"):
        monkeypatch.setenv(build.JOBS_VARIABLE, bad)
        with pytest.raises(UsageError):
            build.jobs()


async def test_clean_keeps_the_current_build(bench: Bench) -> None:
    engine = await make(bench)
    old = bench.where.builds / "0123456789abcdef"
    old.mkdir()
    (bench.where.builds / ".0123456789abcdef.12345678").mkdir()
    (bench.where.work / "0123456789abcdef").mkdir()
    (bench.where.downloads / "older-0.9.tar.gz").write_bytes(b"12345")
    found = clean.removable(bench.recipe, bench.where)
    assert {item.path.name for item in found} == {"0123456789abcdef", ".0123456789abcdef.12345678", "older-0.9.tar.gz"}
    assert [clean.remove(item, bench.where) for item in found] == [""] * 4
    assert build.find(bench.recipe, bench.where) == engine
    assert clean.removable(bench.recipe, bench.where) == ()
    assert {item.path.name for item in clean.removable(None, bench.where)} == {engine.key, "package-1.0.tar.gz"}


def test_clean_keeps_builds_in_use_or_in_progress(bench: Bench) -> None:
    import filelock

    old = bench.where.builds / "0123456789abcdef"
    (old / "bin").mkdir(parents=True)
    shutil.copy2(shutil.which("cat") or "/bin/cat", old / "bin/llama-server")
    with subprocess.Popen([old / "bin/llama-server"], stdin=subprocess.PIPE):
        (found,) = clean.removable(bench.recipe, bench.where)
        assert "running program" in clean.remove(found, bench.where)
    bench.where.locks.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(bench.where.locks / f"{old.name}.lock"):
        assert "another process" in clean.remove(found, bench.where)
    assert clean.remove(found, bench.where) == ""
    assert not old.exists()


def test_recipe_of_this_checkout() -> None:
    found = recipe.current()
    assert found.key == recipe.current().key
    assert len(found.key) == 16
