"""What a projector takes of memory, by its own header: the file that turns pictures into tokens, beside its model.

Law: an upper bound, and said to be one. The engine loads the file whole (it is not mapped) and computes a picture, or
several small ones, in one go. Measured with it on a processor: the results that live at the same time take 4 bytes for
each patch, times the inner width and three times the width (121 MiB for a projector like Gemma 3's at 4096 patches,
21 MiB for one like SmolVLM's at 1024). What it takes on an accelerator without flash attention is not in it.
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
