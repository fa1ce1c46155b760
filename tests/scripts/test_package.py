"""The wheel: everything that a node needs to serve, and nothing of an earlier build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from meshllm.engine.build import pin
from meshllm.web.console import page_files

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "scripts/package.py", "scripts/bootstrap.sh", "scripts/console.sh")
PAGE = page_files.FOLDER.relative_to(ROOT)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout without the page's source: with a page, its source would have to be the page's."""
    made = tmp_path / "tree"
    for part in PARTS:
        (made / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / part, made / part)
    ignored = shutil.ignore_patterns("__pycache__", "page", "page.failed")
    shutil.copytree(ROOT / "meshllm", made / "meshllm", ignore=ignored)
    shutil.copytree(ROOT / "llama.cpp", made / "llama.cpp")
    return made


def with_page(tree: Path) -> None:
    """A page as `scripts/console` makes it."""
    (tree / PAGE / "assets").mkdir(parents=True)
    (tree / PAGE / "index.html").write_text("<!doctype html>")
    (tree / PAGE / "assets" / "index-1.js").write_text("1")


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel into `tree/dist` with the build backend of this environment."""
    script = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    (tree / "dist").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def names(tree: Path) -> set[str]:
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_has_what_a_node_needs(tree: Path, tmp_path: Path) -> None:
    with_page(tree)
    built = build(tree)
    assert built.returncode == 0, built.stderr
    found = names(tree)
    for source in (*tree.glob("llama.cpp/patches/*.patch"), tree / "llama.cpp/patches/series"):
        assert f"meshllm/engine/build/source/patches/{source.name}" in found
    assert {
        "meshllm/engine/build/source/pin.toml",
        "meshllm/models/catalog/catalog.toml",
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "meshllm/agents/known").glob("*.toml")),
        "meshllm/agents/skills/mesh-blackboard/SKILL.md",
        "meshllm/models/catalog/templates/smollm2-tools.jinja",
        "meshllm/engine/processes/tools-prefix.jinja",
        "meshllm/web/page/index.html",
        "meshllm/web/page/assets/index-1.js",
        "meshllm/py.typed",
    } <= found
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "meshllm").rglob("*.py")}
    assert here <= found
    # The engine's cache key is made of these bytes: the wheel finds the build of the checkout.
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    installed = tmp_path / "installed" / "meshllm" / "engine" / "build" / "source"
    assert pin.read_source(installed) == pin.read_source(ROOT / "llama.cpp")


def test_installed_package_finds_its_own_copy(tree: Path, tmp_path: Path) -> None:
    with_page(tree)
    assert build(tree).returncode == 0
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    script = "from meshllm.engine.build import pin; print(pin.directory())"
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == str(tmp_path / "installed" / "meshllm" / "engine" / "build" / "source")


def _no_page(tree: Path) -> None:
    """Nothing was built."""


def _old_page(tree: Path) -> None:
    """The page was built from another source."""
    with_page(tree)
    (tree / PAGE / ".source").write_text("1 2\n")
    for name in ("index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "licences.js"):
        (tree / "console").mkdir(exist_ok=True)
        (tree / "console" / name).write_text("")
    (tree / "console" / "src").mkdir()


@pytest.mark.parametrize("page", [_no_page, _old_page])
def test_wheel_without_a_current_page_is_refused(tree: Path, page: Callable[[Path], None]) -> None:
    page(tree)
    refused = build(tree)
    assert refused.returncode != 0
    assert "Run scripts/console first" in refused.stderr
    assert build(tree, MESH_LLM_PACKAGE_WITHOUT_PAGE="1").returncode == 0
    assert "meshllm/engine/build/source/pin.toml" in names(tree)


def test_wheel_has_nothing_of_an_earlier_build(tree: Path) -> None:
    with_page(tree)
    (tree / "meshllm" / "removed_later.py").write_text("")
    assert build(tree).returncode == 0
    assert "meshllm/removed_later.py" in names(tree)
    (tree / "meshllm" / "removed_later.py").unlink()
    assert build(tree).returncode == 0
    assert "meshllm/removed_later.py" not in names(tree)
