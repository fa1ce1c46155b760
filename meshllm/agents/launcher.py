"""One agent and the home of this node together: what is written, printed, undone and started for it.

Invariant: the key of the node is never an argument of a process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import filelock

from meshllm.agents.description import Agent, Setup
from meshllm.agents.filling import BoardAccess, Values, fill_text
from meshllm.agents.journal import Journal, LastLaunch
from meshllm.agents.node import NodeAddress
from meshllm.agents.process import environment, find_program, run_agent
from meshllm.agents.shown import arguments as setup_arguments
from meshllm.agents.shown import file_lines, start_lines, variables
from meshllm.agents.user_files import UndoResult, apply, locate, plan, undo, withdraw
from meshllm.core.routing.agent_choice import WANTED_CONTEXT, AgentModel
from meshllm.errors import EnvironmentFailure, InternalError, UsageError

AGENTS_FOLDER, LOCK_FILE = "agents", "lock"
LOCK_SECONDS = 60.0
# What `--print` shows where nothing is known.
UNKNOWN_MODEL = AgentModel("MODEL")
HIDDEN_KEY = "KEY"


@contextmanager
def locked(home: Path, name: str = LOCK_FILE) -> Iterator[Path]:
    """The folder of agents in `home`, made if need be; no other launcher changes it within the block."""
    folder = home / AGENTS_FOLDER
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        with filelock.FileLock(folder / name, timeout=LOCK_SECONDS, mode=0o600):
            yield folder
    except filelock.Timeout as error:
        raise EnvironmentFailure(
            f"Another mesh-llm has held {folder / name} for {LOCK_SECONDS:.0f} s.", advice="Run the command again."
        ) from error


class Launcher:
    """Does for one agent what its commands ask for."""

    def __init__(self, agent: Agent, home: Path, env: Mapping[str, str]) -> None:
        """`home`: MESH_LLM_HOME; `env`: the environment of this process."""
        self.agent = agent
        self._home = home
        self._env = env
        user = str(Path.home())
        config = env.get("XDG_CONFIG_HOME") or f"{user}/.config"
        self._folders = {"home": user, "config": config, "folder": str(home / AGENTS_FOLDER / agent.name)}
        for name, (variable, default) in agent.folders.items():
            given = env.get(variable)
            self._folders[name] = str(Path(given).absolute()) if given else default.format(**self._folders)

    def program(self) -> str:
        """The program. Raises EnvironmentFailure if it is not installed."""
        found = self.found_program()
        if found is None:
            raise EnvironmentFailure(
                f"{self.agent.title} is not installed: no program {self.agent.programs[0]!r} in PATH.",
                advice=f"Install it: {self.agent.install}. See {self.agent.site}",
            )
        return found

    def found_program(self) -> str | None:
        """The program, or None."""
        return find_program([name.format(**self._folders) for name in self.agent.programs])

    def skill_folders(self) -> list[Path]:
        """Where the agent looks for skills of the user."""
        return [Path(folder.format(**self._folders)) for folder in self.agent.skills]

    def values(
        self,
        node: NodeAddress | None,
        model: AgentModel | None,
        models: Sequence[AgentModel],
        board: Sequence[str] = (),
    ) -> Values:
        """The values of the placeholders. Without a node: those that `--print` shows. `board`: the words that start
        mesh-llm, for an agent that gets the blackboard."""
        base = node.url if node is not None else "http://127.0.0.1:9337"
        chosen, key = model or UNKNOWN_MODEL, node.key if node is not None else ""
        access = BoardAccess(tuple(board), str(self._home)) if board else None
        return Values(base, chosen, models or (chosen,), self._folders, key, access)

    def run(
        self, values: Values, arguments: Sequence[str], on_start: Callable[[], None], warn: Callable[[str], None]
    ) -> int:
        """Configure and start the agent; returns its exit status. `warn` gets what the user should know."""
        program, setup = self.program(), self._launch_setup(values)
        for text in self.warnings(values):
            warn(text)
        self._configure(setup, values)
        env = environment(self._env, variables(setup, values), setup.unset)
        argv = [program, *setup_arguments(setup, values, arguments)]
        if values.key and any(values.key in argument for argument in argv):
            raise InternalError(f"The key of the node would be an argument of {self.agent.title}.")
        return run_agent(argv, env, on_start)

    def write(self, values: Values) -> list[Path]:
        """Write the agent's own configuration; returns the files that changed. Raises UsageError if it has none."""
        setup = self._own_setup(values)
        with locked(self._home) as folder:
            journal = Journal(folder)
            changes = plan(self.agent, setup, values, journal)
            withdrawn = self._withdraw_board(setup, self.agent.board_write, values, journal)
            return [*withdrawn, *apply(self.agent, changes, journal)]

    def written(self, values: Values) -> str:
        """What `write` would write, for people; without the key. Raises UsageError as that does."""
        setup, shown = self._own_setup(values), replace(values, key=HIDDEN_KEY if values.key else "")
        blocks = [file_lines(step, shown, lambda step: str(locate(step, shown))) for step in setup.files]
        return "\n\n".join("\n".join(lines) for lines in [*blocks, [f"# then: {self.how_to_start(values)}"]])

    def _launch_setup(self, values: Values) -> Setup:
        """How the agent is started."""
        launch, board = self.agent.launch, self.agent.board
        return launch if values.board is None or board is None else launch.with_more(board)

    def _own_setup(self, values: Values) -> Setup:
        """How the agent's own configuration is written. Raises UsageError if there is no way."""
        if self.agent.write is None:
            raise UsageError(
                f"{self.agent.title} has no place for a provider beside the user's own.",
                advice=f"Start it with 'mesh-llm {self.agent.name}', which needs no change of its files.",
            )
        write, board = self.agent.write, self.agent.board_write
        return write if values.board is None or board is None else write.with_more(board)

    def _withdraw_board(self, setup: Setup, board: Setup | None, values: Values, journal: Journal) -> list[Path]:
        """Where `values` have no blackboard: take back the files that were changed for it alone; returns them."""
        if board is None or values.board is not None:
            return []
        others = {step.paths for step in setup.files}
        places = [locate(step, values) for step in board.files if step.merges and step.paths not in others]
        return withdraw(self.agent, places, journal)

    def how_to_start(self, values: Values) -> str:
        """How the user starts the agent once its files are written."""
        shown = replace(values, key=HIDDEN_KEY if values.key else "")
        return "" if self.agent.write is None else fill_text(self.agent.write.run, shown)

    def undo(self) -> list[UndoResult]:
        """Take back what was written for the agent."""
        with locked(self._home) as folder:
            return undo(self.agent, Journal(folder))

    def description(self, values: Values, arguments: Sequence[str]) -> str:
        """What a start would set, write and run, for people; without the key."""
        values = replace(values, key=HIDDEN_KEY if values.key else "")
        setup, program = self._launch_setup(values), self.found_program() or self.agent.programs[0]
        unset = [name for name in setup.unset if name in self._env]
        blocks = [start_lines(setup, values, unset, program, arguments)]
        blocks += [file_lines(step, values, lambda step: str(locate(step, values))) for step in setup.files]
        return "\n\n".join("\n".join(lines) for lines in blocks)

    def warnings(self, values: Values) -> Iterator[str]:
        """What the user should know before a start: a context that is too small, files that keep the agent from
        loading its providers."""
        model, needed = values.model, self.agent.prompt_tokens
        if model.context and needed and model.context < needed:
            more = f"Serve it with more: --ctx-size {min(WANTED_CONTEXT, model.trained or WANTED_CONTEXT)}."
            if model.trained and model.context >= model.trained:
                more = "It was made for no more: use another model."
            yield (
                f"{model.name} serves {model.context:,} tokens of context, and {self.agent.title} alone needs about "
                f"{needed:,}. {more}"
            )
        elif model.context and model.context < WANTED_CONTEXT:
            yield f"{model.name} serves {model.context:,} tokens of context; {WANTED_CONTEXT:,} suit agents better."
        if not model.chat_template:
            yield (
                f"{model.name} has no chat template: it was made to continue texts, and answers chats poorly. Use a "
                "model whose name says Instruct, Chat or it."
            )
        elif model.calls_tools is False:
            yield (
                f"{model.name} made no tool call when it was tested: {self.agent.title} may only talk. Use a larger "
                "model, or one made for tools."
            )
        elif model.calls_tools is None and model.tools is False:
            yield f"The chat template of {model.name} renders no tools. It may not call any."
        for step in self.agent.launch.files:
            if step.neighbours:
                path = locate(step, values)
                for other in sorted(path.parent.glob("*.json")):
                    if other != path and not _is_json(other):
                        yield f"{other} is not valid JSON: {self.agent.title} may load no provider of that folder."

    def last_launch(self, folder: Path) -> LastLaunch | None:
        """When it was started last."""
        return Journal(folder).last_launch(self.agent.name)

    def configured_files(self) -> list[Path]:
        """The user's files that have something of mesh-llm in them."""
        journal = Journal(self._home / AGENTS_FOLDER)
        return [entry.path for entry in journal.entries(self.agent.name) if not journal.holds(entry.path)]

    def _configure(self, setup: Setup, values: Values) -> None:
        with locked(self._home) as folder:
            journal = Journal(folder)
            changes = plan(self.agent, setup, values, journal)
            self._withdraw_board(setup, self.agent.board, values, journal)
            apply(self.agent, changes, journal)
            journal.launched(self.agent.name, LastLaunch(_wall_clock(), values.model.name))


def _wall_clock() -> float:
    return time.time()  # noqa: TID251 - shown to the user


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return True
