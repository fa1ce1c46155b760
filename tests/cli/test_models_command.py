"""`mesh-llm models`: what is listed and shown, what verifying says, and that nothing is removed by mistake."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from typer.testing import CliRunner, Result

from meshllm.cli import machine_info
from meshllm.cli import models as command
from meshllm.core.memory.devices import MachineMemory
from meshllm.errors import InvalidModelFile, UnknownModel, UsageError
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.models.library.store import Store
from meshllm.models.transfer.prefix_hash import digests
from meshllm.util.threads import StopSignal
from tests import engine_samples

GB = 10**9


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A model folder of its own, on a machine with 16 GB free where no node runs."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLAMA_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MESH_LLM_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(machine_info, "machine", lambda: MachineMemory(32 * GB, 16 * GB))
    found = Store(tmp_path / "models")
    found.prepare()
    return found


def run(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(command.app, list(arguments), catch_exceptions=False, input=answer)


def said(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0
    return result.stdout


def model(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return engine_samples.causal_embedder(path)


def theirs(name: str = "theirs.gguf") -> Path:
    return model(Path("~/.lmstudio/models/org/repo").expanduser() / name)


def sees(store: Store) -> tuple[Path, Path]:
    """A model with a projector, both as they were fetched and verified."""
    first, second = model(store.folder / "sees.gguf"), engine_samples.projector(store.folder / "mmproj-sees.gguf")
    files = []
    for path in (first, second):
        found = digests(StopSignal(), path, store.chunk_bytes, lambda done: None).sha256
        store.record(path, found)
        files.append(ModelFile(path.name, path.stat().st_size, found))
    store.manifest_cache.put(Manifest("Sees", (files[0],), files[1], origin="the hub"))
    return first, second


# -- listing


def test_models_of_an_empty_folder_explains_download(store: Store) -> None:
    assert "There are no models in" in said()
    assert "`mesh-llm download`" in said()
    assert json.loads(said("--json")) == []


@pytest.mark.usefixtures("store")
def test_models_of_an_unreadable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for odd in ("file", "link"):
        monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path / odd))
        (tmp_path / odd).touch() if odd == "file" else (tmp_path / odd).symlink_to(tmp_path / "nowhere")
        for arguments in ([], ["--json"], ["show", "m"], ["verify"], ["remove", "m"]):
            with pytest.raises(UsageError, match=f"{odd} cannot be read: (not a directory|no such file)") as raised:
                said(*arguments)
            assert "MESH_LLM_MODELS" in raised.value.advice
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path / "nowhere"))
    assert "There are no models in" in said()


def test_models_lists_no_download_without_bytes(store: Store) -> None:
    store.manifest_cache.put(Manifest("M", (ModelFile("m.gguf", 500, "e" * 64),), origin="the hub"))
    store.partial_path(ModelFile("m.gguf", 500, "e" * 64)).touch()
    assert "There are no models in" in said()
    assert [item["name"] for item in json.loads(said("--json"))] == ["M"]


def test_models_lists_one_line_each(store: Store) -> None:
    model(store.folder / "mine.gguf")
    sees(store)
    theirs()
    store.partial_path(ModelFile("x.gguf", 5, "d" * 64)).write_bytes(b"x")
    lines = said().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["mine", "Sees", "unknown-dddddddddddd", "theirs"]
    assert lines[0].endswith("F32  2k  not verified  mine.gguf")
    assert lines[1].endswith("verified  sees.gguf and 1 more")
    assert lines[3].endswith("not verified  LM Studio: ~/.lmstudio/models/org/repo/theirs.gguf")
    told = json.loads(said("--json"))
    assert [item["state"] for item in told] == ["not-verified", "verified", "partial", "not-verified"]
    assert told[3]["program"] == "LM Studio"


def test_models_prints_a_table_on_a_terminal(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model(store.folder / "[red]mine.gguf")
    (store.folder / "bad.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    command.models(click.Context(click.Command("models")))  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "[red]mine" in printed
    assert "damaged" in printed
    assert "is not a usable GGUF file" in " ".join(re.sub(r"\x1b\[[0-9;]*m", "", printed).split())


def test_models_prints_no_control_characters(store: Store) -> None:
    model(store.folder / "a\x1b[2J\nb.gguf")
    (store.folder / "c\x1b[2J.gguf").write_bytes(b"GGUF")
    for result in (run(), run("verify"), run("show", str(store.folder / "a\x1b[2J\nb.gguf"))):
        assert "\x1b" not in result.stdout
        assert "?[2J" in result.stdout


# -- showing


def test_show_prints_all_properties(store: Store) -> None:
    path, projector = sees(store)
    text = said("show", "sees")
    for words in (
        f"files         {path}", str(projector), "from          the hub", "architecture  llama",
        "vocabulary    31 words (gpt2)", "with 2,048 tokens of context", "(forecast)", "for the weights",
        "may be used now",
    ):  # fmt: skip
        assert words in text
    told = json.loads(said("show", "sees", "--json"))
    assert told["header"]["layers"] == 1
    assert told["projector"] == str(projector)
    assert told["forecast"]["verdict"] == "fits"
    assert told["origin"] == "the hub"
    assert len(told["digests"][str(path)]) == 64


def test_show_fits_the_terminal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sees(store)
    for columns in (80, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        for name in ("sees", "Llama-3.3-70B-Instruct"):
            lines = said("show", name).splitlines()
            whole = [line for line in lines if "/" in line or re.search("[0-9a-f]{64}", line)]
            assert all(len(line) <= columns for line in lines if line not in whole)
    assert len([line for line in said("show", "sees").splitlines() if str(store.folder) in line]) == 3


def test_show_a_catalog_model_that_is_not_here(store: Store) -> None:
    text = said("show", "qwen3 8b")
    for words in ("Qwen3-8B", "on disk      no", "8.2B parameters", "usual draft  Qwen3-0.6B", "Apache-2.0", "fits;"):
        assert words in text
    told = json.loads(said("show", "Llama-3.3-70B-Instruct", "--json"))
    assert (told["state"], told["forecast"]["verdict"], told["header"]) == ("absent", "split", None)


def test_show_a_file_by_its_path(store: Store, tmp_path: Path) -> None:
    path = model(tmp_path / "elsewhere" / "x.gguf")
    assert "architecture  llama" in said("show", str(path))


def test_show_reports_why_a_file_is_invalid(store: Store) -> None:
    (store.folder / "bad.gguf").write_bytes(b"GGUF")
    store.partial_path(ModelFile("x.gguf", 5, "d" * 64)).write_bytes(b"x")
    with pytest.raises(UnknownModel, match="is not a usable GGUF file"):
        run("show", "bad")
    with pytest.raises(UnknownModel, match="unknown model"):
        run("show", "unknown-dddddddddddd")
    with pytest.raises(
        UnknownModel, match=r"reads the header only of a file on this disk.*`mesh-llm download org/repo:Q8_0`"
    ):
        run("show", "org/repo:Q8_0")
    with pytest.raises(UnknownModel, match="No model is called"):
        run("show", "no such thing at all")
    lone = store.folder / "mmproj.gguf"
    engine_samples.projector(lone)
    with pytest.raises((UnknownModel, InvalidModelFile), match="mmproj"):
        run("show", str(lone))


# -- verifying


def test_verify_reports_correct_files(store: Store) -> None:
    sees(store)
    engine_samples.embedder(store.folder / "mine.gguf")
    lines = said("verify").splitlines()
    assert sum("is ok" in line for line in lines) == 2
    assert sum("expected digest unknown" in line for line in lines) == 1
    assert "is ok" in said("verify", "mine"), "it is known from now on"
    assert [proof["verdict"] for proof in json.loads(said("verify", "--json"))] == ["sound"] * 3
    assert "There are no models to verify" not in said("verify")


def test_verify_a_damaged_file_exits_1_with_advice(store: Store) -> None:
    path, _ = sees(store)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = run("verify")
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if "DAMAGED" in line]
    assert str(path) in line
    assert "its sha256 differs from the expected one" in line
    assert "mesh-llm models remove" in line
    assert "mesh-llm download" in line
    assert run("verify", "--json", str(path)).exit_code == 1


def test_verify_damage_in_another_app_names_the_app(store: Store) -> None:
    path = theirs()
    said("verify", "theirs")
    path.write_bytes(path.read_bytes()[:100])
    result = run("verify", str(path))
    assert result.exit_code == 1
    assert "DAMAGED" in result.stdout
    assert "LM Studio" in result.stdout


def test_verify_skips_files_that_are_no_model(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for odd in ("/dev/zero", str(tmp_path / "pipe.gguf")):
        with pytest.raises(UnknownModel, match="is not on this disk"):
            run("verify", odd)


def test_verify_reports_missing_parts_only_when_named(store: Store) -> None:
    file = ModelFile("m.gguf", 100, "a" * 64)
    store.manifest_cache.put(Manifest("m", (file,)))
    store.partial_path(file).write_bytes(b"abc")
    assert "There are no models to verify" in said("verify")
    result = run("verify", "m")
    assert result.exit_code == 1
    assert "Download the rest with `mesh-llm download m`" in result.stdout


# -- removing


def test_remove_asks_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path, projector = sees(store)
    with pytest.raises(UsageError, match="Standard input is not a terminal"):
        run("remove", "Sees")
    monkeypatch.setattr("meshllm.cli.models._is_interactive", lambda: True)
    refused = run("remove", "Sees", answer="n\n")
    assert refused.exit_code == 1
    assert f"remove  {path}" in refused.stdout
    assert "Nothing was removed." in refused.stdout
    assert path.exists()
    assert projector.exists()
    done = run("remove", "Sees", answer="y\n")
    assert done.exit_code == 0
    assert "Removed Sees" in done.stdout
    assert not path.exists()
    assert not projector.exists()


def test_remove_with_yes_and_json(store: Store) -> None:
    path = model(store.folder / "mine.gguf")
    size = path.stat().st_size
    told = json.loads(said("remove", "mine", "--yes", "--json"))
    assert (told["removed"], told["freed"], told["kept"]) == ([str(path)], size, [])
    assert not path.exists()


def test_remove_rejects_models_of_other_apps(store: Store) -> None:
    path = theirs()
    with pytest.raises(UsageError, match="belongs to LM Studio") as refused:
        run("remove", "theirs", "--yes")
    assert str(path) in refused.value.message
    assert path.exists()


@pytest.mark.parametrize(
    "model_status",
    [
        {"name": "mine", "phase": "serving"},
        {"name": "other", "phase": "serving", "file": {"path": "HERE"}},
        {"name": "other", "phase": "serving", "engine": {"speculation": {"draft_model": "mine"}}},
        {"name": "mine", "phase": "fetching", "file": None, "engine": None},
    ],
)
def test_remove_rejects_a_model_in_use_by_the_node(
    store: Store, monkeypatch: pytest.MonkeyPatch, model_status: dict[str, Any]
) -> None:
    path = model(store.folder / "mine.gguf")
    if model_status.get("file"):
        model_status = {**model_status, "file": {"path": str(path)}}
    monkeypatch.setattr(machine_info, "running", lambda: {"machine": {}, "models": [model_status]})
    with pytest.raises(
        UsageError, match=r"The running node (serves (mine|other)|uses mine as the draft model of other)"
    ) as caught:
        run("remove", "mine", "--yes")
    assert "'mesh-llm drop " in caught.value.advice
    assert path.exists()


def test_remove_accepts_a_model_not_in_use(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(store.folder / "mine.gguf")
    others = [{"name": "other", "phase": "serving"}, {"name": "mine", "phase": "failed"}]
    monkeypatch.setattr(machine_info, "running", lambda: {"machine": {}, "models": others})
    said("remove", "mine", "--yes")
    assert not path.exists()


@pytest.mark.parametrize("name", ["", "\x1b[2J", "a\nb", "../..", "~", "x" * 5000, "[bold]", "-", "\0"])
def test_remove_rejects_odd_names(store: Store, name: str) -> None:
    path = model(store.folder / "mine.gguf")
    with pytest.raises((UnknownModel, UsageError)):
        run("remove", "--yes", "--", name)
    assert path.exists()
