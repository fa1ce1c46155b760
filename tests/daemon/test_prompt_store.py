"""Files of computed prompts: private, bounded in bytes and age, dropped with their model; a damaged one is never given
to the engine."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from meshllm.daemon import prompt_store
from meshllm.daemon.prompt_store import MAX_AGE_SECONDS, MOVING_SECONDS, PromptStore


class Kept:
    """A store of 10,000 bytes below `folder`, with a clock and a model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1e9
        self.store = PromptStore(folder, lambda: self.now, most=10_000)
        self.model = folder / "m.gguf"
        self.model.write_bytes(b"weights")
        self.key = PromptStore.key([self.model], "engine", 4096)

    def add(self, *tokens: int, size: int = 100, key: str = "", model: Path | None = None) -> str:
        """What an engine writes for these tokens, with a state of `size` bytes."""
        packed = struct.pack(f"<iII{len(tokens)}iI", -1, 1, len(tokens), *tokens, 0)
        made = self.folder / "0.slot"
        made.write_bytes(struct.pack("<III", 0x67676F73, 2, len(packed) // 4) + packed + bytes([tokens[0]]) * size)
        made.chmod(0o644)
        self.now += 1
        name = self.store.add(key or self.key, model or self.model, made, len(tokens)).name
        assert not made.exists()
        return name

    def names(self) -> list[str]:
        """Of the files, the latest first."""
        return [one.name for one in self.store.find(self.key)]

    def path(self, name: str) -> Path:
        return self.folder / "prompts" / self.key / name


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_files_are_private_and_given_back_as_they_were(kept: Kept, tmp_path: Path) -> None:
    name = kept.add(1, 2, 3)
    data = kept.path(name).read_bytes()
    for path in (kept.path(name), kept.path("index.json")):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == path.parent.parent.stat().st_mode & 0o777 == 0o700
    (saved,) = PromptStore(tmp_path, lambda: kept.now).find(kept.key)
    assert (saved.tokens, saved.size) == (3, len(data))
    target = tmp_path / "staged.slot"
    target.write_bytes(b"left behind")
    assert kept.store.stage(kept.key, saved, target)
    assert target.read_bytes() == data


def test_longer_prompt_replaces_the_one_that_it_begins_with(kept: Kept) -> None:
    first, other = kept.add(1, 2, 3), kept.add(7, 8)
    longer = kept.add(1, 2, 3, 4, 5)
    assert kept.names() == [longer, other]
    assert not kept.path(first).exists()
    # The last tokens were an answer, which came back as others.
    again = kept.add(1, 2, 3, 4, 9, 10, 11)
    assert kept.names() == [again, other]
    longer = kept.add(1, 2, 3, 4, 5)
    assert kept.names() == [longer, other]
    assert kept.add(1, 2, 3, 4, 5) == longer
    assert kept.names() == [longer, other]
    long = kept.add(7, 8, *range(100, 1100))
    assert kept.names() == [long, longer]
    branch = kept.add(7, 8, *range(100, 700), 1)
    assert kept.names() == [branch, long, longer], "400 tokens of it would be lost"


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "link", "folder", "gone"])
def test_damaged_file_is_removed_and_not_staged(kept: Kept, damage: str, tmp_path: Path) -> None:
    path = kept.path(kept.add(1, 2, 3))
    (saved,) = kept.store.find(kept.key)
    data = path.read_bytes()
    path.unlink()
    match damage:
        case "flip":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            path.write_bytes(data[:-1])
        case "grow":
            path.write_bytes(data + b"x")
        case "link":
            (tmp_path / "elsewhere").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere")
        case "folder":
            path.mkdir()
    assert not kept.store.stage(kept.key, saved, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()
    assert kept.names() == []
    assert not path.is_symlink()
    assert not path.is_file()


def test_store_is_bounded_in_bytes_and_number(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [kept.add(number, size=3000) for number in range(1, 6)]
    assert kept.names() == names[:1:-1]
    other = kept.folder / "other.gguf"
    other.write_bytes(b"others")
    kept.add(9, size=3000, key=PromptStore.key([other]), model=other)
    assert kept.names() == names[:2:-1], "the bound is for all models together"
    with pytest.raises(OSError, match="too large"):
        kept.add(9, size=20_000)
    monkeypatch.setattr(prompt_store, "MAX_FILES", 1)
    last = kept.add(9)
    assert kept.names() == [last]
    assert kept.store.find(PromptStore.key([other])) == []
    assert 0 <= kept.store.room() <= 10_000


def test_old_files_and_those_of_a_model_that_is_gone_are_swept(kept: Kept) -> None:
    old = kept.path(kept.add(1))
    kept.now += MAX_AGE_SECONDS
    new = kept.path(kept.add(2))
    kept.now += 10
    assert kept.names() == [new.name]
    kept.store.sweep()
    assert (old.exists(), new.exists()) == (False, True)
    left = new.with_name("left behind")
    left.write_bytes(b"x")
    kept.now = left.stat().st_mtime + MOVING_SECONDS / 2
    kept.store = PromptStore(kept.folder, lambda: kept.now)
    kept.add(3)
    kept.store.sweep()
    assert left.exists(), "it may be just written"
    kept.now += MOVING_SECONDS
    kept.store.sweep()
    assert not left.exists()
    kept.model.unlink()
    kept.store.sweep()
    assert list((kept.folder / "prompts").iterdir()) == []


def test_other_model_file_engine_or_context_has_other_files(kept: Kept) -> None:
    name = kept.add(1)
    assert PromptStore.key([kept.model], "engine", 4096) == kept.key
    others = {PromptStore.key([kept.model], "engine", 8192), PromptStore.key([kept.model], "other engine", 4096)}
    kept.model.write_bytes(b"other weights")
    others.add(PromptStore.key([kept.model], "engine", 4096))
    assert len(others) == 3
    assert kept.key not in others
    assert kept.names() == [name]
    kept.store.keep_only(others.pop(), kept.model)
    assert kept.names() == []
    assert not kept.path(name).parent.exists()


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b'{"model": 5, "files": [5]}',
        b'{"model": "m", "files": [{"name": "../x.slot", "digest": "", "size": 1, "tokens": 1, "saved": 1}]}',
    ],
)
def test_damaged_index_counts_for_nothing(kept: Kept, index: bytes) -> None:
    name = kept.add(1)
    kept.path("index.json").write_bytes(index)
    assert kept.names() == []
    kept.store.keep_only("another", kept.model)
    kept.store.sweep()
    assert not kept.path(name).exists()
    assert kept.add(1) == name
    kept.store.clear()
    assert kept.names() == []
