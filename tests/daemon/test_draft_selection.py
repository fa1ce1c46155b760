"""What was asked for and what is here decides how an engine guesses ahead; a draft that fails never ends a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshllm.core.memory.speculation import DraftSource, Speculation
from meshllm.daemon.draft_selection import DraftRequest, DraftSelector, draft_request
from meshllm.daemon.settings import Settings
from meshllm.errors import DownloadFailed, UnknownModel, UsageError
from meshllm.models.catalog.entry import Wanted
from meshllm.models.library.local_model import LocalModel, from_path
from meshllm.models.library.store import Store
from tests.models.gguf_samples import write_sample

NONE_HERE = "no small model with the same tokenizer is on this disk"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Nothing of whoever runs the tests is found beside it."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLAMA_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "models"
    folder.mkdir()
    return Store(folder)


def model(folder: Path, name: str, layers: int, **more: Any) -> LocalModel:
    return from_path(write_sample(folder / f"{name}.gguf", layers=layers, **more), Store(folder))


async def nothing_is_fetched(wanted: Wanted) -> LocalModel:
    raise AssertionError(f"{wanted} was to be fetched")


async def choose(drafter: DraftSelector, target: LocalModel, name: str = "m") -> tuple[Speculation, LocalModel | None]:
    return await drafter.choose(name, target, nothing_is_fetched)


async def test_selection_uses_a_local_draft_model(store: Store) -> None:
    target, small = model(store.folder, "large", 60), model(store.folder, "small", 2)
    how, draft = await choose(DraftSelector(DraftRequest(), store), target)
    assert how == Speculation(DraftSource.DRAFT, "small")
    assert draft is not None
    assert draft.path == small.path


async def test_selection_uses_a_named_file_outside_the_store(store: Store, tmp_path: Path) -> None:
    target, small = model(store.folder, "large", 60), model(tmp_path, "small", 2)
    how, _ = await choose(DraftSelector(DraftRequest(), store, [small.path]), target)
    assert how.draft == "small"


async def test_selection_falls_back_to_ngrams(store: Store) -> None:
    target = model(store.folder, "large", 60)
    assert await choose(DraftSelector(DraftRequest(), store), target) == (
        Speculation(DraftSource.NGRAMS, reason=NONE_HERE),
        None,
    )


async def test_selection_obeys_the_switches(store: Store) -> None:
    target = model(store.folder, "large", 60)
    model(store.folder, "small", 2)
    how, draft = await choose(DraftSelector(DraftRequest(drafts=False), store), target)
    assert (how.source, how.reason, draft) == (DraftSource.NGRAMS, "--no-draft", None)
    how, draft = await choose(DraftSelector(DraftRequest(speculation=False), store), target)
    assert (how.source, how.reason, draft) == (DraftSource.NONE, "option --no-speculation", None)


@pytest.mark.parametrize(
    "more",
    [
        {"architecture": "bert"},
        {"extra": {"llama.pooling_type": 1}},
        {"extra": {"llama.attention.causal": False}},
        {"architecture": "mamba", "extra": {"mamba.ssm.state_size": 16, "mamba.ssm.inner_size": 64}},
    ],
)
async def test_selection_is_none_for_unsuitable_models(store: Store, more: dict[str, Any]) -> None:
    target = model(store.folder, "large", 60, **more)
    model(store.folder, "small", 2)
    how, draft = await choose(DraftSelector(DraftRequest(), store), target)
    assert (how.source, draft) == (DraftSource.NONE, None)
    assert how.reason


async def test_requested_draft_model_is_downloaded_for_its_target_only(store: Store, tmp_path: Path) -> None:
    target, asked = model(store.folder, "large", 60), model(tmp_path, "asked", 20)
    drafter = DraftSelector(DraftRequest(asked=asked.path, name="asked", target="m"), store)
    fetched: list[Wanted] = []

    async def fetch(wanted: Wanted) -> LocalModel:
        fetched.append(wanted)
        return asked

    how, draft = await drafter.choose("m", target, fetch)
    assert (how, draft, fetched) == (Speculation(DraftSource.DRAFT, "asked"), asked, [asked.path])
    how, draft = await choose(drafter, target, "another")
    assert (how.source, draft) == (DraftSource.NGRAMS, None)


async def test_failed_draft_download_is_no_error(store: Store, tmp_path: Path) -> None:
    target = model(store.folder, "large", 60)
    drafter = DraftSelector(DraftRequest(asked=tmp_path / "asked.gguf", name="asked", target="m"), store)

    async def fetch(wanted: Wanted) -> LocalModel:
        raise DownloadFailed("The hub does not answer.")

    how, draft = await drafter.choose("m", target, fetch)
    assert (how, draft) == (Speculation(DraftSource.NGRAMS, reason="The hub does not answer."), None)


async def test_unsuitable_draft_model_is_no_error(store: Store, tmp_path: Path) -> None:
    target, other = model(store.folder, "large", 60), model(tmp_path, "other", 2, tokens=400)
    drafter = DraftSelector(DraftRequest(asked=other.path, name="other", target="m"), store)

    async def fetch(wanted: Wanted) -> LocalModel:
        return other

    how, draft = await drafter.choose("m", target, fetch)
    assert (how.source, draft) == (DraftSource.NGRAMS, None)
    assert how.reason.startswith("other cannot be the draft model of large: one has 380 more tokens")


async def test_rejected_draft_model_is_not_used_again(store: Store) -> None:
    target = model(store.folder, "large", 60)
    model(store.folder, "small", 2)
    drafter = DraftSelector(DraftRequest(), store)
    _, draft = await choose(drafter, target)
    assert draft is not None
    drafter.reject(draft, "the engine did not start with it")
    how, draft = await choose(drafter, target)
    assert (how, draft) == (
        Speculation(DraftSource.NGRAMS, reason="small was tried, but the engine did not start with it"),
        None,
    )


def test_draft_request_from_settings(store: Store, tmp_path: Path) -> None:
    target, small = model(store.folder, "large", 60), model(tmp_path, "small", 2)
    wanted: dict[str, Wanted | None] = {"large": target.path, "other": None}
    settings = Settings(tmp_path, models=("large", "other"), draft=str(small.path))
    assert draft_request(settings, wanted, store) == DraftRequest(asked=small.path, name="small", target="large")
    settings = Settings(tmp_path, drafts=False, speculation=False)
    assert draft_request(settings, wanted, store) == DraftRequest(speculation=False, drafts=False)


def test_named_draft_model_that_cannot_pair_is_refused(store: Store, tmp_path: Path) -> None:
    target, other = model(store.folder, "large", 60), model(tmp_path, "other", 2, tokens=400)
    wanted: dict[str, Wanted | None] = {"large": target.path}
    with pytest.raises(UsageError, match="other cannot be the draft model of large"):
        draft_request(Settings(tmp_path, draft=str(other.path)), wanted, store)
    with pytest.raises(UnknownModel, match="gone"):
        draft_request(Settings(tmp_path, draft=str(tmp_path / "gone.gguf")), wanted, store)
    # Of a model that only the mesh knows, nothing can be told yet.
    assert draft_request(Settings(tmp_path, draft=str(other.path)), {"large": None}, store).name == "other"
