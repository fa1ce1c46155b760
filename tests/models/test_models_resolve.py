"""What a model's name means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshllm.errors import MeshError, UnknownModel, UsageError
from meshllm.models.catalog import load
from meshllm.models.entry import CatalogEntry, Wanted
from meshllm.models.resolve import resolve


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    for name in ("m.gguf", "sub/n.gguf", "plain"):
        (work / name).write_bytes(b"GGUF")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(work))
    return work


def test_a_name_of_the_catalogue() -> None:
    entry = load().entries[0]
    assert resolve(f" {entry.name.upper()} ").wanted is entry


@pytest.mark.parametrize("text", ["m.gguf", "./m.gguf", "~/m.gguf", "sub/../m.gguf"])
def test_paths(here: Path, text: str) -> None:
    found = resolve(text).wanted
    assert isinstance(found, Path)
    assert found.is_absolute()
    assert found.samefile(here / "m.gguf")


def test_more_paths(here: Path) -> None:
    assert resolve("sub/n.gguf").wanted == here / "sub/n.gguf"
    assert resolve("./plain").wanted == here / "plain"
    assert resolve(str(here / "plain")).wanted == here / "plain"


def test_a_bare_file_name_is_also_looked_for_in_the_store(here: Path) -> None:
    assert resolve("n.gguf", folder=here / "sub").wanted == here / "sub/n.gguf"
    with pytest.raises(UnknownModel):
        resolve("other.gguf", folder=here / "sub")


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/a/b/resolve/main/c.gguf",
        "hf://a/b",
        "org/repo",
        "org/repo/file.gguf",
        "org/repo:Q4_K_M",
        "org/repo/folder/file.gguf",
    ],
)
def test_what_cannot_be_used_yet_says_what_can(here: Path, text: str) -> None:
    with pytest.raises(UsageError, match="yet") as refusal:
        resolve(text)
    assert "mesh-llm download" in refusal.value.advice


@pytest.mark.parametrize("text", ["", "  ", "x" * 5000, "a\0b", "a\nb", "./sub", "~nobody-of-that-name/x.gguf"])
def test_nonsense(here: Path, text: str) -> None:
    with pytest.raises((UsageError, UnknownModel)):
        resolve(text)


@settings(max_examples=300, deadline=None)
@given(
    text=st.one_of(st.text(max_size=60), st.text("./~:aZ0-\\ gufGUF", max_size=40), st.text(min_size=300, max_size=500))
)
def test_anything_else_is_an_entry_a_path_or_an_error_with_advice(text: str) -> None:
    found: Wanted | None = None
    advice = ""
    try:
        found = resolve(text).wanted
    except MeshError as error:
        advice = error.advice
    assert advice or isinstance(found, CatalogEntry) or (isinstance(found, Path) and found.exists())
