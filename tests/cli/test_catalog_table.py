"""`mesh-llm download` without a name: the table, the lines and the JSON, and what of the list is asked for."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from meshllm.cli import download as command
from meshllm.cli import machine_info, model_text
from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.devices import Device, MachineMemory
from meshllm.core.memory.fit_preview import FitOutlook, FitPreview
from meshllm.errors import UsageError
from meshllm.machine import accelerators
from meshllm.machine.accelerators import AcceleratorInfo
from meshllm.models.catalog.catalog import load
from meshllm.models.library.store import Store
from meshllm.util.format import short_size
from tests.cli.downloading import run

GB = 10**9
ENTRY = load().entries[0]
FILE = ENTRY.files[0]


@pytest.fixture
def store(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """That of a machine with 16 GB free."""
    monkeypatch.setattr(machine_info, "machine", lambda: MachineMemory(32 * GB, 16 * GB))
    return store


def line(name: str) -> list[str]:
    return next(text for text in run().splitlines() if text.startswith(f"{name}  ")).split("  ")


def test_lines_show_all_properties(store: Store) -> None:
    assert line("Qwen3-8B") == [
        "Qwen3-8B", "5.0 GB", "8.2B", "Q4_K_M", "40k", "text and tools", "draft: Qwen3-0.6B", "Apache-2.0", "fits",
        "on disk: no",
    ]  # fmt: skip
    assert line("Gemma-4-26B-A4B-it")[1:3] == ["~17 GB", "26B/3.8B"]
    assert line("Llama-3.3-70B-Instruct")[8] == "split over 4 machines"
    assert line("DeepSeek-V3.1")[8] == "too big"
    assert line("bge-m3")[5:7] == ["embeddings", "no draft"]
    assert line("Gemma-3-12B-it")[5] == "text and pictures"
    assert len(run().splitlines()) == len(load().entries)


def test_disk_state_is_shown(store: Store) -> None:
    store.prepare()
    with store.partial_path(FILE).open("wb") as file:
        file.truncate(FILE.size // 2)
    assert line(ENTRY.name)[-1] == "on disk: 50 %"
    with store.path(FILE).open("wb") as file:
        file.truncate(FILE.size)
    assert line(ENTRY.name)[-1] == "on disk: not verified"
    store.record(store.path(FILE), FILE.sha256)
    assert line(ENTRY.name)[-1] == "on disk: yes"
    theirs = Path("~/.lmstudio/models/org/repo").expanduser() / FILE.name
    theirs.parent.mkdir(parents=True)
    store.path(FILE).replace(theirs)
    assert line(ENTRY.name)[-1] == "on disk: elsewhere: LM Studio"


def test_json_lists_all_properties(store: Store) -> None:
    listed = {entry["name"]: entry for entry in json.loads(run("--json"))}
    assert set(listed) == {entry.name for entry in load().entries}
    told = listed[ENTRY.name]
    assert (told["on_disk"], told["percent"], told["program"]) == ("no", 0, "")
    assert told["files"] == [{"name": FILE.name, "size": FILE.size, "sha256": FILE.sha256}]
    assert listed["Llama-3.3-70B-Instruct"]["fit"]["verdict"] == "split"
    assert listed["Qwen3-8B"]["fit"]["context_length"] == 32_768
    assert listed["Qwen3-8B"]["draft"] == "Qwen3-0.6B"


def test_rows_are_sorted_by_kind_and_size(store: Store) -> None:
    listed = json.loads(run("--json"))
    kinds = [(entry["purpose"], entry["vision"]) for entry in listed]
    order = [("generate", False), ("generate", True), ("embed", False), ("rerank", False)]
    assert kinds == sorted(kinds, key=order.index)
    for kind in order:
        sizes = [entry["size"] for entry in listed if (entry["purpose"], entry["vision"]) == kind]
        assert sizes == sorted(sizes)


def test_fits_and_search_filter_the_list(store: Store) -> None:
    fitting = json.loads(run("--json", "--fits"))
    assert fitting
    assert {entry["fit"]["machines"] for entry in fitting} == {1}
    names = [entry["name"] for entry in json.loads(run("--json", "--search", "QWEN coder", "--fits"))]
    assert names == ["Qwen2.5-Coder-7B-Instruct", "Qwen2.5-Coder-14B-Instruct"]
    assert {entry["purpose"] for entry in json.loads(run("--json", "--search", "embeddings"))} == {"embed"}
    assert all(entry["vision"] for entry in json.loads(run("--json", "--search", "vision")))
    mixtures = json.loads(run("--json", "--search", "moe"))
    assert {"gpt-oss-20b", "Mixtral-8x7B-Instruct-v0.1"} <= {entry["name"] for entry in mixtures}
    assert all(entry["active_parameters"] < entry["parameters"] for entry in mixtures)
    assert run("--search", "no such words") == ""


def test_list_options_are_rejected_with_a_model_name(store: Store) -> None:
    with pytest.raises(UsageError, match="only apply to the list"):
        run("--fits", "Qwen3-8B")
    with pytest.raises(UsageError, match="needs a model"):
        run("--draft")


@pytest.mark.parametrize("columns", [100, 120, 200])
def test_table_keeps_to_its_width_without_cutting(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    command.download()
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines())) <= columns
    assert "…" not in printed
    for entry in load().entries:
        assert entry.name in printed
        assert entry.license in printed
    for word in ("text and pictures", "embeddings", "rerank", "split 4", "too big", "14.4 GB of memory"):
        assert word in printed


def test_narrow_table_omits_licences_first(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    command.download()
    printed = capsys.readouterr().out
    assert "Apache-2.0" not in printed
    assert all(entry.name in printed for entry in load().entries)


def test_table_of_80_columns_cuts_only_names(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    command.download()
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines())) <= 80
    assert all("…" not in line.partition(" ")[2] for line in printed.splitlines())
    for word in ("on disk", "128k td fits", "~4.2 GB"):
        assert word in printed


def test_search_without_result_explains_hub_models(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    command.download(search="nothing of the kind")
    assert "No known model matches" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (98_362_432, "98 MB"),
        (999_999_999, "1.0 GB"),
        (1_915_305_312, "1.9 GB"),
        (9_999_999_999, "10 GB"),
        (405 * GB, "405 GB"),
    ],
)
def test_short_size_of_models(count: int, words: str) -> None:
    assert short_size(count) == words
    assert short_size(count, about=True) == f"~{words}"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (134_515_008, "135M"),
        (3_075_098_624, "3.1B"),
        (8_000_000_000, "8B"),
        (999_999_999, "1B"),
        (671_026_419_200, "671B"),
    ],
)
def test_parameter_counts(count: int, words: str) -> None:
    assert model_text.parameter_count(count) == words


@pytest.mark.parametrize(
    ("tokens", "words"), [(512, "512"), (8192, "8k"), (131_072, "128k"), (1 << 20, "1M"), (10_485_760, "10M")]
)
def test_context_lengths(tokens: int, words: str) -> None:
    assert model_text.context_text(tokens) == words


def test_fit_texts() -> None:
    def said(prospect: FitOutlook, machines: int) -> str:
        return model_text.fit_text(FitPreview(prospect, ContextSize(8192, 1), 1, machines))

    assert said(FitOutlook.FITS, 1) == "fits"
    assert said(FitOutlook.LESS_CONTEXT, 1) == "fits with 8k context"
    assert said(FitOutlook.SPLIT, 3) == "split over 3 machines"
    assert said(FitOutlook.TOO_BIG, 90) == "too big"


# -- what this machine has


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_LLM_HOME", str(tmp_path))


def tools(monkeypatch: pytest.MonkeyPatch, *found: AcceleratorInfo) -> None:
    async def find(within: float) -> tuple[AcceleratorInfo, ...]:
        return found

    monkeypatch.setattr(accelerators, "find", find)


def test_machine_asks_driver_tools_without_a_node(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tools(monkeypatch)
    told = machine_info.machine()
    assert (told.devices, told.used, told.known) == ((), (), False)
    assert 0 < told.available <= told.total
    tools(
        monkeypatch,
        AcceleratorInfo("cuda", "H100", 80 * GB, 79 * GB),
        AcceleratorInfo("metal", "Apple M4", unified=True),
        AcceleratorInfo("vulkan", "who knows"),
    )
    told = machine_info.machine()
    assert [(device.name, device.free) for device in told.in_use] == [("cuda0", 79 * GB)]


def node(**machine: Any) -> dict[str, Any]:
    """What a running node says of itself."""
    device = {"name": "CUDA0", "memory_total": 24 * GB, "memory_free": 4 * GB, "shared": False, "used": True}
    return {
        "machine": {"devices": [device], "cap": None, **machine},
        "models": [{"engine": {"memory": 18 * GB}}, {"engine": None}],
    }


def test_machine_uses_the_running_nodes_devices_and_memory(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_info, "running", lambda: node(cap=10 * GB))
    told = machine_info.machine()
    assert told.devices == (Device("CUDA0", total=24 * GB, free=22 * GB),)
    assert (told.used, told.cap, told.known) == (("CUDA0",), 10 * GB, True)


@pytest.mark.parametrize("odd", [{"devices": None}, {"devices": [{}]}, {"devices": 7}, {"cap": "much"}])
def test_machine_ignores_an_unusable_node(alone: None, monkeypatch: pytest.MonkeyPatch, odd: dict[str, Any]) -> None:
    monkeypatch.setattr(machine_info, "running", lambda: node(**odd))
    tools(monkeypatch)
    assert not machine_info.machine().known


def test_running_returns_none_without_a_node(alone: None, tmp_path: Path) -> None:
    assert machine_info.running() is None
    (tmp_path / "daemon.json").write_text('{"pid": 1, "started": 0, "port": 1, "console": 1}')
    assert machine_info.running() is None
