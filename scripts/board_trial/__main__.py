"""`scripts/board_trials [NAME ...]`: real agents and the blackboard of a real mesh; prints what works."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.board_trial.place import ARGUMENTS, TOLD, board_place
from scripts.client_trials.trial import NotInstalled, all_trials

DEFAULT_SECONDS = 180.0
PLAIN_WIDTH = 150


def main() -> int:
    """Returns 0 if every agent posts and those with hooks answer; else 1."""
    parser = argparse.ArgumentParser(prog="scripts/board_trials", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"agents to try: {', '.join(ARGUMENTS)}")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="limit of a run (default %(default)s)")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(ARGUMENTS)):
        parser.error(f"no agent is called {unknown[0]}; there are {', '.join(ARGUMENTS)}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the nodes end with the run
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    known, failed = all_trials(), 0
    names = options.names or list(ARGUMENTS)
    table = Table("agent", "version", "posts", "told, and answers", "seconds", box=None, pad_edge=False)
    with tempfile.TemporaryDirectory(prefix="mesh-board-") as folder, board_place(Path(folder)) as place:
        for name in names:
            trial, answered, took = known[name], "no hooks", 0.0
            try:
                trial.install()
            except NotInstalled as error:
                posted, answered = f"not installed: {error}", ""
            else:
                asked = place.ask(trial, options.seconds)
                posted, took = asked.problem or "yes", asked.seconds
                if name in TOLD and asked.posts:
                    replied = place.answer(trial, asked.posts[0]["id"], options.seconds)
                    answered, took = replied.problem or "yes", took + replied.seconds
            works = posted == "yes" and answered in ("yes", "no hooks")
            failed += not works
            console.print(f"{name}: posts: {posted}; told: {answered}", markup=False, soft_wrap=True)
            table.add_row(name, " ".join(trial.packages), posted[:40], answered[:40], f"{took:.1f}")
    console.print(table, markup=False)
    console.print(f"{len(names) - failed} of {len(names)} agents work.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
