"""Writes the generated documents: `docs/map.md` (every module, from its first docstring line), `docs/states.md`
(state diagrams, from the transition tables) and `docs/agents.md` (from the descriptions of coding agents).

`scripts/docs.py` writes them; `scripts/docs.py --check` fails if a document is not what would be written.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "meshllm"
# The public names that a row of the map lists.
MAX_NAMES = 12
# (module, title, what the states belong to). Each module has a table TRANSITIONS (or the one named after a colon):
# {state: states that may follow}, or {(state, next state): why}.
MACHINES = [
    ("meshllm.core.membership.table", "Peer", "What this node knows of another node."),
    (
        "meshllm.core.split.lease",
        "Lease",
        "The lease of one worker of a pipeline split, at the host and at the worker.",
    ),
    ("meshllm.core.serving.phases:ENGINE_TRANSITIONS", "Engine", "The engine of this node: found or built."),
    ("meshllm.core.serving.phases:FILE_TRANSITIONS", "Model file", "The file of a model that this node serves."),
    ("meshllm.core.serving.phases:SERVER_TRANSITIONS", "Model server", "The llama-server of a model, in the core."),
    ("meshllm.engine.processes.child", "Engine process", "A llama-server or rpc-server under supervision."),
]


def head(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def cell(text: str) -> str:
    """A text inside a table."""
    return text.replace("|", "\\|")


def public_names(path: Path) -> str:
    """The classes and functions of a module that have no leading underscore."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    more = "" if len(names) <= MAX_NAMES else f", {len(names) - MAX_NAMES} more"
    return ", ".join(f"`{name}`" for name in names[:MAX_NAMES]) + more


def package_map() -> str:
    """One section for each package, one row for each module."""
    lines = [
        "# Map",
        "",
        "Every module: the first docstring line, and its public names. Written by `scripts/docs.py`; do not edit.",
        "[architecture.md](architecture.md) says how the packages work together.",
    ]
    folders = sorted({path.parent for path in PACKAGE.rglob("*.py")}, key=lambda p: (p != PACKAGE, p))
    for folder in folders:
        modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        if not modules:
            continue
        caption = head(folder / "__init__.py") if (folder / "__init__.py").exists() else ""
        lines += ["", f"## `{folder.relative_to(ROOT)}/`", ""]
        if caption:
            lines += [caption, ""]
        lines += ["| module | what it is | public names |", "|---|---|---|"]
        lines += [f"| `{path.name}` | {cell(head(path))} | {cell(public_names(path))} |" for path in modules]
    return "\n".join(lines) + "\n"


def edges(table: dict[object, object]) -> list[tuple[str, str, str]]:
    """(state, next state, why) for each transition of a table of either form."""
    found = []
    for key, value in table.items():
        if isinstance(key, tuple):
            found.append((name(key[0]), name(key[1]), str(value)))
        else:
            assert isinstance(value, frozenset | set | tuple | list | dict)
            found += [(name(key), name(after), "") for after in sorted(value, key=name)]
    return found


def name(state: object) -> str:
    """A state as the diagram shows it."""
    return state.name.lower() if isinstance(state, Enum) else "none" if state is None else str(state)


def states() -> str:
    """A mermaid diagram for each transition table."""
    lines = [
        "# State diagrams",
        "",
        "Drawn by `scripts/docs.py` from the transition tables in the code, which refuse every other transition.",
    ]
    for name_of_table, title, what in MACHINES:
        module, _, attribute = name_of_table.partition(":")
        table = getattr(importlib.import_module(module), attribute or "TRANSITIONS")
        where = module.replace(".", "/") + ".py"
        lines += ["", f"## {title}", "", f"{what} Table: `{where}`.", "", "```mermaid", "stateDiagram-v2"]
        lines += [f"    {a} --> {b}" + (f": {why}" if why else "") for a, b, why in edges(table)]
        lines += ["```"]
    return "\n".join(lines) + "\n"


AGENTS_HEAD = """# Coding agents

How each agent is pointed at a mesh. Written by `scripts/docs.py` from `meshllm/agents/known/`; do not edit.

`mesh-llm NAME` starts an agent: it uses the node on `--port` (9337), or starts a client node that joins the
remembered mesh (or that of `--join INVITE`) and ends some seconds after the last agent. Without `--model` it chooses:
a model that called a tool when its node tested it (or that `--tools MODEL=yes` declares), then a context of 32,768
tokens, then size, speed, load and distance; one line says why. A model without a chat template is reported: it was
made to continue texts.
Arguments of the agent stand behind `--`.

| option | what it does |
|---|---|
| `--print` | shows what would be set, written and run; with `--write`, what that would write |
| `--write` | writes the agent's own configuration, for starts without mesh-llm while a node runs |
| `--undo` | takes back everything that was written; a file that was changed since keeps the changes |
| `--auto` | where no node runs: a public mesh. This version knows none: it says so, and starts nothing |
| `--no-board` | without the blackboard: no MCP server, no hooks |

`mesh-llm agents` lists what is installed, configured and when it was started last.

Where the node of this MESH_LLM_HOME has a blackboard, the agent gets it as an MCP server named `mesh`, which the agent
starts with `mesh-llm blackboard --mcp`; the tools' names end with `blackboard_post`, `_search`, `_feed` and `_claim`.
Whether a call needs your approval is for the agent's own settings to say. Claude Code, Codex, Qwen Code and pi also get
hooks for the session, which tell them that a message names you (`mesh-llm blackboard peek`): always the same words,
never those of the message. One line at the start says whether the agent has the blackboard, and if not, why.

Files of the user are changed by additions alone: comments and other entries keep their bytes. A file that cannot be
read, or that has an entry of its own where ours would be, is left as it is and named. A node with `--require-key`
gives its key by the environment, or in files that other users cannot read.

Below, the node is at `http://127.0.0.1:9337` and serves MODEL with 32,768 tokens of context; the real limits are
those of `/v1/models`. A limit of less than an agent's own tools and instructions is reported at the start.
"""


def agents_page() -> str:
    """A section for each agent: what a start sets, and what `--write` writes."""
    from meshllm.agents.description import FileStep, known_agents
    from meshllm.agents.filling import BoardAccess, Values, fill_text
    from meshllm.agents.shown import file_lines, start_lines
    from meshllm.core.routing.agent_choice import AgentModel

    def block(lines: list[str]) -> list[str]:
        return ["", "```", *lines, "```"]

    model, lines = AgentModel("MODEL", 32_768), [AGENTS_HEAD.rstrip()]
    for agent in known_agents().values():
        home = "/home/you"
        folders = {"home": home, "config": f"{home}/.config", "folder": f"{home}/.mesh-llm/agents/{agent.name}"}
        folders |= {name: default.format(**folders) for name, (_, default) in agent.folders.items()}
        board = BoardAccess(("/usr/bin/mesh-llm",), f"{home}/.mesh-llm")
        values = Values("http://127.0.0.1:9337", model, (model,), folders, board=board)

        def path(step: FileStep, values: Values = values) -> str:
            return " or ".join(fill_text(path, values) for path in step.paths)

        lines += ["", f"## {agent.title}", "", f"[{agent.title}]({agent.site}). To install it: {agent.install}."]
        lines[-1] += f" Tried with {agent.tried}."
        if agent.prompt_tokens:
            lines[-1] += f" Its own tools and instructions: about {agent.prompt_tokens:,} tokens ({agent.measured})."
        lines += ["", *(f"- {note}" for note in agent.notes)] if agent.notes else []
        lines += ["", f"`mesh-llm {agent.name}` runs:"]
        launch, write = agent.launch, agent.write
        launch = launch if agent.board is None else launch.with_more(agent.board)
        lines += block(start_lines(launch, values, launch.unset, agent.programs[0], ()))
        for step in launch.files:
            lines += block(file_lines(step, values, path))
        if write is None:
            lines += ["", "It has no place for a provider beside the user's own: there is no `--write`."]
            continue
        write = write if agent.board_write is None else write.with_more(agent.board_write)
        same = write.files == launch.files
        what, run = "the same file" if same else "this", fill_text(write.run, values)
        lines += ["", f"`mesh-llm {agent.name} --write` writes {what}; then `{run}`."]
        for step in () if same else write.files:
            lines += block(file_lines(step, values, path))
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a document is out of date")
    check = parser.parse_args().check
    sys.path.insert(0, str(ROOT))
    stale = []
    texts = {"docs/map.md": package_map(), "docs/states.md": states(), "docs/agents.md": agents_page()}
    for path, text in ((ROOT / name, text) for name, text in texts.items()):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(text, encoding="utf-8")
    if stale and check:
        print(f"Out of date: {', '.join(stale)}. Run: python scripts/docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
