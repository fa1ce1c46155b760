"""`mesh-llm download NAME`: what is fetched, the bar and the lines, and what an interruption says."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import close_session
from rich.console import Console

from meshllm.cli.transfers import DownloadTally, ProgressBar, ProgressLines
from meshllm.errors import UnknownModel, UsageError
from meshllm.models.catalog.catalog import Catalog, load
from meshllm.models.catalog.entry import CatalogEntry
from meshllm.models.hub.manifest import HubReference
from meshllm.models.library.store import Store
from meshllm.models.transfer.progress import TransferProgress, TransferStage
from meshllm.models.transfer.request import requested_models
from tests import engine_samples
from tests.cli.downloading import run
from tests.models.fake_hub import FakeHub, running

ENTRY = load().entries[0]
FILE = ENTRY.files[0]


def test_download_unknown_name_raises(store: Store) -> None:
    with pytest.raises(UnknownModel, match="SmolLM2-135M-Instruct"):
        run("SmolLM-135M-Instruct")


STEPS = [
    TransferProgress(TransferStage.CONNECTING, file="m.gguf", source="the hub", done=0, total=100),
    TransferProgress(TransferStage.FAILED_SOURCE, file="m.gguf", detail="It [b]failed[/b]."),
    TransferProgress(TransferStage.WAITING, file="m.gguf"),
    *(
        TransferProgress(TransferStage.DOWNLOADING, file="m.gguf", source="a package", done=done, total=100)
        for done in range(0, 101, 5)
    ),
    TransferProgress(TransferStage.EXTRACTING, file="m.gguf", source="a package", done=7, total=10),
    TransferProgress(TransferStage.VERIFYING, file="m.gguf", source="", done=0, total=0),
    TransferProgress(TransferStage.READY, file="m.gguf", done=100, total=100),
]


def test_progress_lines_are_few() -> None:
    text = io.StringIO()
    view = ProgressLines(Console(file=text, width=80))
    with view:
        for step in STEPS:
            view.report(step)
    lines = text.getvalue().splitlines()
    assert lines[0] == "m.gguf: connecting to the hub"
    assert lines[1] == "It [b]failed[/b]."
    assert lines[3:5] == ["m.gguf: downloading from a package 0 %", "m.gguf: downloading from a package 10 %"]
    assert lines[-1] == "m.gguf: verifying"
    assert len(lines) == 16


def test_progress_bar_shows_the_stages() -> None:
    text = io.StringIO()
    view = ProgressBar(Console(file=text, force_terminal=True, width=100))
    with view:
        for step in STEPS:
            view.report(step)
            view._bar.refresh()
    printed = text.getvalue()
    assert "It [b]failed[/b]." in printed
    assert "downloading" in printed
    assert "verifying" in printed


def shares(name: str, done: int, **sources: int) -> TransferProgress:
    return TransferProgress(
        TransferStage.DOWNLOADING,
        file=name,
        source="https://hub.example",
        done=done,
        total=100,
        by_source=tuple(sources.items()),
    )


def test_tally_sums_up_several_files() -> None:
    tally = DownloadTally()
    tally.expect(lambda: {"a.gguf": 100, "b.gguf": 100, "mmproj.gguf": 50})
    tally.add(shares("a.gguf", 30, hub=10, anna=20))
    assert (tally.done, tally.total, tally.place("a.gguf")) == (30, 250, "1 of 3")
    tally.add(shares("a.gguf", 100, hub=70, anna=30))
    tally.expect(lambda: {"d.gguf": 7})  # the draft's, when the model is there
    tally.add(shares("b.gguf", 40, hub=40))
    assert (tally.done, tally.total, tally.place("b.gguf")) == (140, 257, "2 of 4")
    assert tally.sources() == "hub 0.0 MB, anna 0.0 MB"


def test_progress_lines_number_the_files() -> None:
    text = io.StringIO()
    view = ProgressLines(Console(file=text, width=80))
    view.expect(lambda: {"a.gguf": 100, "b.gguf": 100})
    with view:
        view.report(shares("a.gguf", 100))
        view.report(
            TransferProgress(
                TransferStage.DOWNLOADING, file="b\x1b[2J.gguf", source="https://hub.example/x", done=0, total=100
            )
        )
    assert text.getvalue().splitlines() == [
        "a.gguf (1 of 2): downloading from hub.example 100 %",
        "b?[2J.gguf (2 of 3): downloading from hub.example 0 %",
    ]


def test_progress_bar_ends_with_the_sources() -> None:
    text = io.StringIO()
    view = ProgressBar(Console(file=text, force_terminal=True, width=120))
    given = (("anna", 3_000_000), ("https://hub.example", 1_000_000))
    with view:
        view.report(
            TransferProgress(
                TransferStage.DOWNLOADING,
                file="a.gguf",
                source="peers",
                done=4_000_000,
                total=4_000_000,
                by_source=given,
            )
        )
    assert "from anna 3.0 MB, hub.example 1.0 MB" in text.getvalue()


# -- what is fetched


@pytest.fixture
def hub(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    content = engine_samples.causal_embedder(tmp_path / "made.gguf").read_bytes()
    sees = engine_samples.projector(tmp_path / "sees.gguf").read_bytes()
    with running(FakeHub(content, others={"mmproj-F16.gguf": sees})) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.endpoint)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield fake
    close_session()


def test_download_of_a_vision_model_includes_its_projector(store: Store, hub: FakeHub) -> None:
    told = json.loads(run("org/repo/model.gguf", "--json"))
    assert told["name"] == "model"
    assert Path(told["path"]).read_bytes() == hub.content
    assert Path(told["projector"]).read_bytes() == hub.others["mmproj-F16.gguf"]
    assert told["size"] == len(hub.content)
    again = run("org/repo/model.gguf")
    assert again.startswith(f"model is at {told['path']}, with the vision projector mmproj-F16.gguf")


def test_download_with_draft_downloads_both_models(store: Store, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    small = HubReference("Small", "org/repo", "small.gguf")
    draft = CatalogEntry("Small", "llama", 1, "F32", 2048, "MIT", None, hub=small)
    large = replace(draft, name="Large", hub=HubReference("Large", "org/repo", "model.gguf"), draft="Small")
    hub.others = {"small.gguf": hub.content[:-4] + b"more"}
    catalog = Catalog((draft, large))
    for module in ("catalog.catalog", "catalog.resolve", "library.scan", "transfer.request"):
        monkeypatch.setattr(f"meshllm.models.{module}.load", lambda: catalog)
    told = json.loads(run("Large", "--draft", "--json"))
    assert [model["name"] for model in told] == ["Large", "Small"]
    assert [Path(model["path"]).name for model in told] == ["model.gguf", "small.gguf"]
    with pytest.raises(UsageError, match="No draft model is known for Small: the catalogue lists none"):
        run("Small", "--draft")
    with pytest.raises(UsageError, match="is not in the catalogue"):
        run("org/repo/model.gguf", "--draft")


def test_requested_models_notes_how_a_name_was_understood(store: Store) -> None:
    wanted, note = requested_models("qwen3 8b", store, draft=True)
    assert [model.name for model in wanted] == ["Qwen3-8B", "Qwen3-0.6B"]
    assert note == "'qwen3 8b' is taken as Qwen3-8B (Q4_K_M)."


INTERRUPTED = """
import sys, typer
from meshllm.cli.download import download
typer.run(download)
"""


def test_interrupted_download_reports_what_is_kept(store: Store, tmp_path: Path) -> None:
    """The whole command, with Ctrl-C while pip runs and with a part of the file from an earlier start."""
    store.prepare()
    with store.partial_path(FILE).open("wb") as file:
        file.truncate(5_000_000)
    os.mkfifo(tmp_path / "pip")  # pip's place is taken by a program that waits for ever
    fake = tmp_path / "fake"
    (fake / "pip").mkdir(parents=True)
    (fake / "pip" / "__init__.py").write_text("")
    pids = str(tmp_path / "pip")
    (fake / "pip" / "__main__.py").write_text(f"import signal; open({pids!r}, 'w').close(); signal.pause()")
    environment = {
        **os.environ,
        "PYTHONPATH": str(fake),
        "HF_HUB_OFFLINE": "1",
        "MESH_LLM_MODELS": str(store.folder),
    }
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, ENTRY.name],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            (tmp_path / "pip").read_text()  # returns when the program is there
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert output == ""
    assert "HF_HUB_OFFLINE" in errors
    assert "5.0 MB are kept; run the same command again to resume." in errors
    assert "Traceback" not in errors
