"""Models of other programs are found and used in place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_samples import write_parts, write_sample

from meshllm.errors import DownloadFailed
from meshllm.models.catalog.catalog import Catalog
from meshllm.models.hub.hub import Hub, HubSettings
from meshllm.models.hub.manifest import HubReference, Manifest, ModelFile
from meshllm.models.library import other_apps
from meshllm.models.library.scan import scan
from meshllm.models.library.store import Store
from meshllm.models.transfer.ensure import ensure
from meshllm.models.transfer.progress import TransferProgress, TransferStage


def ignore(progress: TransferProgress) -> None:
    pass


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def file_of(path: Path, name: str = "") -> ModelFile:
    return ModelFile(name or path.name, path.stat().st_size, digest(path))


def hub_cache(root: Path, *files: Path, repository: str = "models--org--repo") -> list[Path]:
    """Put the files into a cache as `huggingface_hub` lays it out; returns their paths in the snapshot."""
    folder = root / repository
    snapshot = folder / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("c" * 40)
    found = []
    for file in files:
        blob = folder / "blobs" / digest(file)
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.name
        link.symlink_to(os.path.relpath(blob, snapshot))
        found.append(link)
    return found


def ollama(root: Path, model: Path, *steps: str, projector: Path | None = None) -> Path:
    """Put a model into Ollama's folder; returns its blob."""
    layers = []
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for path, kind in ((model, "model"), (projector, "projector")):
        if path is not None:
            sha256 = digest(path)
            (root / "blobs" / f"sha256-{sha256}").write_bytes(path.read_bytes())
            media = f"application/vnd.ollama.image.{kind}"
            layers.append({"mediaType": media, "digest": f"sha256:{sha256}", "size": path.stat().st_size})
    layers.append({"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64, "size": 5})
    place = root.joinpath("manifests", *steps)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return root / "blobs" / f"sha256-{digest(model)}"


@pytest.fixture
def home() -> Path:
    """The home folder of the other programs."""
    return Path.home()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    return write_sample(tmp_path / "made" / "m-Q4_K_M.gguf")


def put(content: bytes, there: Path) -> Path:
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(content)
    return there


def zeros_like(path: Path) -> bytes:
    return bytes(path.stat().st_size)


def flipped(path: Path) -> bytes:
    """The content with one bit changed."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    return bytes(content)


async def test_hub_cache_files_are_used_without_reading(home: Path, made: Path, store: Store) -> None:
    (link,) = hub_cache(home / ".cache/huggingface/hub", made)
    seen: list[TransferProgress] = []
    model = await ensure(Manifest("M", (file_of(made),)), store, seen.append)
    assert model.path == link
    assert [progress.stage for progress in seen] == [TransferStage.READY]
    assert store.known_digest(link) == model.digest
    assert not (store.folder / made.name).exists()


@pytest.mark.parametrize(
    ("variable", "place"),
    [("HF_HOME", "hub"), ("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("XDG_CACHE_HOME", "huggingface/hub")],
)
def test_hub_cache_is_found_by_its_environment_variables(
    variable: str, place: str, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "moved"))
    (link,) = hub_cache(tmp_path / "moved" / place, made)
    assert [match.paths for match in other_apps.find_files([file_of(made)])] == [(link,)]


async def test_hub_cache_answers_without_the_hub(home: Path, tmp_path: Path, store: Store) -> None:
    made = [*write_parts(tmp_path / "made", "m-Q8_0"), write_sample(tmp_path / "made" / "m-Q2_K.gguf")]
    links = hub_cache(home / ".cache/huggingface/hub", *made)
    away = Hub(HubSettings(endpoint="http://127.0.0.1:9", decide_within=5.0))
    model = await ensure(HubReference("M", "org/repo"), store, ignore, hub=away)
    assert model.files == tuple(links[:2])
    assert model.name == "M"
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        await ensure(HubReference("M", "org/repo", quantization="Q4_0"), store, ignore, hub=away)
    links[1].unlink()
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        await ensure(HubReference("M", "org/repo", quantization="Q8_0"), Store(tmp_path / "other"), ignore, hub=away)


async def test_hub_cache_has_all_parts_of_a_model(home: Path, tmp_path: Path, store: Store) -> None:
    parts = write_parts(tmp_path / "made", "m")
    links = hub_cache(home / ".cache/huggingface/hub", *parts)
    manifest = Manifest("M", tuple(file_of(part) for part in parts))
    model = await ensure(manifest, store, ignore)
    assert model.files == tuple(links)
    links[1].unlink()
    with pytest.raises(DownloadFailed, match="No source for it"):
        await ensure(manifest, store, ignore)


@pytest.mark.parametrize(
    "place",
    [
        ".lmstudio/models/org/repo/m-Q4_K_M.gguf",
        ".cache/lm-studio/models/org/repo/m-Q4_K_M.gguf",
        ".cache/llama.cpp/org_repo_m-Q4_K_M.gguf",
        ".local/share/nomic.ai/GPT4All/m-Q4_K_M.gguf",
    ],
)
async def test_app_folders_are_searched(place: str, home: Path, made: Path, store: Store) -> None:
    there = put(made.read_bytes(), home / place)  # noqa: ASYNC240
    manifest = Manifest("M", (file_of(made),))
    seen: list[TransferProgress] = []
    assert (await ensure(manifest, store, seen.append)).path == there
    assert TransferStage.VERIFYING in [progress.stage for progress in seen]
    seen.clear()
    await ensure(manifest, store, seen.append)  # verified once, it is not read again
    assert [progress.stage for progress in seen] == [TransferStage.READY]
    other = flipped(made)
    put(other, there)
    os.utime(there, ns=(1, 1))
    with pytest.raises(DownloadFailed):
        await ensure(manifest, store, ignore)
    assert there.read_bytes() == other


async def test_file_with_equal_name_and_size_is_hashed_once(home: Path, made: Path, store: Store) -> None:
    put(zeros_like(made), home / ".lmstudio/models/org/repo" / made.name)
    manifest = Manifest("M", (file_of(made),))
    for verifying in (True, False):
        seen: list[TransferProgress] = []
        with pytest.raises(DownloadFailed):
            await ensure(manifest, store, seen.append)
        assert (TransferStage.VERIFYING in [progress.stage for progress in seen]) == verifying


async def test_replaced_file_is_noticed(home: Path, made: Path, store: Store) -> None:
    """Equal size and time, but another inode."""
    there = put(made.read_bytes(), home / ".lmstudio/models/org/repo" / made.name)  # noqa: ASYNC240
    await ensure(Manifest("M", (file_of(made),)), store, ignore)
    facts = there.stat()
    new = there.with_name("new")
    new.write_bytes(bytes(facts.st_size))
    os.utime(new, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    new.replace(there)
    assert store.known_digest(there) is None


async def test_ollama_blobs_are_found_by_digest(
    tmp_path: Path, made: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    blob = ollama(tmp_path / "ollama", made, "registry.ollama.ai", "library", "llama3.2", "3b")
    assert (await ensure(Manifest("M", (file_of(made),)), store, ignore)).path == blob


async def test_ollama_models_have_ollamas_names(tmp_path: Path, home: Path, made: Path, store: Store) -> None:
    projector = write_sample(tmp_path / "p.gguf", architecture="clip", layers=1)
    root = home / ".ollama/models"
    ollama(root, made, "registry.ollama.ai", "library", "llama3.2", "3b", projector=projector)
    ollama(root, made, "hf.co", "org", "repo", "Q4_K_M")
    found = scan(store, catalog=Catalog(()))
    assert set(found) == {"llama3.2:3b", "hf.co/org/repo:Q4_K_M"}
    model = await ensure(found["llama3.2:3b"], store, ignore)
    assert model.name == "llama3.2:3b"
    assert model.header.architecture == "llama"
    assert model.projector is not None
    assert model.projector.name == f"sha256-{digest(projector)}"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"layers": 5}', '{"layers": [5]}', '{"layers": [{}]}', "[" * 99_999,
             '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../x", "size": 5}]}',
             '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:00", "size": "5"}]}'],
)  # fmt: skip
def test_ollama_invalid_manifests_are_skipped(text: str, home: Path, made: Path) -> None:
    root = home / ".ollama/models"
    ollama(root, made, "registry.ollama.ai", "library", "good", "1b")
    (root / "manifests/registry.ollama.ai/library/good/bad").write_text(text)
    assert [manifest.name for manifest in other_apps.ollama_models()] == ["good:1b"]


# -- looking cannot hang or go astray


def _loop(folder: Path) -> None:
    (folder / "loop").symlink_to(folder)


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "m-Q4_K_M.gguf")


def _dangling(folder: Path) -> None:
    (folder / "m-Q4_K_M.gguf").symlink_to(folder / "nowhere")


def _folder(folder: Path) -> None:
    (folder / "m-Q4_K_M.gguf").mkdir()


def _deep(folder: Path) -> None:
    deep = folder.joinpath(*["d"] * 20)
    deep.mkdir(parents=True)
    (deep / "m-Q4_K_M.gguf").write_bytes(b"x")


@pytest.mark.parametrize("odd", [_loop, _pipe, _dangling, _folder, _deep])
def test_walk_survives_odd_folders(odd: Callable[[Path], None], home: Path) -> None:
    folder = home / ".lmstudio/models"
    folder.mkdir(parents=True)
    odd(folder)
    assert list(other_apps.gguf_files()) == []


def test_walk_is_bounded(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number}").mkdir()
    assert len(list(other_apps.walk(tmp_path, 3, most=20))) == 20


# -- what can be served from here


def test_inventory_lists_models_of_all_places(home: Path, tmp_path: Path, made: Path, store: Store) -> None:
    (link,) = hub_cache(home / ".cache/huggingface/hub", made)
    write_parts(home / ".lmstudio/models/org/repo", "split")
    write_sample(home / ".lmstudio/models/org/repo/mmproj-F16.gguf", architecture="clip")
    mine = write_parts(store.folder / "org/repo", "sub")
    own = write_sample(store.folder / "own.gguf")
    found = scan(store, catalog=Catalog(()))
    assert found == {
        "own": own, "sub": mine[0], "m-Q4_K_M": link,
        "split": home / ".lmstudio/models/org/repo/split-00001-of-00002.gguf",
    }  # fmt: skip


def test_inventory_prefers_the_stores_model_of_a_name(home: Path, store: Store) -> None:
    (home / ".lmstudio/models").mkdir(parents=True)
    write_sample(home / ".lmstudio/models/m.gguf")
    store.folder.mkdir()
    mine = write_sample(store.folder / "m.gguf")
    assert scan(store, catalog=Catalog(())) == {"m": mine}


async def test_projector_beside_a_model_belongs_to_it(home: Path, store: Store, tmp_path: Path) -> None:
    folder = home / ".lmstudio/models/org/repo"
    folder.mkdir(parents=True)
    path = write_sample(folder / "m.gguf")
    projector = write_sample(folder / "mmproj-F16.gguf", architecture="clip")
    assert (await ensure(path, store, ignore)).projector == projector
    write_sample(folder / "mmproj-BF16.gguf", architecture="clip")
    assert (await ensure(path, store, ignore)).projector is None  # which of them is meant, nobody says
    store.folder.mkdir()
    alone = write_sample(store.folder / "m.gguf")
    write_sample(store.folder / "mmproj-F16.gguf", architecture="clip")
    assert (await ensure(alone, store, ignore)).projector is None
