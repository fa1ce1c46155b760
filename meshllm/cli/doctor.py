"""`mesh-llm doctor`: runs the checks of this machine and prints their results.

Invariants: all checks run in parallel, each with a deadline; a check that hangs or raises becomes a warning. The exit
code is 1 exactly if a check is in state ERROR.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

# asyncio is imported where it runs: `--help` reads this file, and asyncio would take a third of its time.
from meshllm import paths
from meshllm.util.format import counted

if TYPE_CHECKING:
    from rich.console import Console

    from .doctor_checks import CheckResult

SECONDS: Final = 8.0  # deadline of a check


@dataclass(frozen=True, slots=True)
class Check:
    """A named check."""

    name: str
    run: Callable[[], Awaitable[CheckResult]]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    port: Annotated[int | None, typer.Option(help="Port of the API. Default: as the node.", min=1, max=65535)] = None,
    console: Annotated[
        int | None, typer.Option(help="Port of the console. Default: as the node.", min=1, max=65535)
    ] = None,
) -> None:
    """Check compiler, engine, accelerators, memory, ports, disk and model hub, and say how to fix errors."""
    import asyncio
    from contextlib import suppress

    from meshllm.cli import temporary_folder

    if paths.home().is_dir():
        with suppress(OSError):  # the check of the home says what is wrong with it
            temporary_folder.ensure(paths.home())
    results = asyncio.run(run_checks(checks(port, console)))
    failed = any(result.state == "error" for result in results)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "checks": [asdict(result) for result in results]}, indent=2))
    else:
        show(results, sys.stdout.isatty())
    raise typer.Exit(1 if failed else 0)


def checks(port: int | None, console: int | None) -> list[Check]:
    """All checks, in the order of the output. Ports not given: those of the running node of this home, or those of a
    start without options."""
    from meshllm.cli import doctor_checks as c
    from meshllm.daemon import pidfile
    from meshllm.daemon.settings import DEFAULT_CONSOLE, DEFAULT_PORT
    from meshllm.machine import accelerators, ports, resources

    running = pidfile.read(paths.home())
    own = running.pid if running is not None else None
    api = port or (running.port if running is not None else DEFAULT_PORT)
    page = console or (running.console if running is not None else DEFAULT_CONSOLE)

    def engine_is_built() -> bool:
        return c.check_engine().state == c.CheckState.OK

    def notices() -> list[str]:
        from meshllm.cli.status import notices_of_running

        return [] if running is None else notices_of_running(running.console)

    async def devices() -> CheckResult:
        found = await accelerators.find(SECONDS / 2)
        return await _in_thread(lambda: c.check_accelerators(found))

    async def engine_devices() -> CheckResult:
        from meshllm.engine.build import builder
        from meshllm.engine.probe import bindings

        engine = builder.find()
        return c.check_devices(None if engine is None else await bindings.devices(engine, seconds=int(SECONDS)))

    cache, models = paths.cache(), paths.models()
    return [
        Check("python", lambda: _in_thread(c.check_python)),
        Check("engine", lambda: _in_thread(c.check_engine)),
        Check("compiler", lambda: _in_thread(lambda: c.check_compiler(engine_is_built()))),
        Check("build tools", lambda: _in_thread(lambda: c.check_build_tools(engine_is_built()))),
        Check("accelerators", devices),
        Check("devices", engine_devices),
        Check("sandbox", lambda: _in_thread(c.check_sandbox)),
        Check("memory", lambda: _in_thread(lambda: c.check_memory(resources.memory(), resources.processors()))),
        Check(f"port {api}", lambda: _in_thread(lambda: c.check_port(ports.probe(api), "--port", own))),
        Check(f"port {page}", lambda: _in_thread(lambda: c.check_port(ports.probe(page), "--console", own))),
        Check(
            "disk: cache",
            lambda: _in_thread(
                lambda: c.check_disk("cache", resources.disk(cache), cache, c.ENGINE_BUILD_BYTES, "MESH_LLM_CACHE")
            ),
        ),
        Check(
            "disk: models",
            lambda: _in_thread(
                lambda: c.check_disk("models", resources.disk(models), models, c.MODEL_DISK_BYTES, "MESH_LLM_MODELS")
            ),
        ),
        Check("models", lambda: _in_thread(lambda: c.check_models(models))),
        Check("hub", c.check_hub),
        Check("home", lambda: _in_thread(lambda: c.check_home(paths.home()))),
        Check("identity", lambda: _in_thread(lambda: c.check_identity(paths.home(), notices()))),
    ]


async def _in_thread(work: Callable[[], CheckResult]) -> CheckResult:
    """Run a check that may block in a thread, which is abandoned if it exceeds the deadline."""
    from meshllm.util.threads import in_thread

    return await in_thread(lambda stop: work(), "doctor-check", leave=True)


async def run_checks(checks: Sequence[Check], within: float = SECONDS) -> list[CheckResult]:
    """The results in the order of the checks; a check that takes longer than `within` seconds becomes a warning."""
    import asyncio

    from meshllm.tasks import Owner

    owner = Owner("doctor")
    try:
        tasks = [owner.start(_run_check(check, within), check.name) for check in checks]
        return list(await asyncio.gather(*tasks))
    finally:
        await owner.close()


async def _run_check(check: Check, within: float) -> CheckResult:
    from .doctor_checks import CheckResult, CheckState

    try:
        import asyncio

        async with asyncio.timeout(within):
            return await check.run()
    except TimeoutError:
        return CheckResult(
            check.name,
            CheckState.WARNING,
            f"no result within {within:g} s",
            "Run it again; if it hangs again, please report it.",
        )
    except Exception as error:  # noqa: BLE001 - the other checks still count
        return CheckResult(
            check.name, CheckState.WARNING, f"the check failed: {error!r}", "This is a bug; please report it."
        )


def show(results: Sequence[CheckResult], terminal: bool, console: Console | None = None) -> None:
    """Print a table on a terminal, otherwise one line per result."""
    if not terminal and console is None:
        for result in results:
            advice = f" -> {result.advice}" if result.advice else ""
            typer.echo(f"{result.state:8} {result.name}: {result.found}{advice}")
        return
    from rich import box
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("check", no_wrap=True)
    table.add_column("result", overflow="fold")
    marks = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "bold red")}
    for result in results:
        mark, style = marks[result.state]
        found = Text(result.found)
        if result.advice:
            found.append(f"\n→ {result.advice}", style)
        table.add_row(Text(mark, style), Text(result.name), found)
    target = console or RichConsole()
    target.print(table)
    count = {state: sum(result.state == state for result in results) for state in marks}
    parts = [f"{count['ok']} ok", counted(count["warning"], "warning"), counted(count["error"], "error")]
    target.print(Text(f"{', '.join(parts)}."))
