"""Lookup of a model's files at the hub."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import FakeHub
from gguf_samples import write_parts, write_sample
from hypothesis import given
from hypothesis import strategies as st

from meshllm.errors import AmbiguousModel, DownloadFailed, InvalidModelFile, MeshError, UnknownModel
from meshllm.models.catalog.entry import CatalogEntry
from meshllm.models.hub.hub import Hub, HubSettings
from meshllm.models.hub.lookup import MAX_LISTED, ListedFile, RepositoryListing, choose, look_up, parse
from meshllm.models.hub.manifest import HubReference, HubSource, Manifest
from meshllm.models.library.scan import scan
from meshllm.models.library.store import Store
from meshllm.models.transfer.ensure import ensure, resumable_bytes
from meshllm.models.transfer.progress import TransferProgress, TransferStage

COMMIT = "c" * 40
DIGEST = "ab" * 32


def ignore(progress: TransferProgress) -> None:
    pass


def listing(*paths: str, sha256: str = DIGEST) -> RepositoryListing:
    return RepositoryListing("org/repo", COMMIT, tuple(ListedFile(path, 100, sha256) for path in sorted(paths)))


def reference(path: str = "", quantization: str = "", **more: str) -> HubReference:
    return HubReference("Model", "org/repo", path, quantization, **more)


def chosen(reference: HubReference, *paths: str) -> list[str]:
    manifest = choose(reference, listing(*paths), "https://hub")
    return [file.name for file in manifest.files]


# -- which files are meant


def test_choose_uses_the_given_path() -> None:
    manifest = choose(reference("a/m-Q8_0.gguf"), listing("a/m-Q8_0.gguf", "m-Q8_0.gguf"), "https://hub")
    assert [file.sources for file in manifest.files] == [(HubSource("org/repo", COMMIT, "a/m-Q8_0.gguf"),)]
    assert manifest.name == "Model"
    assert "org/repo" in manifest.origin
    assert "a/m-Q8_0.gguf" in manifest.origin


def test_choose_error_lists_paths_when_the_path_is_missing() -> None:
    with pytest.raises(UnknownModel, match=r"has no file m\.gguf.*a/m\.gguf") as failure:
        chosen(reference("m.gguf"), "a/m.gguf", "other.gguf")
    assert "other" not in failure.value.advice
    with pytest.raises(UnknownModel, match="no GGUF files"):
        chosen(reference("m.gguf"))


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16.gguf"], "m-Q4_K_M.gguf"),
        (["m-Q8_0.gguf", "m-Q5_K_M.gguf", "m-Q2_K.gguf"], "m-Q5_K_M.gguf"),
        (["m-Q2_K.gguf", "m-F16.gguf"], "m-Q2_K.gguf"),
        (["m.q4_k_m.gguf", "m.q8_0.gguf"], "m.q4_k_m.gguf"),
        (["m-UD-Q4_K_XL.gguf", "m-Q8_0.gguf"], "m-UD-Q4_K_XL.gguf"),
        (["m-MXFP4.gguf"], "m-MXFP4.gguf"),
        (["only.gguf", "mmproj-F16.gguf", "m.imatrix.gguf"], "only.gguf"),
        (["Q4_K_M/m-00001-of-00002.gguf", "Q4_K_M/m-00002-of-00002.gguf"], "m-00001-of-00002.gguf"),
    ],
)
def test_choose_uses_the_preferred_quantization(there: list[str], taken: str) -> None:
    assert chosen(reference(), *there)[0] == taken


def test_choose_uses_the_given_quantization() -> None:
    there = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-UD-Q2_K_XL.gguf"]
    assert chosen(reference(quantization="Q8_0"), *there) == ["m-Q8_0.gguf"]
    assert chosen(reference(quantization="Q2_K_XL"), *there) == ["m-UD-Q2_K_XL.gguf"]
    with pytest.raises(UnknownModel, match=r"no model in Q6_K.*Q4_K_M, Q8_0, UD-Q2_K_XL"):
        chosen(reference(quantization="Q6_K"), *there)


def test_choose_lists_candidates_that_are_no_parts() -> None:
    with pytest.raises(AmbiguousModel) as failure:
        chosen(reference(), "a/m-Q4_K_M.gguf", "b/m-Q4_K_M.gguf", "m-Q8_0.gguf")
    assert failure.value.candidates == ("org/repo/a/m-Q4_K_M.gguf", "org/repo/b/m-Q4_K_M.gguf")
    with pytest.raises(AmbiguousModel):
        chosen(reference(), "a.gguf", "b.gguf")


def test_choose_requires_all_parts_in_order() -> None:
    parts = [f"m-Q4_K_M-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    assert chosen(reference(parts[0]), *parts) == parts
    assert chosen(reference(quantization="Q4_K_M"), *parts) == parts
    with pytest.raises(DownloadFailed, match=r"lacks m-Q4_K_M-00002-of-00003.*another"):
        chosen(reference(parts[0]), parts[0], parts[2])
    with pytest.raises(UnknownModel, match="part 2 of 3"):
        chosen(reference(parts[1]), *parts)


def test_choose_rejects_a_missing_or_different_digest() -> None:
    with pytest.raises(DownloadFailed, match="no sha256"):
        choose(reference("m.gguf"), listing("m.gguf", sha256=""), "https://hub")
    with pytest.raises(DownloadFailed, match="another sha256"):
        choose(reference("m.gguf", sha256="cd" * 32), listing("m.gguf"), "https://hub")


@pytest.mark.parametrize(
    ("there", "wanted", "taken"),
    [
        (["mmproj-F16.gguf", "mmproj-BF16.gguf", "mmproj-F32.gguf"], "", "mmproj-F16.gguf"),
        (["mmproj-model-f32.gguf", "mmproj-model-bf16.gguf"], "", "mmproj-model-bf16.gguf"),
        (["mmproj.gguf"], "", "mmproj.gguf"),
        (["a/mmproj-F16.gguf", "mmproj-Q8_0.gguf"], "", "mmproj-Q8_0.gguf"),
        (["mmproj-F16.gguf", "mmproj-BF16.gguf"], "mmproj-BF16.gguf", "mmproj-BF16.gguf"),
        ([], "", None),
    ],
)
def test_choose_selects_the_projector(there: list[str], wanted: str, taken: str | None) -> None:
    manifest = choose(reference(projector=wanted), listing("m-Q4_K_M.gguf", *there), "https://hub")
    assert (manifest.projector.name if manifest.projector else None) == taken
    assert taken is None or taken in manifest.origin


def test_choose_rejects_a_missing_projector() -> None:
    with pytest.raises(UnknownModel, match=r"no projector x\.gguf.*mmproj-F16"):
        choose(reference(projector="x.gguf"), listing("m-Q4_K_M.gguf", "mmproj-F16.gguf"), "https://hub")


# -- hostile answers


def answer(**changes: object) -> bytes:
    file = {"rfilename": "m.gguf", "size": 5, "lfs": {"sha256": DIGEST, "size": 5}}
    return json.dumps({"sha": COMMIT, "siblings": [file], **changes}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", answer(sha="main"), answer(sha=None), answer(sha=5),
        answer(siblings=None), answer(siblings={}), answer(siblings=[None]), answer(siblings=[{}]),
        answer(siblings=[{"rfilename": 5}]), answer(siblings=[{"rfilename": "m.gguf", "lfs": 5}]),
        answer(siblings=[{"rfilename": "x"}] * (MAX_LISTED + 1)),
    ],
)  # fmt: skip
def test_parse_rejects_invalid_answers(body: bytes) -> None:
    with pytest.raises(DownloadFailed, match="is not valid"):
        parse(body, "org/repo")


@pytest.mark.parametrize(
    "path",
    ["../m.gguf", "a/../m.gguf", "/m.gguf", "a//m.gguf", ".m.gguf", "a/.b/m.gguf", "m\n.gguf", "m\0.gguf",
     "x" * 999 + ".gguf", "a\\..\\m.gguf", "m.gguf/", "m.txt", "C:m.gguf", "a/" * 20 + "m.gguf"],
)  # fmt: skip
def test_parse_skips_names_that_leave_the_folder(path: str) -> None:
    file = {"rfilename": path, "size": 5, "lfs": {"sha256": DIGEST, "size": 5}}
    assert parse(answer(siblings=[file]), "org/repo").files == ()


@pytest.mark.parametrize("size", [0, -1, 1 << 60, "5", None, True, 5.5])
def test_parse_skips_invalid_sizes(size: object) -> None:
    file = {"rfilename": "m.gguf", "lfs": {"sha256": DIGEST, "size": size}}
    assert parse(answer(siblings=[file]), "org/repo").files == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)
siblings = st.fixed_dictionaries(
    {"rfilename": json_values | st.sampled_from(["m.gguf", "a/m-Q4_K_M.gguf", "m-00001-of-00002.gguf"])},
    optional={
        "size": json_values,
        "lfs": json_values | st.fixed_dictionaries({"size": json_values, "sha256": json_values}),
    },
)


@given(
    st.fixed_dictionaries(
        {"sha": st.just(COMMIT) | json_values, "siblings": st.lists(siblings, max_size=5) | json_values}
    )
)
def test_parse_any_answer_gives_a_list_or_an_error(data: object) -> None:
    try:
        found = parse(json.dumps(data).encode(), "org/repo")
        manifest = choose(reference(), found, "https://hub")
    except MeshError:
        return
    assert all(file.sha256 and file.size > 0 and "/" not in file.name for file in manifest.all_files)


# -- asking


@pytest.fixture
def many(fake: FakeHub, tmp_path: Path) -> FakeHub:
    """A repository with two quantizations, one in two parts, and a projector."""
    fake.path = "m-Q4_K_M.gguf"
    projector = write_sample(tmp_path / "p.gguf", architecture="clip", layers=1, extra={"general.type": "mmproj"})
    fake.others = {path.name: path.read_bytes() for path in write_parts(tmp_path / "made", "m-Q8_0")}
    fake.others["mmproj-F16.gguf"] = projector.read_bytes()
    return fake


async def test_look_up_sends_the_token(many: FakeHub, hub: Hub) -> None:
    manifest = await look_up(HubReference("M", many.repository), hub)
    assert manifest.files[0] == many.manifest_file("m-Q4_K_M.gguf")
    assert manifest.projector == many.manifest_file("mmproj-F16.gguf")
    assert [request.authorization for request in many.requests] == ["Bearer hf_secret"]


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ({"list_faults": ["status:401"]}, "HF_TOKEN"),
        ({"list_faults": ["status:403"]}, "HF_TOKEN"),
        ({"list_faults": ["status:404"]}, "has no repository.*Check the spelling"),
        ({"list_faults": ["status:503"] * 9}, "5 times in a row"),
        ({"listing": b"x"}, "is not valid"),
    ],
)
async def test_look_up_reports_a_refused_list(mood: dict[str, object], words: str, many: FakeHub, hub: Hub) -> None:
    for name, value in mood.items():
        setattr(many, name, value)
    with pytest.raises(DownloadFailed, match=words):
        await look_up(HubReference("M", many.repository), hub)


async def test_look_up_retries_a_busy_hub(many: FakeHub, hub: Hub) -> None:
    many.list_faults = ["status:429:0", "status:500"]
    assert (await look_up(HubReference("M", many.repository), hub)).files


async def test_look_up_fails_on_a_silent_hub_within_its_deadline(many: FakeHub) -> None:
    many.list_faults = ["hang"]
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        await look_up(HubReference("M", many.repository), Hub(HubSettings(endpoint=many.endpoint, decide_within=0.2)))


# -- from the name to the model


async def test_ensure_downloads_a_model_by_its_repository(many: FakeHub, hub: Hub, store: Store) -> None:
    model = await ensure(HubReference("M", many.repository), store, ignore, hub=hub)
    assert model.path == store.folder / "m-Q4_K_M.gguf"
    assert model.projector == store.folder / "org/repo/mmproj-F16.gguf"
    assert model.digest == many.sha256
    assert model.name == "M"


async def test_ensure_uses_the_stored_manifest_offline(many: FakeHub, hub: Hub, store: Store) -> None:
    wanted = HubReference("M", many.repository, quantization="Q8_0")
    model = await ensure(wanted, store, ignore, hub=hub)
    assert [path.name for path in model.files] == ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"]
    away = Hub(HubSettings(endpoint="http://127.0.0.1:9", decide_within=5.0))
    before = len(many.requests)
    assert await ensure(wanted, store, ignore, hub=away) == model
    assert await ensure(replace(wanted, name="Other"), store, ignore, hub=hub) == replace(model, name="Other")
    assert len(many.requests) == before
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        await ensure(HubReference("M", many.repository), store, ignore, hub=away)
    found = scan(store)
    assert isinstance(found["M"], Manifest)
    assert await ensure(found["M"], store, ignore, hub=away) == model


async def test_ensure_resumes_without_the_list(many: FakeHub, hub: Hub, store: Store) -> None:
    """The list was read once; now the hub serves files but no lists."""
    wanted = HubReference("M", many.repository)
    many.faults = ["cut:1000"] + ["status:503"] * 5
    with pytest.raises(DownloadFailed):
        await ensure(wanted, store, ignore, hub=hub)
    assert resumable_bytes(wanted, store) == 1000
    assert resumable_bytes(store.folder / "m.gguf", store) == 0
    many.faults, many.list_faults = [], ["status:404"]
    seen: list[TransferProgress] = []
    model = await ensure(wanted, store, seen.append, hub=hub)
    assert model.path.read_bytes() == many.content
    assert TransferStage.FAILED_SOURCE in [progress.stage for progress in seen]


@pytest.mark.parametrize("damage", [b"", b"{}", b"[" * 9999, b"\xff"])
async def test_ensure_ignores_a_damaged_stored_manifest(damage: bytes, many: FakeHub, hub: Hub, store: Store) -> None:
    wanted = HubReference("M", many.repository)
    await ensure(wanted, store, ignore, hub=hub)
    (store.folder / ".mesh-llm" / "models" / "M.json").write_bytes(damage)
    again = Store(store.folder)
    assert again.manifest_cache.manifests() == []
    many.requests.clear()
    await ensure(wanted, again, ignore, hub=hub)
    assert [request.path.split("?")[0] for request in many.requests] == ["/api/models/org/repo/revision/main"]


async def test_ensure_keeps_catalog_properties_of_a_hub_model(many: FakeHub, hub: Hub, store: Store) -> None:
    wanted = HubReference("X", many.repository, "m-Q4_K_M.gguf", sha256=many.sha256)
    entry = CatalogEntry("Named", "llama", 1, "Q4_K_M", 777, "MIT", "t.jinja", hub=wanted)
    model = await ensure(entry, store, ignore, hub=hub)
    assert model.name == "Named"
    assert model.chat_template is not None
    assert model.chat_template.name == "t.jinja"
    away = Hub(HubSettings(endpoint="http://127.0.0.1:9", decide_within=5.0))
    assert (await ensure(entry, store, ignore, hub=away)).name == "Named"


async def test_ensure_uses_a_catalog_file_put_into_the_store(many: FakeHub, store: Store) -> None:
    store.folder.mkdir()
    (store.folder / many.path).write_bytes(many.content)
    away = Hub(HubSettings(endpoint="http://127.0.0.1:9", decide_within=5.0))
    wanted = HubReference("M", many.repository, many.path, sha256=many.sha256)
    model = await ensure(wanted, store, ignore, hub=away)
    assert model.path == store.folder / many.path
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        await ensure(replace(wanted, sha256="cd" * 32), store, ignore, hub=away)


async def test_ensure_stores_models_of_equal_names_side_by_side(
    many: FakeHub, hub: Hub, store: Store, tmp_path: Path
) -> None:
    first = await ensure(HubReference("M", many.repository), store, ignore, hub=hub)
    before = many.content
    many.content = write_sample(tmp_path / "new.gguf", layers=3).read_bytes()
    many.repository = "other/repo"
    second = await ensure(HubReference("M", "other/repo"), store, ignore, hub=hub)
    many.content = write_sample(tmp_path / "newer.gguf", layers=4).read_bytes()
    many.revision = "d" * 40
    third = await ensure(HubReference("M", "other/repo", revision="d" * 40), store, ignore, hub=hub)
    assert first.path.read_bytes() == before
    assert second.path == store.folder / "other/repo/m-Q4_K_M.gguf"
    assert third.path == store.folder / "other/repo" / many.sha256[:12] / "m-Q4_K_M.gguf"
    assert {manifest.files[0].sha256 for manifest in store.manifest_cache.manifests()} == {
        first.digest, second.digest, third.digest
    }  # fmt: skip


async def test_ensure_stores_parts_in_one_folder(many: FakeHub, hub: Hub, store: Store) -> None:
    """If another file has the path of one part, all parts go to another folder."""
    store.folder.mkdir()
    (store.folder / "m-Q8_0-00002-of-00002.gguf").write_bytes(b"mine")
    wanted = HubReference("M", many.repository, quantization="Q8_0")
    model = await ensure(wanted, store, ignore, hub=hub)
    assert {path.parent for path in model.files} == {store.folder / "org/repo"}
    assert (store.folder / "m-Q8_0-00002-of-00002.gguf").read_bytes() == b"mine"
    model.files[1].unlink()
    again = await ensure(wanted, store, ignore, hub=hub)
    assert again.files == model.files


async def test_ensure_checks_space_for_all_files_first(many: FakeHub, hub: Hub, store: Store) -> None:
    file = many.manifest_file(many.path)
    huge = Manifest("M", (file,), projector=replace(file, name="p.gguf", sha256=DIGEST, size=1 << 42))
    with pytest.raises(MeshError, match="are free"):
        await ensure(huge, store, ignore, hub=hub)
    assert not many.bodies()


async def test_ensure_rejects_hub_files_that_are_no_model(many: FakeHub, hub: Hub, store: Store) -> None:
    many.content = b"no gguf at all"
    with pytest.raises(InvalidModelFile):
        await ensure(HubReference("M", many.repository, many.path), store, ignore, hub=hub)
