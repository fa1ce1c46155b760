"""Where this program keeps things on a machine; the environment variables that move them.

`MESH_LLM_HOME` (default `~/.mesh-llm`): state of one node; two nodes on a machine have two homes.
`MESH_LLM_MODELS` (default `~/.models`): GGUF files, shared by all nodes of a user.
`MESH_LLM_CACHE` (default: the user's cache directory): the built engine; may be deleted at any time.
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """State directory of this node."""
    return Path(os.environ.get("MESH_LLM_HOME") or "~/.mesh-llm").expanduser().absolute()


def models() -> Path:
    """The model store."""
    return Path(os.environ.get("MESH_LLM_MODELS") or "~/.models").expanduser().absolute()


def cache() -> Path:
    """What can be made again: the built engine, the downloads it was built from."""
    if chosen := os.environ.get("MESH_LLM_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("mesh-llm", appauthor=False)
