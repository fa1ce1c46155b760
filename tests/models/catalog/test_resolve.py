"""Resolution of model names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshllm.errors import AmbiguousModel, MeshError, UnknownModel, UsageError
from meshllm.models.catalog.catalog import load
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.catalog.matching import MOST_CANDIDATES
from meshllm.models.catalog.resolve import Resolution, resolve
from meshllm.models.hub.manifest import HubReference, Manifest, ModelFile

ENTRIES = load().entries
MINE = Manifest("Mine-7B-Q8_0", (ModelFile("Mine-7B-Q8_0.gguf", 1, "a" * 64),))


def on_disk() -> Mapping[str, Wanted]:
    return {MINE.name: MINE, "Other-Model": Path("/models/Other-Model.gguf"), "Qwen3-8B": Path("/models/Qwen3-8B.gguf")}


def no_disk() -> Mapping[str, Wanted]:
    raise AssertionError("the disk need not be looked at")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    (work / "org/repo").mkdir(parents=True)
    for name in ("m.gguf", "sub/n.gguf", "plain", "org/repo/here.gguf"):
        (work / name).write_bytes(b"GGUF")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(work))
    return work


# -- names


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_resolve_every_entry_by_its_name(entry: CatalogEntry) -> None:
    for text in (entry.name, entry.name.upper(), f" {entry.name.lower()} "):
        assert resolve(text, disk=no_disk).wanted is entry
        assert resolve(text).note == ""
    for text in (entry.name.replace("-", " "), entry.name.replace("-", "_"), f"{entry.name}-{entry.quantization}"):
        found = resolve(text)
        assert found.wanted is entry
        assert entry.name in found.note or text == entry.name
    if entry.file_name:
        assert resolve(entry.file_name.upper()).wanted is entry
        assert resolve(entry.file_name[:-5]).wanted is entry


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("qwen3 8b", "Qwen3-8B"),
        ("qwen3:8b", "Qwen3-8B"),
        ("Qwen3_8B", "Qwen3-8B"),
        ("qwen3-8b-q4_k_m", "Qwen3-8B"),
        ("qwen3 30b a3b", "Qwen3-30B-A3B"),  # said whole, though others have more words
        ("llama 3.2 1b", "Llama-3.2-1B-Instruct"),
        ("llama3.2:1b", "Llama-3.2-1B-Instruct"),
        ("llama3.3", "Llama-3.3-70B-Instruct"),
        ("phi4", "Phi-4"),
        ("phi 4 mini", "Phi-4-mini-instruct"),
        ("gemma3:27b", "Gemma-3-27B-it"),
        ("gptoss20b", "gpt-oss-20b"),
        ("mixtral", "Mixtral-8x7B-Instruct-v0.1"),
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", "Llama-3.1-8B-Instruct"),
    ],
)
def test_resolve_inexact_names(text: str, name: str) -> None:
    found = resolve(text)
    assert isinstance(found.wanted, CatalogEntry)
    assert found.wanted.name == name
    assert name in found.note


@pytest.mark.parametrize("text", ["qwen3", "qwen3 30b", "gpt-oss", "8b", "instruct"])
def test_resolve_ambiguous_names_lists_them(text: str) -> None:
    with pytest.raises(AmbiguousModel) as refusal:
        resolve(text)
    candidates = refusal.value.candidates
    assert 2 <= len(candidates) <= MOST_CANDIDATES
    for name in candidates:
        assert name in str(refusal.value)
        assert isinstance(resolve(name).wanted, CatalogEntry)


@pytest.mark.parametrize(
    ("text", "closest"),
    [
        ("smollm2-135m-instruc", "SmolLM2-135M-Instruct"),
        ("SmolLM-135M-Instruct", "SmolLM2-135M-Instruct"),  # another model, which is not in the catalogue
        ("qwen 72b", "Qwen2.5-72B-Instruct"),
        ("qwenn3-8b", "Qwen3-8B"),
        ("llama 9 8b", "Llama-3.1-8B-Instruct"),
    ],
)
def test_resolve_unknown_names_suggests_the_closest(text: str, closest: str) -> None:
    with pytest.raises(UnknownModel, match="No model is called") as refusal:
        resolve(text)
    assert closest in refusal.value.advice


def test_resolve_unknown_names_without_suggestion() -> None:
    with pytest.raises(UnknownModel) as refusal:
        resolve("zzz")
    assert "mesh-llm download" in refusal.value.advice


def test_resolve_does_not_truncate_a_long_name() -> None:
    with pytest.raises(UnknownModel, match="too long"):
        resolve(f"Qwen3-8B{' ' * 300}x")


def test_resolve_another_quantization_names_the_known_one() -> None:
    with pytest.raises(UnknownModel, match="Qwen3-8B is in the catalogue as Q4_K_M, not as Q8_0") as refusal:
        resolve("qwen3-8b-q8_0")
    assert "Qwen/Qwen3-8B-GGUF:Q8_0" in refusal.value.advice


# -- what is on the disk


def test_resolve_local_models_by_name() -> None:
    assert resolve(MINE.name.lower(), disk=on_disk).wanted is MINE
    assert resolve("Other-Model", disk=on_disk) == resolve("other-model", disk=on_disk)
    found = resolve("mine 7b", disk=on_disk)
    assert found.wanted is MINE
    assert found.note == "'mine 7b' is taken as Mine-7B-Q8_0, which is on this disk."


def test_resolve_prefers_the_catalogs_name() -> None:
    assert isinstance(resolve("qwen3 8b", disk=on_disk).wanted, CatalogEntry)


def test_resolve_words_in_catalog_and_disk_are_ambiguous() -> None:
    both = {"Qwen3-8B-mine": MINE, "qwen3_8b mine": Path("/x.gguf")}
    with pytest.raises(AmbiguousModel, match="Qwen3-8B-mine, qwen3_8b mine"):
        resolve("mine qwen3 8b", disk=lambda: both)


# -- paths


@pytest.mark.parametrize("text", ["m.gguf", "./m.gguf", "~/m.gguf", "sub/../m.gguf"])
def test_resolve_paths(here: Path, text: str) -> None:
    found = resolve(text, disk=no_disk).wanted
    assert isinstance(found, Path)
    assert found.is_absolute()
    assert found.samefile(here / "m.gguf")


def test_resolve_other_forms_of_paths(here: Path) -> None:
    assert resolve("sub/n.gguf").wanted == here / "sub/n.gguf"
    assert resolve("./plain").wanted == here / "plain"
    assert resolve(str(here / "plain")).wanted == here / "plain"


def test_resolve_bare_file_name_searches_the_store(here: Path) -> None:
    assert resolve("n.gguf", folder=here / "sub").wanted == here / "sub/n.gguf"
    with pytest.raises(UnknownModel):
        resolve("other.gguf", folder=here / "sub")


def test_resolve_prefers_an_existing_path_to_the_hub(here: Path) -> None:
    assert resolve("org/repo/here.gguf").wanted == here / "org/repo/here.gguf"
    assert resolve("org/repo/there.gguf").wanted == HubReference("there", "org/repo", "there.gguf")
    assert resolve("hf://org/repo/here.gguf").wanted == HubReference("here", "org/repo", "here.gguf")
    assert resolve("hf.co/org/repo").wanted == HubReference("repo", "org/repo")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("smolm2", "SmolLM2-135M-Instruct"),
        ("qwne3 8b", "Qwen3-8B"),
        ("mistrl nemo", "Mistral-Nemo-Instruct-2407"),
        ("deepsek v3", "DeepSeek-V3.1"),
        ("lama 3.3 70b", "Llama-3.3-70B-Instruct"),
    ],
)
def test_resolve_misspelt_path_explains_the_form(written: str, meant: str) -> None:
    with pytest.raises(UnknownModel) as refused:
        resolve(written)
    assert refused.value.advice.startswith(f"Did you mean {meant}")


def test_resolve_folder_that_could_be_a_repository_is_an_error(here: Path) -> None:
    with pytest.raises(UsageError, match=r"is a folder.*hf://org/repo"):
        resolve("org/repo")
    (here / "folder.gguf").mkdir()
    with pytest.raises(UsageError, match=r"is a folder") as refused:
        resolve("folder.gguf")
    assert "hf://" not in refused.value.advice


def test_resolve_uses_the_mirror_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://mirror.example/org/repo"
    with pytest.raises(UsageError):
        resolve(address)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert resolve(address).wanted == HubReference("repo", "org/repo")


@pytest.mark.parametrize("text", ["./no.gguf", "~/no.gguf", "/no/such/file.gguf", "no.gguf", "sub/no.gguf", "./no"])
def test_resolve_missing_file_is_an_error(here: Path, text: str) -> None:
    with pytest.raises(UnknownModel, match="There is no file") as refusal:
        resolve(text)
    assert "org/repo" in refusal.value.advice


@pytest.mark.parametrize("text", ["", "  ", "x" * 5000, "a\0b", "a\nb", "./sub", "~nobody-of-that-name/x.gguf"])
def test_resolve_rejects_nonsense(here: Path, text: str) -> None:
    with pytest.raises((UsageError, UnknownModel)):
        resolve(text)


# -- anything

PIECES = st.sampled_from(
    ["qwen3", "Llama", "3.2", "8b", "-", " ", "_", ":", "/", "..", "~", ".", "Q4_K_M", ".gguf", "org", "repo", "hf://",
     "https://huggingface.co/", "@", "resolve", "main", "-00002-of-00003", "é", "%2e%2e", "instruct", "\\", "mine"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.lists(PIECES, max_size=8).map("".join),
        st.text("./~:aZ0-\\ gufGUF", max_size=40),
        st.text(min_size=300, max_size=500),
    )
)
def test_resolve_any_text_gives_a_model_or_an_error_with_advice(text: str) -> None:
    answers: list[Resolution | tuple[type[MeshError], str]] = []
    for _ in range(2):
        try:
            answers.append(resolve(text, disk=on_disk))
        except MeshError as error:
            answers.append((type(error), error.advice))
    assert answers[0] == answers[1]
    found = answers[0]
    if isinstance(found, tuple):
        assert found[1]
    elif isinstance(found.wanted, HubReference):
        parts = [*found.wanted.path.split("/"), *found.wanted.repository.split("/"), found.wanted.name]
        assert not {"..", "."} & set(parts)
        assert not found.wanted.path.startswith("/")
    elif isinstance(found.wanted, Path):
        assert found.wanted.exists() or found.wanted in on_disk().values()
    else:
        assert found.wanted in ENTRIES or found.wanted is MINE
