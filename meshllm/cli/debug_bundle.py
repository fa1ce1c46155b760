"""The contents of `mesh-llm debug dump`.

Invariants: every file passes through `Redactor`, which replaces the secrets found on this machine, text that looks
like a secret, public IP addresses and the user's home folder. Files with secrets (`node-key`, `api-key`, `mesh.json`)
are never included; `mesh.json` only by the members in MESH_MEMBERS.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import ipaddress
import json
import os
import platform
import re
import sys
import tarfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from meshllm import __version__
from meshllm.daemon import pidfile
from meshllm.errors import EnvironmentFailure, MeshError
from meshllm.util.redact import redact

# Of each log file the last so many bytes.
LOG_BYTES = 2 << 20
MAX_LOG_FILES = 24
MESH_MEMBERS = ("version", "mesh", "incarnation", "port", "founded")
# Environment variables whose names (never values) are listed.
OUR_VARIABLES = re.compile(r"MESH_LLM_\w+|HF_\w+|LLAMA_\w+|OLLAMA_\w+|CUDA_\w+|HIP_\w+|[A-Za-z]+_proxy|[A-Z]+_PROXY")
SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|INVITE", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d\.)(?!\w)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
README = """mesh-llm debug dump

version.json      versions of mesh-llm, Python, the system and of Python packages
environment.json  names (not values) of environment variables that mesh-llm or the engine reads
engine.json       how the installed engine was built
config.json       the options of the running node, and members of mesh.json that are not secret
doctor.json       output of `mesh-llm doctor --json`
status.json       GET /api/status of the running node
requests.json     GET /api/requests: its last requests, without prompts and answers
metrics.txt       GET /metrics
logs/             the ends of the log files of the daemon and its engine processes
errors.txt        parts that could not be collected

Replaced: invites, API keys, tokens and the mesh key ([redacted]), public IP addresses (public-ip-N), your home (~).
"""


class Redactor:
    """Removes secrets and personal data. The same public address gets the same replacement in all files."""

    def __init__(self, secrets: frozenset[str], home_folder: str) -> None:
        self._secrets = sorted(secrets, key=len, reverse=True)
        self._home_folder = home_folder
        self._addresses: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        text = redact(text, self._secrets)
        if len(self._home_folder) > 1:
            text = text.replace(self._home_folder, "~")
        return _IPV6.sub(self._address, _IPV4.sub(self._address, text))

    def _address(self, match: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            return match[0]
        if not address.is_global:
            return match[0]
        return self._addresses.setdefault(str(address), f"public-ip-{len(self._addresses) + 1}")


def secrets_of(home: Path, environment: Mapping[str, str]) -> frozenset[str]:
    """The secrets of this node and user: mesh key, API key, node key, the run's token, tokens in the environment."""
    running = pidfile.read(home)
    found = {running.token} if running is not None else set()
    found |= {value for name, value in environment.items() if SECRET_VARIABLE.search(name)}
    hub = Path(environment.get("HF_HOME") or Path(environment.get("HOME") or "/") / ".cache" / "huggingface")
    for path in (home / "api-key", hub / "token"):
        found.add(_text(path).strip())
    for name in ("mesh.json", "mesh.previous.json"):
        try:
            secret = bytes.fromhex(json.loads(_text(home / name))["private"])
        except (ValueError, KeyError, TypeError):
            continue
        found |= {secret.hex(), secret.hex().upper()}
        found |= {base64.b64encode(secret).decode().rstrip("="), base64.urlsafe_b64encode(secret).decode().rstrip("=")}
    found |= {line for line in _text(home / "node-key").splitlines() if "-----" not in line}
    return frozenset(secret for secret in found if len(secret) >= 6)


async def collect(home: Path, environment: Mapping[str, str] = os.environ) -> dict[str, bytes]:
    """The files of the bundle by name. A part that fails becomes a line of `errors.txt`."""
    redactor = Redactor(secrets_of(home, environment), environment.get("HOME") or "")
    files: dict[str, bytes] = {}
    errors: list[str] = []
    running = pidfile.read(home)
    if running is None:
        errors.append("no node is running with this home: no status, requests and metrics")
    parts: dict[str, Callable[[], Awaitable[object]]] = {
        "version.json": _sync(_versions),
        "environment.json": _sync(lambda: sorted(name for name in environment if OUR_VARIABLES.fullmatch(name))),
        "engine.json": _sync(_engine),
        "config.json": _sync(lambda: _config(home)),
        "doctor.json": _doctor,
    }
    if running is not None:
        api, console = running.port, running.console
        parts["status.json"] = _sync(lambda: _get(console, "/api/status"))
        parts["requests.json"] = _sync(lambda: _get(console, "/api/requests"))
        parts["metrics.txt"] = _sync(lambda: _get(api, "/metrics"))
    for name, part in parts.items():
        try:
            value = await part()
        except Exception as error:  # noqa: BLE001 - the other parts are still of use
            errors.append(f"{name}: {error!r}" if not isinstance(error, MeshError) else f"{name}: {error}")
            continue
        text = value if isinstance(value, str) else json.dumps(value, indent=1, default=str)
        files[name] = redactor(text).encode()
    for name, text in _logs(home):
        files[f"logs/{name}"] = redactor(text).encode("utf-8", "backslashreplace")
    files["README.txt"] = README.encode()
    if errors:
        files["errors.txt"] = redactor("\n".join(errors) + "\n").encode()
    return files


def write(path: Path, files: Mapping[str, bytes], now: datetime) -> None:
    """Write the bundle, readable by this user only. Raises EnvironmentFailure."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(f"mesh-llm-debug/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(now.timestamp())
            archive.addfile(entry, io.BytesIO(data))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getvalue())
    except OSError as error:
        raise EnvironmentFailure(
            f"{path} cannot be written: {error.strerror or error}.", advice="Choose another file with --output."
        ) from error


def _sync(part: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def run() -> object:
        return part()

    return run


def _versions() -> dict[str, Any]:
    packages = {}
    for requirement in importlib.metadata.requires("meshllm") or ():
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "missing"
    return {
        "mesh-llm": __version__,
        "python": sys.version,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": packages,
    }


def _engine() -> object:
    from meshllm.engine.build import builder

    engine = builder.find()
    return None if engine is None else {"key": engine.key, **asdict(engine.info)}


def _config(home: Path) -> dict[str, Any]:
    """Options from the log's newest line of a start, and members of mesh.json that are no secret."""
    from meshllm.daemon.log_file import log_path
    from meshllm.daemon.log_reader import LogTail

    started = ""
    tail = LogTail(log_path(home))
    for record in tail.read():
        if "mesh-llm started" in record:
            started = record
    tail.close()
    try:
        mesh = json.loads(_text(home / "mesh.json"))
        shown = {name: mesh[name] for name in MESH_MEMBERS if name in mesh} | {"peers": len(mesh.get("peers") or ())}
    except (ValueError, TypeError, AttributeError):
        shown = {}
    return {"started": started, "mesh.json": shown}


async def _doctor() -> object:
    from meshllm.cli import doctor
    from meshllm.daemon.settings import DEFAULT_CONSOLE, DEFAULT_PORT

    return [asdict(finding) for finding in await doctor.run_checks(doctor.checks(DEFAULT_PORT, DEFAULT_CONSOLE))]


def _get(port: int, path: str) -> str:
    from meshllm.cli.console_client import ask

    status, body = ask(port, "GET", path)
    if status != 200:
        raise EnvironmentFailure(f"GET {path} was answered with status {status}.")
    return body.decode("utf-8", "replace")


def _logs(home: Path) -> Iterator[tuple[str, str]]:
    """The end of each log file, newest files first."""
    found: list[tuple[float, Path]] = []
    try:
        for path in (home / "logs").iterdir():
            if ".log" in path.name and path.is_file() and not path.is_symlink():
                found.append((path.stat().st_mtime, path))
    except OSError:
        return
    for _, path in sorted(found, reverse=True)[:MAX_LOG_FILES]:
        yield path.name, _text(path, LOG_BYTES)


def _text(path: Path, last: int = 1 << 20) -> str:
    """The last bytes of a file as text; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - last))
            return file.read(last).decode("utf-8", "replace")
    except OSError:
        return ""
