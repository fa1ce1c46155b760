"""The choice of a draft model by the content of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
from gguf_samples import write_sample

from meshllm.errors import InvalidModelFile, UsageError
from meshllm.models.catalog.catalog import Catalog
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.hub.manifest import HubReference, Manifest, ModelFile
from meshllm.models.library import drafts, scan
from meshllm.models.library.drafts import Pairing
from meshllm.models.library.local_model import LocalModel, from_path
from meshllm.models.library.store import Store

NOTHING = Catalog(())
NONE_HERE = "no small model with the same tokenizer is on this disk"


def model(store: Store, name: str, layers: int, **more: Any) -> LocalModel:
    store.folder.mkdir(exist_ok=True)
    return from_path(write_sample(store.folder / f"{name}.gguf", layers=layers, **more), store, NOTHING)


def entry(name: str, path: Path, draft: str | None = None) -> CatalogEntry:
    file = ModelFile(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    return CatalogEntry(name, "llama", 1, "Q8_0", 1, "MIT", None, files=(file,), draft=draft)


def find(target: LocalModel, store: Store, catalog: Catalog = NOTHING, **more: Wanted) -> Pairing:
    store.prepare()
    for file in (file for listed in catalog.entries for file in listed.files):
        store.record(store.folder / file.name, file.sha256)  # a name of the catalogue counts only after that
    return drafts.find(target, {**scan.scan(store, catalog=catalog), **more}, store, catalog=catalog)


def test_find_prefers_a_draft_near_a_thirtieth_of_the_target(store: Store) -> None:
    target = model(store, "target", 90)
    model(store, "a", 8)
    model(store, "b", 1)
    right = model(store, "c", 3)
    found = find(target, store)
    assert (found.name, found.reason) == ("c", "")
    assert found.draft is not None
    assert found.draft.path == right.path


@pytest.mark.parametrize(
    "more",
    [
        {"tokens": 21 + 200},
        {"extra": {"tokenizer.ggml.add_bos_token": True}},
        {"extra": {"tokenizer.ggml.add_eos_token": True}},
        {"experts": 4, "layers": 12},
        {"layers": 11},
        {"architecture": "bert"},
        {"architecture": "mamba", "extra": {"mamba.ssm.state_size": 16, "mamba.ssm.inner_size": 64}},
    ],
)
def test_find_skips_incompatible_and_too_large_drafts(store: Store, more: dict[str, Any]) -> None:
    target = model(store, "target", 100)
    model(store, "other", **{"layers": 2, **more})
    assert find(target, store) == Pairing(reason=NONE_HERE)


def test_find_compares_tokens_not_only_their_number(store: Store) -> None:
    target = model(store, "target", 100)
    other = store.folder / "target-draft.gguf"
    writer = gguf.GGUFWriter(other, "llama")
    writer.add_type("model")
    writer.add_block_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"u{number}" for number in range(20)])
    writer.add_tensor("blk.0.attn_q.weight", numpy.zeros((64, 64), dtype=numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert find(target, store) == Pairing(reason=NONE_HERE)
    with pytest.raises(UsageError, match="target-draft cannot be the draft model of target: their tokens differ"):
        drafts.check(target, from_path(other, store, NOTHING))


def test_find_accepts_a_vocabulary_without_the_last_tokens(store: Store) -> None:
    target = model(store, "target", 100, tokens=60)
    model(store, "other", 2, tokens=50)
    assert find(target, store).name == "other"


def test_find_skips_a_damaged_file(store: Store) -> None:
    target = model(store, "target", 100)
    path = model(store, "other", 2).path
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"t7") - 8] + (1 << 62).to_bytes(8, "little") + data[data.index(b"t7") :])
    assert find(target, store) == Pairing(reason=NONE_HERE)


def test_find_prefers_the_catalogs_pairing(store: Store) -> None:
    target, usual = model(store, "target", 20), model(store, "usual", 10)
    model(store, "closer", 1)
    catalog = Catalog((entry("target", target.path, "usual-name"), entry("usual-name", usual.path)))
    found = find(target, store, catalog)
    assert found.name == "usual-name"
    assert found.draft is not None
    assert found.draft.path == usual.path


def test_find_ignores_an_incompatible_pairing_of_the_catalog(store: Store) -> None:
    target, usual = model(store, "target", 20), model(store, "usual", 10, tokens=400)
    model(store, "closer", 1)
    catalog = Catalog((entry("target", target.path, "usual-name"), entry("usual-name", usual.path)))
    assert find(target, store, catalog).name == "closer"


def test_find_names_the_catalogs_missing_draft(store: Store) -> None:
    target = model(store, "target", 20)
    hub = HubReference("usual-name", "a/b", "x.gguf")
    catalog = Catalog(
        (
            entry("target", target.path, "usual-name"),
            CatalogEntry("usual-name", "llama", 1, "Q8_0", 1, "MIT", None, hub=hub),
        )
    )
    found = find(target, store, catalog)
    assert found.draft is None
    assert found.reason == "usual-name, its usual draft model, is not on this disk (`mesh-llm download usual-name`)"
    model(store, "small", 1)
    assert find(target, store, catalog).name == "small"


def test_find_pairs_a_mixture_only_as_the_catalog_says(store: Store) -> None:
    target, usual = model(store, "target", 60, experts=8), model(store, "usual", 2)
    assert find(target, store) == Pairing(reason="speculative decoding gains little for a mixture of experts")
    catalog = Catalog((entry("target", target.path, "usual-name"), entry("usual-name", usual.path)))
    assert find(target, store, catalog).name == "usual-name"


def test_check_accepts_a_named_draft_up_to_the_targets_size(store: Store) -> None:
    target = model(store, "target", 10)
    drafts.check(target, model(store, "half", 5))
    with pytest.raises(UsageError, match="same cannot be the draft model of target: it is not smaller") as caught:
        drafts.check(target, model(store, "same", 10))
    assert "--draft" in caught.value.advice
    with pytest.raises(UsageError, match="one has 180 more tokens"):
        drafts.check(target, model(store, "more", 5, tokens=200))


def test_check_rejects_a_model_without_a_vocabulary(store: Store) -> None:
    target = model(store, "target", 10, extra={"tokenizer.ggml.model": "unheard of"})
    with pytest.raises(InvalidModelFile, match="unheard of"):
        drafts.check(target, model(store, "half", 5))


def test_load_complete_returns_only_complete_models(store: Store) -> None:
    there = model(store, "there", 1)
    file = ModelFile("there.gguf", there.size, "a" * 64)
    for wanted in (there.path, entry("e", there.path), Manifest("m", (file,))):
        found = drafts.load_complete(wanted, store)
        assert found is not None
        assert found.path == there.path
    for wanted in (
        store.folder / "gone.gguf",
        Manifest("m", (ModelFile("there.gguf", there.size + 1, "a" * 64),)),
        HubReference("m", "a/b", "there.gguf"),
    ):
        assert drafts.load_complete(wanted, store) is None
