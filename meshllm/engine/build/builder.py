"""Builds the engine: a pinned and patched llama.cpp, built once per recipe into the user's cache.

Invariants: `find` builds nothing. Each stage of `ensure` can be interrupted at any point and is resumed or repeated by
the next call. One process at a time works on a build; others wait for it and use its result.

Measured without an accelerator: 77 MB downloaded, 53 MB of source, 60 MB of objects, 20 MB installed, and 300 MB while
pip reads the archive; 19 minutes of processor time, nearly all of it compiling.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from meshllm.engine.build import diagnose, installed, runner, source, toolchain
from meshllm.engine.build import recipe as recipes
from meshllm.engine.build.diagnose import JOBS_VARIABLE
from meshllm.engine.build.installed import Engine, EngineInfo, Layout, layout
from meshllm.engine.build.progress import BuildStage, Report, silent
from meshllm.engine.build.recipe import TARGETS, Recipe
from meshllm.errors import EngineUnavailable, NotEnoughSpace, UsageError
from meshllm.util.progress import Progress

__all__ = ["BuildStage", "Engine", "EngineInfo", "Layout", "Report", "ensure", "find", "layout"]

ROOM = 450 * 1024**2
"""Disk space in bytes that a build needs at its peak, while pip unpacks its download."""
ROOM_PER_ACCELERATOR = 2 * 1024**3
"""Additional disk space for GPU kernels (estimated)."""
MEMORY_PER_JOB = 1024**3
"""Memory in bytes; the largest compiler process takes 0.63 GB (gcc 12)."""

_STEP = re.compile(r"\[(\d+)/(\d+)\] (.*)")


def find(recipe: Recipe | None = None, cache: Layout | None = None) -> Engine | None:
    """The built engine for this checkout and machine, or None. Takes about 10 ms.

    Raises EngineUnavailable if the pin is invalid, UsageError for an invalid MESH_LLM_ENGINE_* variable.
    """
    return installed.find(recipe or recipes.current(), cache or layout())


async def ensure(
    recipe: Recipe | None = None,
    cache: Layout | None = None,
    *,
    progress: Report = silent,
    fetch: source.Fetch = source.fetch_with_pip,
    again: bool = False,
) -> Engine:
    """The engine, built first if needed (`again`: always; the old build stays in use until then).

    `progress` is called on this event loop. Raises EngineUnavailable, ToolMissing, NotEnoughSpace, UsageError, each
    with advice. A cancelled call leaves no process behind; the next call resumes its work.
    """
    recipe, cache = recipe or recipes.current(), cache or layout()
    if not again and (engine := installed.find(recipe, cache)):
        return engine
    build = _Build(recipe, cache, _on_loop(progress), fetch)
    build.check_tools()
    try:
        async with _exclusive(build.lock, build.report):
            if not again and (engine := installed.find(recipe, cache)):
                return engine
            build.check_disk_space()
            if again:
                await asyncio.to_thread(installed.remove, build.work)
            return await build.run()
    except OSError as error:
        raise source.disk_error(error, cache.root) from error


def _on_loop(progress: Report) -> Report:
    """A report function that threads can call: reports reach `progress` on the event loop, in order."""
    loop = asyncio.get_running_loop()

    def report(step: Progress) -> None:
        with contextlib.suppress(RuntimeError):  # the loop closed while a thread was finishing
            loop.call_soon_threadsafe(progress, step)

    return report


@contextlib.asynccontextmanager
async def _exclusive(path: Path, report: Report) -> AsyncIterator[None]:
    """Hold a lock file; the kernel releases it when this process dies."""
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    waiting = False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except filelock.Timeout:
            if not waiting:
                report(Progress(BuildStage.WAIT, detail="waiting for another process that builds the engine"))
                waiting = True
            await asyncio.sleep(0.2)  # a file lock cannot be awaited
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True, slots=True)
class _Build:
    """One build. Its work directory holds `source` (complete once it has that name), `objects` and the log."""

    recipe: Recipe
    cache: Layout
    report: Report
    fetch: source.Fetch

    @property
    def work(self) -> Path:
        return self.cache.work / self.recipe.key

    @property
    def tree(self) -> Path:
        return self.work / "source"

    @property
    def objects(self) -> Path:
        return self.work / "objects"

    @property
    def log(self) -> Path:
        return self.work / "build.log"

    @property
    def lock(self) -> Path:
        return self.cache.locks / f"{self.recipe.key}.lock"

    @property
    def accelerators(self) -> list[str]:
        return [accelerator.name for accelerator in self.recipe.accelerators if accelerator.on]

    def check_tools(self) -> None:
        toolchain.require_compiler(self.recipe.compiler)
        for name in ("cmake", "ninja"):
            toolchain.find_tool(name)
        jobs()

    def check_disk_space(self) -> None:
        self.cache.root.mkdir(parents=True, exist_ok=True)
        needed = ROOM + ROOM_PER_ACCELERATOR * len(self.accelerators)
        free = shutil.disk_usage(self.cache.root).free
        if free < needed:
            raise NotEnoughSpace(
                f"Building the engine needs {needed // 10**6} MB of disk; {self.cache.root} has {free // 10**6} MB.",
                advice="Free some disk space (`mesh-llm engine clean`), or set MESH_LLM_CACHE to another folder.",
            )

    async def run(self) -> Engine:
        self.work.mkdir(parents=True, exist_ok=True)
        await self._get_source()
        started = time.monotonic()
        cut_off = self._resumable() and self._interrupted.exists()
        try:
            await self._configure_and_compile()
        except EngineUnavailable:
            # The files of a killed build may be damaged: compile once more from scratch before reporting the failure.
            self._interrupted.unlink(missing_ok=True)
            if not cut_off:
                raise
            self.report(
                Progress(BuildStage.CONFIGURE, detail="the interrupted build cannot be resumed; starting again")
            )
            await asyncio.to_thread(installed.remove, self.objects)
            await self._configure_and_compile()
        return await self._install(time.monotonic() - started)

    # -- source

    async def _get_source(self) -> None:
        mark = self.work / "source.key"
        if self.tree.is_dir() and _text(mark) == self.recipe.source_key:
            return
        await asyncio.to_thread(installed.remove, self.tree)
        await asyncio.to_thread(installed.remove, self.objects)
        mark.write_text(self.recipe.source_key)
        pin = self.recipe.source.pin
        async with _exclusive(self.cache.locks / f"{pin.file}.lock", self.report):
            archive = await source.obtain(pin, self.cache.downloads, self.report, self.fetch)
        await source.prepare_tree(self.recipe.source, archive, self.tree, self.report)

    # -- configure and compile

    @property
    def _configured(self) -> Path:
        return self.objects / "configured.key"

    @property
    def _interrupted(self) -> Path:
        """A file that exists while ninja runs; left over, it says that the last build was interrupted."""
        return self.work / "compiling"

    def _resumable(self) -> bool:
        return _text(self._configured) == self._configuration()

    def _configuration(self) -> str:
        """What the object tree was configured for; its path is part of it, because CMake cannot move a tree."""
        return f"{self.recipe.key} {self.objects} {toolchain.find_tool('ninja')}"

    async def _configure_and_compile(self) -> None:
        if not self._resumable():
            await asyncio.to_thread(installed.remove, self.objects)
            await self._step(BuildStage.CONFIGURE, self._configure)
            self._configured.write_text(self._configuration())
        self._interrupted.touch()
        await self._step(BuildStage.COMPILE, self._compile)
        self._interrupted.unlink(missing_ok=True)

    async def _step(self, stage: BuildStage, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except runner.CommandFailed as failed:
            raise diagnose.failure(stage.value, failed.tail, self.log, self.accelerators) from None

    async def _configure(self) -> None:
        compiler = toolchain.require_compiler(self.recipe.compiler)
        self.report(Progress(BuildStage.CONFIGURE, detail=compiler.version))
        self.log.unlink(missing_ok=True)
        command: list[str | Path] = [toolchain.find_tool("cmake"), "-G", "Ninja", "-S", self.tree, "-B", self.objects]
        command += [f"-DCMAKE_MAKE_PROGRAM={toolchain.find_tool('ninja')}"]
        command += [f"-DCMAKE_CXX_COMPILER={compiler.cxx}", f"-DCMAKE_C_COMPILER={compiler.c}"]
        await runner.run([*command, *self.recipe.options], lock=self._running_lock, log=self.log)

    async def _compile(self) -> None:
        count = jobs()

        def on_line(line: str) -> None:
            if step := _STEP.match(line):
                self.report(Progress(BuildStage.COMPILE, int(step[1]), int(step[2]), _short(step[3])))

        self.report(Progress(BuildStage.COMPILE, detail=f"{count} parallel jobs"))
        command: list[str | Path] = [toolchain.find_tool("ninja"), "-C", self.objects, "-j", str(count), *TARGETS]
        environment = {**os.environ, "NINJA_STATUS": "[%f/%t] ", "LC_ALL": "C"}
        await runner.run(command, lock=self._running_lock, log=self.log, environment=environment, on_line=on_line)

    @property
    def _running_lock(self) -> Path:
        return self.cache.locks / f"{self.recipe.key}.running"

    # -- install

    async def _install(self, seconds: float) -> Engine:
        self.report(Progress(BuildStage.INSTALL, 0, 2, "copying"))
        staging = await asyncio.to_thread(installed.stage, self.objects, self.tree, self.cache, self.recipe.key)
        try:
            shutil.copyfile(self.log, staging / "build.log")
            self.report(Progress(BuildStage.INSTALL, 1, 2, "checking that it starts"))
            await self._check_start(staging / "bin" / TARGETS[0])
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            engine = await asyncio.to_thread(
                installed.commit, staging, self.recipe, self.cache, built_at=now, seconds=round(seconds, 1)
            )
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        await asyncio.to_thread(installed.remove, self.work)
        self.report(Progress(BuildStage.INSTALL, 2, 2, str(engine.directory)))
        return engine

    async def _check_start(self, server: Path) -> None:
        """Run the new server once: a shared library may be missing at run time only. Raises as `diagnose.failure`."""
        try:
            await runner.run([server, "--version"], lock=self._running_lock, log=self.log)
        except runner.CommandFailed as failed:
            raise diagnose.failure("start after the build", failed.tail, self.log, self.accelerators) from None


def jobs() -> int:
    """Parallel compiler processes: one per core that memory allows. Raises UsageError for an invalid variable."""
    if chosen := os.environ.get(JOBS_VARIABLE):
        if not chosen.isdecimal() or not 1 <= int(chosen) <= 1024:
            raise UsageError(f"{JOBS_VARIABLE} is {chosen!r}.", advice="Set it to a number from 1 to 1024.")
        return int(chosen)
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(psutil.virtual_memory().available // MEMORY_PER_JOB)))


def _short(description: str) -> str:
    """`Building CXX object src/CMakeFiles/llama.dir/llama.cpp.o` as `llama.cpp`."""
    words = description.split()
    return words[-1].rpartition("/")[2].removesuffix(".o") if words else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:4096]
    except OSError:
        return ""
