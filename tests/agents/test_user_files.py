"""The files of every agent in populated homes: written, used again, undone."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshllm.agents import json_text
from meshllm.agents.description import known_agents
from meshllm.agents.journal import JOURNAL_FILE, Journal
from meshllm.agents.launcher import AGENTS_FOLDER, Launcher
from meshllm.agents.node import NodeAddress
from meshllm.agents.user_files import FileRefused, apply, plan
from meshllm.core.routing.agent_choice import AgentModel
from meshllm.errors import DamagedState, MeshError, UsageError

SMALL, LARGE = AgentModel("org/small", 8192), AgentModel("large", 65_536)
# A user's files, by agent: with comments, other providers, tabs, and no newline at the end.
POPULATED: dict[str, dict[str, str]] = {
    "claude": {".claude/settings.json": '{\n  "model": "opus",\n  "env": {\n    "MINE": "1"\n  }\n}'},
    "codex": {
        ".codex/config.toml": '# mine\nmodel = "gpt-5"\n\n[model_providers.other] # theirs\nname = "o"\n',
        ".codex/work.config.toml": 'model = "x"\n',
    },
    "opencode": {
        ".config/opencode/opencode.jsonc": '// mine\n{\n  "provider": {\n    "other": {"npm": "x"}, // two\n  },\n}\n'
    },
    "goose": {
        ".config/goose/config.yaml": "GOOSE_PROVIDER: openai # mine\n",
        ".config/goose/custom_providers/a.json": "{}",
    },
    "pi": {
        ".pi/agent/models.json": '{\n\t"providers": {\n\t\t"other": { "baseUrl": "http://x" } // mine\n\t}\n}\n',
        ".pi/agent/mcp.json": '{"mcpServers": {"mine": {"command": "x"}}, "autoEnableCodemode": false}',
    },
    "qwen": {
        ".qwen/settings.json": '{"modelProviders": {"openai": [{"id": "mine"}]}, "t": 1, "mcpServers": {"a": {}}}\n'
    },
    "cline": {
        ".cline/data/settings/providers.json": '{"version": 1, "providers": {"other": {"settings": {"a": "mine"}}}}',
        ".cline/data/settings/cline_mcp_settings.json": '{\n  "mcpServers": {\n    "mine": {"command": "x"}\n  }\n}\n',
    },
    "continue": {
        ".continue/config.yaml": "name: mine\nversion: 1.0.0\nschema: v1\n"
        "models:\n  - name: a # best\n    provider: x\nmcpServers:\n  - name: mine # too\n    command: x\n"
    },
    "aider": {".aider.conf.yml": "model: x # mine\n", ".aider.model.metadata.json": '{"mine": {"mode": "chat"}}'},
}  # fmt: skip
WRITING = sorted(name for name, agent in known_agents().items() if agent.write is not None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of the user."""
    for agent in known_agents().values():
        for variable, _ in agent.folders.values():
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def populate(home: Path, name: str) -> None:
    for path, text in POPULATED[name].items():
        file = home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())


def look(home: Path) -> dict[str, tuple[str, int]]:
    """Every file and folder: digest and mode."""
    return {
        str(path.relative_to(home)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder",
            stat.S_IMODE(path.lstat().st_mode),
        )
        for path in sorted(home.rglob("*"))
    }


def launcher_of(name: str, home: Path) -> Launcher:
    return Launcher(known_agents()[name], home.parent / "mesh", {})


def values_of(launcher: Launcher, *models: AgentModel, key: str = "") -> Any:
    chosen = models or (SMALL, LARGE)
    return launcher.values(NodeAddress(9337, key=key), chosen[0], chosen, ("/usr/bin/mesh-llm",))


def configure(launcher: Launcher, home: Path, *models: AgentModel, key: str = "") -> None:
    """What a start of the agent writes."""
    journal = Journal(home.parent / "mesh" / AGENTS_FOLDER)
    values, setup = values_of(launcher, *models, key=key), launcher.agent.launch
    setup = setup if launcher.agent.board is None else setup.with_more(launcher.agent.board)
    apply(launcher.agent, plan(launcher.agent, setup, values, journal), journal)


@pytest.mark.parametrize("populated", [True, False])
@pytest.mark.parametrize("name", sorted(known_agents()))
def test_launch_and_write_are_undone_to_the_byte(name: str, home: Path, populated: bool) -> None:
    if populated:
        populate(home, name)
    before, launcher = look(home), launcher_of(name, home)
    configure(launcher, home)
    if name in WRITING:
        launcher.write(values_of(launcher))
        launcher.write(values_of(launcher, LARGE))
    configure(launcher, home, LARGE)
    assert all(result.done for result in launcher.undo())
    assert look(home) == before
    left = {path.name for path in (home.parent / "mesh").rglob("*") if path.is_file()}
    assert left <= {"lock", JOURNAL_FILE}
    assert launcher.undo() == []


@pytest.mark.parametrize("name", sorted(known_agents()))
def test_launch_changes_no_file_of_the_user_but_those_it_must(name: str, home: Path) -> None:
    populate(home, name)
    before = look(home)
    configure(launcher_of(name, home), home)
    changed = {path for path, facts in look(home).items() if before.get(path) != facts and facts[0] != "folder"}
    own = {"pi": {".pi/agent/models.json"}, "goose": {".config/goose/custom_providers/mesh.json"}}
    assert changed == own.get(name, set())


@pytest.mark.parametrize("name", WRITING)
def test_written_files_have_the_limits_that_are_served(name: str, home: Path) -> None:
    populate(home, name)
    launcher = launcher_of(name, home)
    paths = launcher.write(values_of(launcher, SMALL))
    text = "".join(path.read_text() for path in paths)
    assert "org/small" in text
    assert name == "cline" or "8192" in text  # its settings have no place for a context
    for path in paths:
        content = path.read_text()
        read = {".toml": tomllib.loads, ".yaml": yaml.safe_load}.get(path.suffix, json_text.parse)
        assert read(content)


@pytest.mark.parametrize("name", sorted({*WRITING, "pi"} - {"goose"}))
@pytest.mark.parametrize("broken", [b'{"provider": ', b"\xff\xfe{}", b"[1, 2]", b"- a\n b: c\n"])
def test_broken_file_is_untouched_and_named(name: str, home: Path, broken: bytes) -> None:
    populate(home, name)
    launcher = launcher_of(name, home)
    path = launcher.write(values_of(launcher))[0]
    launcher.undo()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(broken)
    before = look(home)
    with pytest.raises(FileRefused, match=path.name):
        launcher.write(values_of(launcher))
    assert look(home) == before


@pytest.mark.parametrize("name", ["claude", "codex", "cline", "opencode", "pi", "qwen", "continue", "aider"])
def test_changes_of_the_user_survive_undo_and_a_second_write(name: str, home: Path) -> None:
    populate(home, name)
    launcher = launcher_of(name, home)
    paths = launcher.write(values_of(launcher))
    path = paths[0]
    original = POPULATED[name][str(path.relative_to(home))]
    word = {"claude": "opus", "aider": "chat", "opencode": "npm", "pi": "http://x", "codex": "theirs"}.get(name, "mine")

    def edited(text: str) -> str:
        return text.replace(word, f"{word}-changed", 1)

    path.write_text(edited(path.read_text()))
    launcher.write(values_of(launcher, LARGE))
    assert "large" in "".join(path.read_text() for path in paths)
    assert all(result.done for result in launcher.undo())
    assert path.read_text() == edited(original)

    launcher.write(values_of(launcher))
    changed = path.read_text().replace(word, f"{word}-again", 1)
    path.write_text(changed)
    assert all(result.done for result in launcher.undo())
    assert f"{word}-again" in path.read_text()
    assert "org/small" not in path.read_text()


def test_entry_that_the_user_changed_is_kept_and_reported(home: Path) -> None:
    populate(home, "pi")
    launcher = launcher_of("pi", home)
    configure(launcher, home, SMALL)
    path = home / ".pi/agent/models.json"
    path.write_text(path.read_text().replace("8192", "4096"))
    before = look(home)
    result = launcher.undo()[-1]
    assert not result.done
    assert "providers.mesh was changed" in result.text
    with pytest.raises(FileRefused, match=r"providers\.mesh"):
        configure(launcher, home, LARGE)
    assert look(home) == before
    path.write_text(path.read_text().replace("4096", "8192"))
    assert launcher.undo()[-1].done


def test_time_of_the_last_use_that_an_agent_writes_is_no_change(home: Path) -> None:
    populate(home, "cline")
    launcher = launcher_of("cline", home)
    path, *_ = launcher.write(values_of(launcher))
    found = json.loads(path.read_text())
    found["providers"]["openai-compatible"]["updatedAt"] = "2026-12-24T00:00:00.000Z"
    found["lastUsedProvider"] = "other"
    path.write_text(json.dumps(found))
    assert launcher.undo()[-1].done
    assert json.loads(path.read_text()) == {
        **json.loads(POPULATED["cline"][".cline/data/settings/providers.json"]),
        "lastUsedProvider": "other",
    }
    launcher.write(values_of(launcher))
    found["providers"]["openai-compatible"]["settings"]["model"] = "another"
    path.write_text(json.dumps(found))
    assert not launcher.undo()[-1].done


def test_provider_of_the_user_with_our_name_is_left_alone(home: Path) -> None:
    path = home / ".pi/agent/models.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"providers": {"mesh": {"baseUrl": "http://mine"}}}')
    before = look(home)
    with pytest.raises(FileRefused, match=r"providers\.mesh has a value of its own"):
        configure(launcher_of("pi", home), home)
    assert look(home) == before


def test_inline_table_of_the_user_is_not_called_a_fault(home: Path) -> None:
    path = home / ".codex/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text('model_providers = { other = { name = "o" } }\n')
    before = look(home)
    launcher = launcher_of("codex", home)
    with pytest.raises(FileRefused, match=r"model_providers is written as an inline table .* is correct") as caught:
        launcher.write(values_of(launcher))
    assert caught.value.advice.startswith("Write it as tables with headers ([model_providers.NAME]")
    assert "or add this by hand (mesh-llm codex" in caught.value.advice
    assert look(home) == before


def test_file_of_ours_is_replaced_only_while_it_is_as_we_wrote_it(home: Path) -> None:
    launcher, path = launcher_of("goose", home), home / ".config/goose/custom_providers/mesh.json"
    configure(launcher, home, SMALL)
    configure(launcher, home, LARGE)
    assert json.loads(path.read_text())["models"] == [{"name": "large", "context_limit": 65_536}]
    path.write_text("{}")
    for refused in (lambda: configure(launcher, home, SMALL), lambda: launcher.write(values_of(launcher))):
        with pytest.raises(FileRefused, match="was changed since"):
            refused()
    assert not launcher.undo()[0].done
    assert path.read_text() == "{}"
    shutil.rmtree(home.parent / "mesh")
    with pytest.raises(FileRefused, match="did not write it"):
        configure(launcher, home, SMALL)


def test_nothing_is_written_if_one_file_of_a_setup_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = launcher_of("claude", home)
    (home / ".claude").mkdir()
    (home / ".claude/settings.json").write_text("{")
    with pytest.raises(FileRefused, match=r"settings\.json.*line 1, column 2"):
        launcher.write(values_of(launcher))
    assert not (home.parent / "mesh" / AGENTS_FOLDER / JOURNAL_FILE).exists()


def test_links_and_modes_of_the_user_are_kept(home: Path) -> None:
    real = home / "dotfiles" / "models.json"
    real.parent.mkdir()
    real.write_text("{}")
    real.chmod(0o640)
    link = home / ".pi/agent/models.json"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    launcher = launcher_of("pi", home)
    configure(launcher, home)
    assert link.is_symlink()
    assert "mesh" in real.read_text()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    launcher.undo()
    assert link.is_symlink()
    assert real.read_text() == "{}"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_key_goes_only_to_files_that_others_cannot_read(home: Path) -> None:
    launcher = launcher_of("pi", home)
    configure(launcher, home, key="s3cret-key")
    path = home / ".pi/agent/models.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    launcher.undo()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    path.chmod(0o644)
    with pytest.raises(FileRefused, match="other users"):
        configure(launcher, home, key="s3cret-key")
    assert path.read_text() == "{}"
    for file in (home.parent / "mesh").rglob("*"):
        assert file.is_dir() or stat.S_IMODE(file.stat().st_mode) == 0o600


def test_write_interrupted_before_the_file_changed_is_undone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    populate(home, "pi")
    before, launcher = look(home), launcher_of("pi", home)

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("meshllm.agents.user_files.replace_file", fail)
    with pytest.raises(MeshError, match="No space left"):
        configure(launcher, home)
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(home))
    assert look(home) == before
    assert launcher.undo()[0].done
    assert look(home) == before


def test_agent_without_a_place_for_a_provider_says_so(home: Path) -> None:
    launcher = launcher_of("cline", home)
    launcher.agent = replace(launcher.agent, write=None)
    with pytest.raises(UsageError, match="no place for a provider"):
        launcher.write(values_of(launcher))


def test_damaged_journal_is_named_and_kept(home: Path) -> None:
    folder = home.parent / "mesh" / AGENTS_FOLDER
    folder.mkdir(parents=True)
    (folder / JOURNAL_FILE).write_text('{"files": [{"path": 1}]')
    with pytest.raises(DamagedState, match=JOURNAL_FILE):
        configure(launcher_of("pi", home), home)
    assert (folder / JOURNAL_FILE).read_text() == '{"files": [{"path": 1}]'
