"""The folders of mesh-llm, and the environment variables that change them.

`MESH_LLM_HOME` (default `~/.mesh-llm`): state of one node; two nodes on a machine need two homes.
`MESH_LLM_MODELS` (default `~/.models`): GGUF files, shared by all nodes of a user.
`MESH_LLM_CACHE` (default: the user's cache directory): the built engine; may be deleted at any time.
"""

from __future__ import annotations

import os
from pathlib import Path

from meshllm.errors import UsageError

MISSING_HOME = "/nonexistent"


def home() -> Path:
    """The state folder of this node. Raises UsageError where the user has no home folder, as all of these."""
    return _expanded("MESH_LLM_HOME", "~/.mesh-llm")


def models() -> Path:
    """The folder of the model files."""
    return _expanded("MESH_LLM_MODELS", "~/.models")


def cache() -> Path:
    """The folder of what can be rebuilt: the engine and the downloads it is built from."""
    if os.environ.get("MESH_LLM_CACHE"):
        return _expanded("MESH_LLM_CACHE", "")
    if _has_no_home():
        raise _no_home("MESH_LLM_CACHE")
    import platformdirs

    return platformdirs.user_cache_path("mesh-llm", appauthor=False)


def name_missing_home() -> None:
    """Where the user has no home folder, set HOME to a folder that does not exist, as systems do for such users.

    Otherwise `~` raises RuntimeError, in other packages too.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = MISSING_HOME


def _has_no_home() -> bool:
    try:
        return Path.home() == Path(MISSING_HOME)
    except RuntimeError:
        return True


def _expanded(variable: str, default: str) -> Path:
    chosen = os.environ.get(variable) or default
    if chosen.startswith("~") and _has_no_home():
        raise _no_home(variable)
    return Path(chosen).expanduser().absolute()


def _no_home(variable: str) -> UsageError:
    """A container that runs as a number has no account, and often no HOME."""
    return UsageError(
        "This user has no home folder: HOME is not set, and the system has no account of that number.",
        advice=f"Set HOME, or {variable}, to a folder that this user can write to.",
    )
