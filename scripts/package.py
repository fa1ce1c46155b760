"""The build step of the Python package (pyproject.toml names it): adds what lies outside of `meshllm/`, and checks that
nothing is missing. Used by pip and build; not a program of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent.parent
# `meshllm/engine/build/pin.py` reads the same files from here where there is no checkout.
ENGINE_SOURCE = "meshllm/engine/build/source"
# Set to 1: build a package without the console's page, for a machine that has no Node.js.
WITHOUT_PAGE = "MESH_LLM_PACKAGE_WITHOUT_PAGE"


def engine_source() -> list[Path]:
    """The files that pin the engine, relative to the checkout."""
    patches = sorted((ROOT / "llama.cpp" / "patches").glob("*.patch"))
    return [
        path.relative_to(ROOT) for path in (ROOT / "llama.cpp/pin.toml", ROOT / "llama.cpp/patches/series", *patches)
    ]


class BuildPackage(build_py):
    """`build_py` with the pin and the patches of the engine, and with a console page of this source."""

    def run(self) -> None:
        if not self.editable_mode:
            check_page()
            # A module that was removed since an earlier build would be in this one.
            shutil.rmtree(Path(self.build_lib) / "meshllm", ignore_errors=True)
        super().run()
        if not self.editable_mode:
            for file in engine_source():
                target = Path(self.build_lib, ENGINE_SOURCE, file.relative_to("llama.cpp"))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        added = [str(Path(self.build_lib, ENGINE_SOURCE, file.relative_to("llama.cpp"))) for file in engine_source()]
        return [*super().get_outputs(include_bytecode), *added]

    def get_source_files(self) -> list[str]:
        """What a source distribution needs beside the modules."""
        return [*super().get_source_files(), *map(str, engine_source()), "scripts/package.py"]


def check_page() -> None:
    """Raise SetupError if the console's page is not built, or not from the present source."""
    if os.environ.get(WITHOUT_PAGE) == "1":
        return
    built = (ROOT / "meshllm/web/page/index.html").is_file()
    if built and (ROOT / "console/src").is_dir():
        script = 'source "$1/scripts/bootstrap.sh"; source "$1/scripts/console.sh"; mesh_console_is_built'
        built = subprocess.run(["bash", "-c", script, "bash", str(ROOT)], check=False).returncode == 0
    if not built:
        raise SetupError(
            "The console's page is not built, or not from this source. Run scripts/console first, or set "
            f"{WITHOUT_PAGE}=1 to build a package without it."
        )
