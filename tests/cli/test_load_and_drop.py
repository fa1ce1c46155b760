"""`load`, `drop`, `ps`: what they ask the node, and what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner, Result

from meshllm.cli import console_client, engines, entry, members, owner_models, start
from meshllm.cli.last_seen import clock_text
from meshllm.daemon.settings import DEFAULT_MAX_DOWNLOAD, Settings
from meshllm.errors import EnvironmentFailure, UsageError
from meshllm.wire.mesh.invite import Invite


def model(name: str, phase: str, **more: Any) -> dict[str, Any]:
    """A model as the status has it."""
    engine = {"memory": 950_000_000, "pid": 7, "slots": 4, "context_length": 8192} if phase == "serving" else None
    facts = {
        "loaded": engine is not None,
        "engine": engine,
        "idle_seconds": None,
        "unload_seconds": None,
        "progress": None,
    }
    return {"name": name, "phase": phase, "reason": "", "advice": "", **facts, **more}


class Node:
    """A console that answers with these statuses, one after the other, the last one again and again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *statuses: list[dict[str, Any]], serves: bool = False) -> None:
        self.statuses, self.serves = list(statuses), serves
        self.asked: list[tuple[str, Any]] = []
        self.shown = 4
        monkeypatch.setattr(owner_models, "ASK_SECONDS", 0.0)
        for module in (engines, owner_models):
            monkeypatch.setattr(module, "console_port", lambda given: 3131)
        monkeypatch.setattr(members, "ask", self.answer)
        monkeypatch.setattr(console_client, "ask", self.answer)
        monkeypatch.setattr("meshllm.cli.status.ask", self.answer)

    def answer(self, port: int, method: str, path: str, *, body: bytes | None = None, **_: Any) -> tuple[int, bytes]:
        if path == "/api/status":
            self.shown += 1
            models = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            load = {"kind": "engine", "model": "a", "active": 1, "waiting": 2, "tokens_per_second": 22.7}
            return 200, json.dumps({"models": models, "snapshot": self.shown, "load": [load]}).encode()
        self.asked.append((path, json.loads(body or b"null")))
        name = self.asked[-1][1]["model"]
        if name == "unknown":
            return 409, json.dumps({"error": {"code": "x", "message": "No model is called that."}}).encode()
        return 200, json.dumps({"model": name.rpartition("/")[2], "snapshot": 5, "serves": self.serves}).encode()


def run(*words: str) -> Result:
    """`mesh-llm` with these words."""
    return CliRunner().invoke(entry.app, list(words), catch_exceptions=False)


def test_load_shows_each_stage_once_until_the_model_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [("fetching", "downloading", 0.1), ("fetching", "downloading", 0.6), ("loading", "loading", 0.5)]
    states = [[model("a", phase, progress={"stage": stage, "fraction": part})] for phase, stage, part in steps]
    node = Node(monkeypatch, [], *states, [model("a", "serving")])
    found = run("load", "a")
    assert node.asked == [("/api/models/load", {"model": "a"})]
    assert found.output.splitlines() == [
        "a: waiting", "a: downloading 10%", "a: loading 50%", "a is served: 0.95 GB, 4 slots, context 8k.",
    ]  # fmt: skip


def test_load_says_why_a_model_cannot_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first status is older than the request: what failed before does not count.
    old, new = model("a", "failed", reason="Old."), model("a", "failed", reason="No room.", advice="Drop one.")
    Node(monkeypatch, [old], [model("a", "waiting")], [new])
    with pytest.raises(EnvironmentFailure, match=r"a cannot be served: No room\.") as caught:
        run("load", "a")
    assert caught.value.advice == "Drop one."
    with pytest.raises(EnvironmentFailure, match="No model is called that"):
        run("load", "unknown")


def test_load_does_not_wait_where_it_need_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Node(monkeypatch, [model("a", "waiting")])
    assert "being loaded" in run("load", "a", "--no-wait").output
    Node(monkeypatch, [model("a", "serving")], serves=True)
    assert "served already" in run("load", "a").output
    file = tmp_path / "m.gguf"
    file.touch()
    monkeypatch.chdir(tmp_path)
    node = Node(monkeypatch, [], serves=True)
    run("load", "./m.gguf")
    assert node.asked == [("/api/models/load", {"model": str(file)})], "the node has another working directory"


def test_drop_asks_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch, [])
    assert run("drop", "a").output.startswith("a is dropped")
    assert node.asked == [("/api/models/drop", {"model": "a"})]


def test_ps_is_a_table_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = model("b", "serving", idle_seconds=75.0, unload_seconds=3600.0)
    failed = model("c\x1b[2J", "failed", reason="No room.", advice="Drop one.")
    Node(monkeypatch, [model("a", "serving"), idle, model("d", "available"), failed])
    lines = run("ps").output.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["MODEL", "STATE", "MEMORY", "SLOTS", "WAITING", "TOK/S", "CONTEXT", "IDLE", "UNLOAD", "AT"],
        ["a", "serving", "0.95", "GB", "1/4", "2", "23", "8k", "-", "-"],
        ["b", "serving", "0.95", "GB", "0/4", "0", "-", "8k", "1", "min", "15", "s", *clock_text(-3600.0).split()],
    ]
    assert lines[3].split()[:3] == ["d", "available", "-"]
    assert lines[-1].endswith("No room. Drop one.")
    assert "\x1b" not in "".join(lines)
    rows = json.loads(run("ps", "--json").output)["models"]
    wanted = ("model", "loaded", "active", "idle_seconds", "unload_seconds")
    assert [tuple(row[fact] for fact in wanted) for row in rows[:3]] == [
        ("a", True, 1, None, None), ("b", True, 0, 75.0, 3600.0), ("d", False, 0, None, None),
    ]  # fmt: skip
    Node(monkeypatch, [])
    assert "serves no model" in run("ps").output


def test_options_reach_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Settings] = []
    monkeypatch.setattr(start, "run", lambda given, **_: taken.append(given))
    run("--model", "a", "--model", "b", "--serve-all", "--idle-unload", "1.5")
    run()
    assert [(it.models, it.serve_all, it.idle_unload) for it in taken] == [(("a", "b"), True, 90.0), ((), False, None)]
    with pytest.raises(UsageError, match="--serve-all needs a --model"):
        run("--serve-all")


def test_downloads_on_demand_are_bounded_and_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Settings] = []
    monkeypatch.setattr(start, "run", lambda given, **_: taken.append(given))
    run()
    run("--no-fetch-on-demand")
    run("--fetch-on-demand", "--ctx-size", "256")
    run("--fetch-on-demand", "--max-download", "0.5", "--model", "a")
    assert [it.download_limit for it in taken] == [0, 0, DEFAULT_MAX_DOWNLOAD, 500_000_000]
    assert [it.loads_on_demand(founded=True) for it in taken] == [False, False, True, True]
    for words in (
        ("--fetch-on-demand", "--client"),
        ("--fetch-on-demand", "--no-on-demand"),
        ("--max-download", "5"),
        ("--max-download", "5", "--no-fetch-on-demand"),
    ):
        with pytest.raises(UsageError, match=words[0]):
            run(*words)


def test_context_is_for_models_that_requests_load_too(tmp_path: Path) -> None:
    invites = (cast(Invite, object()),)
    start.check(Settings(tmp_path, context=512, invites=invites))
    start.check(Settings(tmp_path, context=512, on_demand=True))
    for settings, said in (
        (Settings(tmp_path, context=512), "--join INVITE"),
        (Settings(tmp_path, context=512, invites=invites, on_demand=False), "--no-on-demand"),
    ):
        with pytest.raises(UsageError, match="--ctx-size needs a model") as caught:
            start.check(settings)
        assert said in caught.value.advice
