"""`mesh-llm doctor`: what is well on this machine, what is not, and what to do.

Law: all checks run at the same time, each with a deadline; one that hangs or fails becomes a finding and hides no
other. The exit code is 1 exactly if something is bad.
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

if TYPE_CHECKING:
    from rich.console import Console

    from .doctor_checks import CheckResult

SECONDS: Final = 8.0  # for one check; they run side by side


@dataclass(frozen=True, slots=True)
class Check:
    """A named question; `ask` answers with a Finding."""

    name: str
    ask: Callable[[], Awaitable[CheckResult]]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    port: Annotated[int, typer.Option(help="The API's port.", min=1, max=65535)] = 9337,
    console: Annotated[int, typer.Option(help="The console's port.", min=1, max=65535)] = 3131,
) -> None:
    """Look at compiler, engine, accelerators, memory, ports, disk and hub: what is well, what is not, what to do."""
    import asyncio

    findings = asyncio.run(examine(checks(port, console)))
    bad = any(finding.state == "bad" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": not bad, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        show(findings, sys.stdout.isatty())
    raise typer.Exit(1 if bad else 0)


def checks(port: int, console: int) -> list[Check]:
    """All checks, in the order in which they are shown."""
    from meshllm.cli import doctor_checks as c
    from meshllm.machine import accelerators, ports, resources

    def engine_is_built() -> bool:
        return c.check_engine().state == c.CheckState.WELL

    async def devices() -> CheckResult:
        found = await accelerators.find(SECONDS / 2)
        return await _aside(lambda: c.check_accelerators(found))

    async def engine_devices() -> CheckResult:
        from meshllm.engine.build import builder
        from meshllm.engine.probe import bindings

        engine = builder.find()
        return c.check_devices(None if engine is None else await bindings.devices(engine, seconds=int(SECONDS)))

    cache, models = paths.cache(), paths.models()
    return [
        Check("python", lambda: _aside(c.check_python)),
        Check("engine", lambda: _aside(c.check_engine)),
        Check("compiler", lambda: _aside(lambda: c.check_compiler(engine_is_built()))),
        Check("build tools", lambda: _aside(lambda: c.check_build_tools(engine_is_built()))),
        Check("accelerators", devices),
        Check("devices", engine_devices),
        Check("memory", lambda: _aside(lambda: c.check_memory(resources.memory(), resources.processors()))),
        Check(f"port {port}", lambda: _aside(lambda: c.check_port(ports.probe(port), "--port"))),
        Check(f"port {console}", lambda: _aside(lambda: c.check_port(ports.probe(console), "--console"))),
        Check(
            "disk: cache",
            lambda: _aside(
                lambda: c.check_disk("cache", resources.disk(cache), cache, c.ENGINE_BUILD_BYTES, "MESH_LLM_CACHE")
            ),
        ),
        Check(
            "disk: models",
            lambda: _aside(
                lambda: c.check_disk("models", resources.disk(models), models, c.MODEL_ROOM_BYTES, "MESH_LLM_MODELS")
            ),
        ),
        Check("models", lambda: _aside(lambda: c.check_models(models))),
        Check("hub", c.check_hub),
        Check("home", lambda: _aside(lambda: c.check_home(paths.home()))),
    ]


async def _aside(work: Callable[[], CheckResult]) -> CheckResult:
    """A check that may block, in a thread that may be left behind."""
    from meshllm.util.threads import in_thread

    return await in_thread(lambda stop: work(), "doctor-check", leave=True)


async def examine(wanted: Sequence[Check], within: float = SECONDS) -> list[CheckResult]:
    """The findings, in the order of the checks, after `within` seconds at most (and a little)."""
    import asyncio

    from meshllm.tasks import Owner

    owner = Owner("doctor")
    try:
        tasks = [owner.start(_examine(check, within), check.name) for check in wanted]
        return list(await asyncio.gather(*tasks))
    finally:
        await owner.close()


async def _examine(check: Check, within: float) -> CheckResult:
    from .doctor_checks import CheckResult, CheckState

    try:
        import asyncio

        async with asyncio.timeout(within):
            return await check.ask()
    except TimeoutError:
        return CheckResult(
            check.name, CheckState.WARNING, f"no answer within {within:g} s", "Try again; something hangs here."
        )
    except Exception as error:  # noqa: BLE001 - a check that fails must not hide the others
        return CheckResult(check.name, CheckState.WARNING, f"the check itself failed: {error!r}", "Please report this.")


def show(findings: Sequence[CheckResult], terminal: bool, console: Console | None = None) -> None:
    """A table on a terminal, one plain line for each finding elsewhere."""
    if not terminal and console is None:
        for finding in findings:
            advice = f" -> {finding.advice}" if finding.advice else ""
            typer.echo(f"{finding.state:8} {finding.name}: {finding.found}{advice}")
        return
    from rich import box
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    marks = {"well": ("✓", "green"), "warning": ("!", "yellow"), "bad": ("✗", "bold red")}
    for finding in findings:
        mark, style = marks[finding.state]
        found = Text(finding.found)
        if finding.advice:
            found.append(f"\n→ {finding.advice}", style)
        table.add_row(Text(mark, style), Text(finding.name), found)
    target = console or RichConsole()
    target.print(table)
    count = {state: sum(finding.state == state for finding in findings) for state in marks}
    target.print(
        Text("Everything is well." if count["well"] == len(findings) else
             f"{count['well']} well, {count['warning']} to know about, {count['bad']} to be done before it works.")
    )  # fmt: skip
