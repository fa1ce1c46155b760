"""The folders of mesh-llm, and the environment variables that change them.

`MESH_LLM_HOME` (default `~/.mesh-llm`): state of one node; two nodes on a machine need two homes.
`MESH_LLM_MODELS` (default `~/.models`): GGUF files, shared by all nodes of a user.
`MESH_LLM_CACHE` (default: the user's cache directory): the built engine; may be deleted at any time.
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The state folder of this node."""
    return Path(os.environ.get("MESH_LLM_HOME") or "~/.mesh-llm").expanduser().absolute()


def models() -> Path:
    """The folder of the model files."""
    return Path(os.environ.get("MESH_LLM_MODELS") or "~/.models").expanduser().absolute()


def cache() -> Path:
    """The folder of what can be rebuilt: the engine and the downloads it is built from."""
    if chosen := os.environ.get("MESH_LLM_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("mesh-llm", appauthor=False)
