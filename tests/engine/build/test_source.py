"""Pin, patches and archive with hostile content raise typed errors."""

from __future__ import annotations

import difflib
import io
import tarfile
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshllm.engine.build import patches, pin, source
from meshllm.engine.build.progress import BuildStage, silent
from meshllm.errors import EngineUnavailable, NotEnoughSpace
from meshllm.util.progress import Progress
from tests.engine.build.build_kit import FILES, TREE, Index, archive, patch, pin_of

ROOT = Path(__file__).parents[3]
PIN = (ROOT / "llama.cpp/pin.toml").read_text()
steady = settings(deadline=None)  # a busy machine is no failure


# -- pin and series


def test_pin_matches_lock_file_and_package() -> None:
    found = pin.read_source(ROOT / "llama.cpp").pin
    assert pin.directory() == ROOT / "llama.cpp"
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"{found.package}=={found.version}" in dependencies
    for name in ("requirements.lock", "requirements-dev.lock"):
        lock = (ROOT / name).read_text().replace("\\\n", " ")
        (line,) = [line for line in lock.splitlines() if line.startswith(f"{found.package}==")]
        assert line.split()[:2] == [f"{found.package}=={found.version}", f"--hash=sha256:{found.sha256}"]


def test_series_lists_every_patch() -> None:
    folder = ROOT / "llama.cpp/patches"
    listed = pin.parse_series((folder / "series").read_text())
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.patch"))
    for name in listed:
        assert patches.parse(name, (folder / name).read_text())


@steady
@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda data: data.decode("latin-1")))
def test_pin_of_any_text_parses_or_raises_a_typed_error(text: str) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        pin.parse_pin(text)
    assert caught.value.advice


FIELDS = ["package", "version", "file", "sha256", "size", "tree", "commit"]
VALUES = st.text(max_size=40) | st.integers() | st.booleans() | st.lists(st.text(max_size=3), max_size=2)


@steady
@given(st.sampled_from(FIELDS), VALUES)
def test_pin_with_any_field_value_parses_or_raises_a_typed_error(field: str, value: object) -> None:
    lines = [line for line in PIN.splitlines() if not line.startswith(f"{field} ")]
    written = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    if isinstance(value, str):
        written = '"' + "".join(f"\\U{ord(letter):08X}" for letter in value) + '"'
    try:
        found = pin.parse_pin("\n".join([*lines, f"{field} = {written or value}"]))
    except EngineUnavailable:
        return
    assert found.file == Path(found.file).name
    assert ".." not in found.tree.split("/")
    assert len(found.sha256) == 64
    assert not found.package.startswith("-")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("package", '"--index-url"'),
        ("package", '"a b"'),
        ("version", '"0.3.36 --hash"'),
        ("file", '"../../x.tar.gz"'),
        ("sha256", '"AB"'),
        ("size", "0"),
        ("size", "99999999999999"),
        ("tree", '"a/../../b"'),
        ("tree", '"/etc"'),
        ("commit", '"; rm"'),
    ],
)
def test_pin_refuses_unsafe_values(field: str, value: str) -> None:
    lines = [line for line in PIN.splitlines() if not line.startswith(f"{field} ")]
    with pytest.raises(EngineUnavailable, match=field):
        pin.parse_pin("\n".join([*lines, f"{field} = {value}"]))


def test_series_ignores_comments() -> None:
    assert pin.parse_series("# first\n\n a.patch \nb-2.patch # why\n") == ("a.patch", "b-2.patch")


@steady
@given(st.text(max_size=200))
def test_series_of_any_text_parses_or_raises_a_typed_error(text: str) -> None:
    try:
        names = pin.parse_series(text)
    except EngineUnavailable:
        return
    assert all(Path(name).name == name and name.endswith(".patch") for name in names)


@pytest.mark.parametrize("text", ["../a.patch", "a/b.patch", ".patch", "a.patch\na.patch", "a.diff", "-x.patch\n"])
def test_series_refuses_unsafe_names(text: str) -> None:
    with pytest.raises(EngineUnavailable, match="series"):
        pin.parse_series(text)


def test_missing_patch_or_folder_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "patches").mkdir()
    (tmp_path / "pin.toml").write_text(PIN)
    (tmp_path / "patches/series").write_text("gone.patch\n")
    with pytest.raises(EngineUnavailable, match=r"gone\.patch"):
        pin.read_source(tmp_path)
    with pytest.raises(EngineUnavailable, match=r"pin\.toml"):
        pin.read_source(tmp_path / "nowhere")


# -- patches

LINES = st.lists(st.text("ab -+@\\é\r\t", max_size=4).map(lambda text: text + "\n"), max_size=12)


@steady
@given(LINES, LINES, st.integers(0, 4))
def test_patch_of_a_diff_gives_the_new_text(
    tmp_path_factory: pytest.TempPathFactory, old: list[str], new: list[str], context: int
) -> None:
    if old == new:
        return
    tree = tmp_path_factory.getbasetemp() / "patched"
    tree.mkdir(exist_ok=True)
    (tree / "file").write_bytes("".join(old).encode())
    text = "".join(difflib.unified_diff(old, new, "a/file", "b/file", n=context))
    patches.apply(tree, "x.patch", text)
    assert (tree / "file").read_bytes() == "".join(new).encode()


@steady
@given(st.text("-+@ ab/dev/null1,2\n\\", max_size=120))
def test_patch_of_any_text_parses_or_raises_a_typed_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    tree = tmp_path_factory.getbasetemp() / "empty"
    tree.mkdir(exist_ok=True)
    for attempt in (text, f"--- a/x\n+++ b/x\n{text}", f"--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n{text}"):
        with pytest.raises(EngineUnavailable):
            patches.apply(tree, "x.patch", attempt)
    assert list(tree.iterdir()) == []


def tree_with(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_patch_creates_deletes_and_handles_missing_line_ends(tmp_path: Path) -> None:
    tree_with(tmp_path, old="1\n2\n", edge="1\n2")
    text = """From: somebody
diff --git a/old b/old
deleted file mode 100644
--- a/old
+++ /dev/null
@@ -1,2 +0,0 @@
-1
-2
diff --git a/sub/new b/sub/new
new file mode 100644
--- /dev/null
+++ b/sub/new
@@ -0,0 +1 @@
+hello
\\ No newline at end of file
diff --git a/edge b/edge
--- a/edge
+++ b/edge
@@ -1,2 +1,2 @@
 1
-2
\\ No newline at end of file
+3
--
2.39
"""
    assert patches.apply(tmp_path, "x.patch", text) == ("old", "sub/new", "edge")
    assert not (tmp_path / "old").exists()
    assert (tmp_path / "sub/new").read_bytes() == b"hello"
    assert (tmp_path / "edge").read_bytes() == b"1\n3\n"


def test_patch_with_a_mismatched_hunk_changes_nothing(tmp_path: Path) -> None:
    tree_with(tmp_path, a="1\n", b="1\n")
    text = "".join(f"--- a/{name}\n+++ b/{name}\n@@ -1 +1 @@\n-{old}\n+2\n" for name, old in (("a", "1"), ("b", "9")))
    with pytest.raises(EngineUnavailable, match=r"x\.patch .* b: hunk 1 \(line 1\)"):
        patches.apply(tmp_path, "x.patch", text)
    assert (tmp_path / "a").read_text() == "1\n"


def test_patch_refuses_an_offset(tmp_path: Path) -> None:
    tree_with(tmp_path, a="0\n1\n")
    with pytest.raises(EngineUnavailable, match="does not match"):
        patches.apply(tmp_path, "x.patch", "--- a/a\n+++ b/a\n@@ -1 +1 @@\n-1\n+2\n")


@pytest.mark.parametrize("path", ["../out", "/out", "sub/../../out", "./out", "sub//out", "link/out", "link", ""])
def test_patch_cannot_leave_the_tree(tmp_path: Path, path: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tmp_path / "out").write_text("1\n")
    (tree / "link").symlink_to(tmp_path)
    for before in (f"a/{path}", "/dev/null"):
        removed = "" if before == "/dev/null" else "-1\n"
        header = "@@ -1 +1 @@" if removed else "@@ -0,0 +1 @@"
        with pytest.raises(EngineUnavailable):
            patches.apply(tree, "x.patch", f"--- {before}\n+++ b/{path}\n{header}\n{removed}+2\n")
    assert (tmp_path / "out").read_text() == "1\n"


@pytest.mark.parametrize("line", ["rename from a", "GIT binary patch", "old mode 100644", "diff --git a/x b/x"])
def test_patch_refuses_renames_modes_and_binary_diffs(tmp_path: Path, line: str) -> None:
    tree_with(tmp_path, a="1\n")
    text = f"{line}\ndiff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-1\n+2\n"
    with pytest.raises(EngineUnavailable):
        patches.apply(tmp_path, "x.patch", text)
    assert (tmp_path / "a").read_text() == "1\n"


# -- archives


def member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size
    return made


def unpack(folder: Path, data: bytes) -> Path:
    path = folder / "package-1.0.tar.gz"
    path.write_bytes(data)
    source.unpack(path, TREE, folder / "out", silent)
    return folder / "out"


def test_unpack_writes_only_needed_folders(tmp_path: Path) -> None:
    out = unpack(tmp_path, archive())
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == set(FILES) - {"docs/large.md"}


@pytest.mark.parametrize(
    "hostile",
    [
        member("../escaped"),
        member("/escaped"),
        member(f"{TREE}/src/../../../../../escaped"),
        member(f"{TREE}/src/link", tarfile.SYMTYPE, link="/etc"),
        member(f"{TREE}/src/link", tarfile.LNKTYPE, link="../../escaped"),
        member(f"{TREE}/src/pipe", tarfile.FIFOTYPE),
        member(f"{TREE}/src/disk", tarfile.BLKTYPE),
        member(f"{TREE}/src/llama.cpp"),
        member(f"{TREE}/src/llama.cpp/below"),
    ],
)
def test_unpack_refuses_unsafe_members(tmp_path: Path, hostile: tarfile.TarInfo) -> None:
    with pytest.raises(EngineUnavailable, match="archive"):
        unpack(tmp_path, archive(extra=(hostile,)))
    assert not list(tmp_path.rglob("escaped"))


def test_unpack_bounds_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_TREE_BYTES", 100)
    with pytest.raises(EngineUnavailable, match="too large"):
        unpack(tmp_path, archive())


@steady
@given(st.integers(0, 2000), st.integers(1, 255), st.integers(0, 3000))
def test_unpack_of_a_damaged_archive_raises_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, change: int, length: int
) -> None:
    data = bytearray(archive())
    data[position % len(data)] ^= change
    folder = tmp_path_factory.mktemp("damaged")
    for spoilt in (bytes(data), archive()[:length]):
        (folder / "package-1.0.tar.gz").write_bytes(spoilt)
        try:
            source.unpack(folder / "package-1.0.tar.gz", TREE, folder / f"out{len(spoilt)}", silent)
        except EngineUnavailable:
            continue


def test_unpack_of_another_archive_names_the_missing_folder(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(member("package-1.0/README"))
    with pytest.raises(EngineUnavailable, match=f"it has no folder {TREE}"):
        unpack(tmp_path, buffer.getvalue())


# -- fetching


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_download_is_verified_and_kept(tmp_path: Path) -> None:
    index, steps = Index(archive()), list[Progress]()
    wanted = pin_of(index.data)
    path = await source.obtain(wanted, tmp_path / "downloads", steps.append, index.fetch)
    assert path.read_bytes() == index.data
    assert await source.obtain(wanted, tmp_path / "downloads", steps.append, index.fetch) == path
    assert index.fetched == 1
    assert {step.stage for step in steps} == {BuildStage.FETCH, BuildStage.VERIFY}
    path.write_bytes(index.data[:-1])
    await source.obtain(wanted, tmp_path / "downloads", silent, index.fetch)
    path.write_bytes(index.data[:-1] + b"x")
    await source.obtain(wanted, tmp_path / "downloads", silent, index.fetch)
    assert index.fetched == 3
    assert path.read_bytes() == index.data


async def test_download_with_a_wrong_hash_is_removed(tmp_path: Path) -> None:
    index = Index(archive())
    wanted = pin_of(index.data)
    for wrong in (b"", index.data[:-1] + b"x", index.data + b"x"):
        index.data = wrong
        with pytest.raises(EngineUnavailable, match="sha256") as caught:
            await source.obtain(wanted, tmp_path, silent, index.fetch)
        assert "do not use it" in caught.value.advice
        assert names_in(tmp_path) == []


async def test_source_variable_names_a_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive()
    (tmp_path / "copy").write_bytes(data)
    monkeypatch.setenv(source.SOURCE_VARIABLE, str(tmp_path / "copy"))
    path = await source.obtain(pin_of(data), tmp_path / "downloads", silent, source.fetch_with_pip)
    assert path.read_bytes() == data
    monkeypatch.setenv(source.SOURCE_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(EngineUnavailable, match="Cannot read"):
        await source.obtain(pin_of(data), tmp_path / "others", silent, source.fetch_with_pip)


def sdist(folder: Path) -> bytes:
    """A package that pip accepts, with the test tree in it; its build backend is replaced by ours."""
    data = io.BytesIO()
    texts = {
        "package-1.0/PKG-INFO": "Metadata-Version: 2.1\nName: package\nVersion: 1.0\n",
        "package-1.0/pyproject.toml": (
            '[build-system]\nrequires = ["scikit-build-core"]\nbuild-backend = "scikit_build_core.build"\n'
            '[project]\nname = "package"\nversion = "1.0"\n'
        ),
        f"{TREE}/CMakeLists.txt": "",
    }
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, text in texts.items():
            tar.addfile(member(name, size=len(text)), io.BytesIO(text.encode()))
    (folder / "package-1.0.tar.gz").write_bytes(data.getvalue())
    return data.getvalue()


async def test_pip_downloads_without_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    index.mkdir()
    data = sdist(index)
    monkeypatch.delenv(source.SOURCE_VARIABLE, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    path = await source.obtain(pin_of(data), tmp_path / "downloads", silent, source.fetch_with_pip)
    assert path.read_bytes() == data
    assert names_in(path.parent) == [path.name]
    (index / "package-1.0.tar.gz").write_bytes(archive())  # another file under that name
    path.unlink()
    with pytest.raises(EngineUnavailable, match=r"HASH|hash") as caught:
        await source.obtain(pin_of(data), tmp_path / "downloads", silent, source.fetch_with_pip)
    assert source.SOURCE_VARIABLE in caught.value.advice
    assert names_in(path.parent) == []


async def test_full_disk_raises_not_enough_space(tmp_path: Path) -> None:
    async def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(NotEnoughSpace) as caught:
        await source.obtain(pin_of(b"x"), tmp_path, silent, full)
    assert "MESH_LLM_CACHE" in caught.value.advice


async def test_source_tree_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    data = archive()
    (tmp_path / "a.tar.gz").write_bytes(data)
    wrong = patch("x.patch", "--- a/src/gone.cpp\n+++ b/src/gone.cpp\n@@ -1 +1 @@\n-1\n+2\n")
    with pytest.raises(EngineUnavailable, match=r"src/gone\.cpp"):
        await source.prepare_tree(pin.Source(pin_of(data), (wrong,)), tmp_path / "a.tar.gz", tmp_path / "tree", silent)
    assert names_in(tmp_path) == ["a.tar.gz"]
