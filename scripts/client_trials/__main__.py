"""`scripts/clients [NAME ...]`: installs real clients, tries each through a mesh, and prints what works."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from meshllm import paths
from meshllm.util.atomic_file import replace_file
from scripts.client_trials.place import Outcome, place
from scripts.client_trials.trial import NotInstalled, Trial, all_trials, state_of_checkout

RESULTS = "results.json"
# A first prompt of 20,000 tokens takes minutes on two cores.
DEFAULT_SECONDS = 900.0
INSTALLS_AT_ONCE = 3
PLAIN_WIDTH = 150


def main() -> int:
    """Returns 0 if every client works, 1 if one fails or cannot be installed."""
    parser = argparse.ArgumentParser(prog="scripts/clients", description="Tries real clients through a mesh.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="clients to try (default: all)")
    parser.add_argument("--list", action="store_true", help="show the clients and their versions")
    parser.add_argument(
        "--again", action="store_true", help="also try those that worked with this state of the package"
    )
    parser.add_argument(
        "--seconds", type=float, default=DEFAULT_SECONDS, help="limit of a client (default %(default)s)"
    )
    options = parser.parse_args()
    known = all_trials()
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"no client is called {unknown[0]}; there are {', '.join(known)}")
    trials = [known[name] for name in options.names or known]
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    if options.list:
        for trial in trials:
            console.print(f"{trial.name:14} {' '.join(trial.packages)}", markup=False)
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the nodes end with the run
    return _run(trials, console, again=options.again, seconds=options.seconds)


def _run(trials: list[Trial], console: Console, *, again: bool, seconds: float) -> int:
    kept, state = _Results(), state_of_checkout()
    found: dict[str, Outcome] = {}
    if not again:
        found = {trial.name: done for trial in trials if (done := kept.of(trial, state)) is not None and done.works}
    earlier = set(found)
    todo = [trial for trial in trials if trial.name not in found]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        ready = _install(todo, found, progress)
        if ready:
            bar = progress.add_task("starting the mesh", total=len(ready))
            with tempfile.TemporaryDirectory(prefix="mesh-clients-") as folder, place(Path(folder)) as mesh:
                for trial in ready:
                    progress.update(bar, description=f"trying {trial.name}")
                    found[trial.name] = outcome = mesh.try_client(trial, seconds)
                    kept.keep(trial, state, outcome)
                    progress.console.print(f"{trial.name}: {outcome.problem or 'works'}", markup=False, soft_wrap=True)
                    progress.advance(bar)
    table = Table("client", "versions", "result", "requests", "prompt tokens", "seconds", box=None, pad_edge=False)
    for trial in trials:
        outcome = found[trial.name]
        result = outcome.problem or ("works (earlier run)" if trial.name in earlier else "works")
        requests, tokens = str(len(outcome.statuses)), f"{outcome.tokens:,}"
        table.add_row(trial.name, " ".join(trial.packages), result, requests, tokens, f"{outcome.seconds:.1f}")
    console.print(table, markup=False)
    failed = sum(not outcome.works for outcome in found.values())
    console.print(f"{len(found) - failed} of {len(found)} clients work.")
    return int(failed > 0)


def _install(todo: list[Trial], found: dict[str, Outcome], progress: Progress) -> list[Trial]:
    """Install the clients; returns those that are. The others have failed."""
    if not todo:
        return []
    bar = progress.add_task("installing", total=len(todo))

    def install(trial: Trial) -> str:
        try:
            trial.install()
        except NotInstalled as error:
            return f"not installed: {error}"
        finally:
            progress.advance(bar)
        return ""

    with ThreadPoolExecutor(INSTALLS_AT_ONCE) as pool:
        problems = list(pool.map(install, todo))
    found |= {trial.name: Outcome(problem, 0.0) for trial, problem in zip(todo, problems, strict=True) if problem}
    return [trial for trial, problem in zip(todo, problems, strict=True) if not problem]


class _Results:
    """The outcomes of earlier runs, in the folder of the installed clients: a run that was stopped is continued."""

    def __init__(self) -> None:
        self._path = paths.cache() / "clients" / RESULTS
        try:
            self._data: dict[str, Any] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            self._data = {}

    def of(self, trial: Trial, state: str) -> Outcome | None:
        """The outcome for that state of the checkout."""
        found = self._data.get(trial.name)
        if not state or found is None or found["state"] != state or found["packages"] != list(trial.packages):
            return None
        return Outcome(**found["outcome"])

    def keep(self, trial: Trial, state: str, outcome: Outcome) -> None:
        """Keep an outcome."""
        self._data[trial.name] = {"state": state, "packages": trial.packages, "outcome": asdict(outcome)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, json.dumps(self._data, indent=1), mode=0o600)


if __name__ == "__main__":
    sys.exit(main())
