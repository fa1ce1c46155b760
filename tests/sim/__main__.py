"""`scripts/sim WHAT`: plays a scenario at any size and prints what it came to."""

from __future__ import annotations

import argparse
import gc
import re
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.sim import board, demand, restarts
from tests.sim.play import Failed, Figure, Player
from tests.sim.scenario import Scenario, ScenarioError, Step, parse

SCENARIOS = Path(__file__).parent / "scenarios"
# The display moves on after so much virtual time, also within a long step.
TICK_SECONDS = 1.0
# Where nothing can move, a line is printed so often.
LINE_SECONDS = 20.0
# The nodes of a split restarted at all distances (`restarts.py`).
RESTARTS = "restarts"
# Placement that follows demand, with options of its own (`demand.py`).
DEMAND = "demand"
# The blackboard, with options of its own (`board.py`).
BOARD = "board"


def read(name: str, size: int | None = None) -> Scenario:
    """A scenario by its name in `scenarios/` or by its path. `size`: `{N}` in it, and `{N-1}`, `{N/2}` and the like.

    Raises ScenarioError or OSError.
    """
    path = SCENARIOS / f"{name}.txt"
    text = (path if path.exists() else Path(name)).read_text(encoding="utf-8")
    default = re.search(r"^# N = (\d+)$", text, re.MULTILINE)
    number = size or (int(default[1]) if default else 10)
    return parse(re.sub(r"\{N(?:([-/*])(\d+))?(?:([-+])(\d+))?\}", lambda match: str(_worth(match, number)), text))


def _worth(match: re.Match[str], number: int) -> int:
    value = number
    for sign, operand in ((match[1], match[2]), (match[3], match[4])):
        if sign:
            other = int(operand)
            value = {"-": value - other, "+": value + other, "*": value * other, "/": value // other}[sign]
    return value


def play(scenario: Scenario, console: Console, *, seed: int | None) -> int:
    """Play it with a moving display; the exit code."""
    player = Player(scenario, seed=seed)
    simulation, begun = player.simulation, time.perf_counter()
    failure = ""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    moving = console.is_terminal
    with Progress(*columns, console=console, disable=not moving) as progress:
        task = progress.add_task("starting", total=None)
        doing, told = "", list[Figure]()

        def show() -> None:
            words = f"{simulation.now:8.1f}s  {len(simulation.live())} up  {simulation.events:,} events  {doing}"
            if moving:
                progress.update(task, description=words)
            else:
                console.print(f"{words}  {player.watch.summary()}  ({time.perf_counter() - begun:.0f} s of work)")
            simulation.at(simulation.now + (TICK_SECONDS if moving else LINE_SECONDS), show)

        def each(step: Step) -> None:
            nonlocal doing
            doing = step.text
            for figure in player.figures[len(told) :]:
                told.append(figure)
                if not moving:
                    console.print(f"          {figure.words()}")

        show()
        try:
            player.play(each)
        except Failed as error:
            failure = str(error)
        except KeyboardInterrupt:
            failure = f"interrupted at {simulation.now:.1f}s"
    table = Table("step", "virtual time", "figure")
    for figure in player.figures:
        table.add_row(figure.text, figure.took(), figure.value)
    console.print(table)
    work = time.perf_counter() - begun
    console.print(
        f"{scenario.nodes} nodes, {scenario.clients} clients, seed {simulation.seed}, "
        f"{simulation.now:.0f} s of virtual time, {simulation.events:,} events in {work:.0f} s of work "
        f"({work / max(1, simulation.events) * 1e6:.0f} us each)"
    )
    if failure:
        console.print(f"[bold red]{failure}")
    return 1 if failure else 0


def play_restarts(console: Console, seeds: int) -> int:
    """Restart the nodes of a split at all distances, and print a table; the exit code."""
    begun = time.perf_counter()
    took: dict[tuple[int, str], list[float]] = {}
    late: list[restarts.Restart] = []
    distances = tuple(round(number * restarts.STEP_SECONDS, 1) for number in range(restarts.STEPS + 1))
    cases = list(restarts.grid((2, 3), distances, range(seeds)))
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for one in progress.track(cases, description="restarts"):
            seconds = restarts.play(one)
            if seconds is None:
                late.append(one)
            else:
                took.setdefault((one.nodes, one.ending.value), []).append(seconds)
    table = Table("nodes", "they were", "restarts", "served again: median", "90 %", "at most")
    for (nodes, ending), all_seconds in sorted(took.items()):
        ordered = sorted(all_seconds)
        parts = [ordered[len(ordered) // 2], ordered[len(ordered) * 9 // 10], ordered[-1]]
        table.add_row(str(nodes), ending, str(len(ordered)), *(f"{seconds:.1f} s" for seconds in parts))
    console.print(table)
    bar = f"within {restarts.SERVED_AGAIN_SECONDS:.0f} s of the last start"
    work = time.perf_counter() - begun
    console.print(f"{len(cases) - len(late)} of {len(cases)} splits served again {bar}; {work:.0f} s of work")
    for one in late[:20]:
        console.print(f"[bold red]not served {bar}: {one}")
    return 1 if late else 0


def main() -> int:
    """Parse and run; the exit code."""
    if sys.argv[1:2] == [DEMAND]:
        return demand.main(sys.argv[2:])
    if sys.argv[1:2] == [BOARD]:
        return board.main(sys.argv[2:])
    names = sorted(path.stem for path in SCENARIOS.glob("*.txt"))
    parser = argparse.ArgumentParser(prog="scripts/sim", description="Meshes on virtual time; figures, not timings.")
    parser.add_argument(
        "scenario",
        help=f"one of {', '.join(names)}, {RESTARTS} (of a split), {DEMAND}, {BOARD}, or a file in the language of "
        "tests/sim/scenario.py",
    )
    parser.add_argument("--nodes", type=int, help="how many nodes (default: as the scenario says)")
    parser.add_argument("--seed", type=int, help="repeats a run (default: as the scenario says)")
    parser.add_argument("--seeds", type=int, default=20, help=f"how many seeds for each case of {RESTARTS}")
    options = parser.parse_args()
    # Millions of small objects that live until the end: looking through them for cycles would be half of the work.
    gc.disable()
    console = Console(width=160) if not sys.stdout.isatty() else Console()
    if options.scenario == RESTARTS:
        return play_restarts(console, options.seeds)
    try:
        scenario = read(options.scenario, options.nodes)
    except (OSError, ScenarioError) as error:
        print(f"sim: {error}", file=sys.stderr)
        return 2
    return play(scenario, console, seed=options.seed)


if __name__ == "__main__":
    sys.exit(main())
