"""Estimates the memory of a vision projector from its header.

An upper bound: the engine loads the file without mmap and computes a large image, or several small ones, at once.
Measured on a CPU: the intermediate results take 4 bytes per patch, times the feed-forward width plus three times the
width (121 MiB for a projector like Gemma 3's at 4096 patches, 21 MiB for SmolVLM's at 1024). Memory of accelerators
without flash attention is not included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .cursor import Cursor
from .header import blaming, opened
from .metadata import read_metadata, read_start

# Patches computed at once: at most 1024 tokens of images together or one image of 4096 patches; a token is made of 4 to
# 16 patches. A file that allows larger images says so.
MOST_PATCHES: Final = 16_384
_BYTES_A_NUMBER: Final = 4


def projector_bytes(path: Path) -> int:
    """Largest memory use of the projector in bytes. Raises InvalidModelFile."""
    with opened(path) as (file, size), blaming(str(path)):
        cursor = Cursor(file, size)
        _, keys = read_start(cursor)
        metadata = read_metadata(cursor, keys)
        width, inner, patch, pixels = (
            metadata.number(f"clip.vision.{key}")
            for key in ("embedding_length", "feed_forward_length", "patch_size", "image_max_pixels")
        )
        patches = max(MOST_PATCHES, pixels // (patch * patch) if patch else 0)
        # The feed-forward part may be gated, which doubles it.
        return size + patches * _BYTES_A_NUMBER * (2 * inner + 4 * width)
