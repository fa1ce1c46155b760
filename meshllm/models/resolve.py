"""What a person means by a model's name: an entry of the catalogue, or a file.

Law: a name is never guessed silently. What is not understood yet is refused with the forms that are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshllm.errors import UnknownModel, UsageError

from .catalog import Catalog, load
from .entry import Wanted

MAX_NAME: Final = 4096

_HUB_FORM = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+)?(:[\w.-]+)?", re.ASCII)
_WHAT_WORKS = (
    "Give a name from `mesh-llm download`, or the path of a GGUF file (./model.gguf, ~/model.gguf, /where/model.gguf)."
)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a name stands for. `note` is for the person who wrote it, where what was taken is not quite what it says."""

    wanted: Wanted
    note: str = ""


def resolve(
    text: str,
    *,
    catalog: Catalog | None = None,
    folder: Path | None = None,
    disk: Callable[[], Mapping[str, Wanted]] = dict,
) -> Resolution:
    """The catalogue entry, or the absolute path of an existing file, that `text` means.

    A bare `name.gguf` is looked for in the working directory, then in `folder` (the model store). Raises UnknownModel
    where nothing has that name and UsageError where the form cannot be used.
    """
    wanted = text.strip()
    if not wanted:
        raise UsageError("No model was named.", advice=_WHAT_WORKS)
    if len(wanted) > MAX_NAME or not wanted.isprintable():
        raise UsageError("That is not a model's name.", advice=_WHAT_WORKS)
    if "://" in wanted:
        raise UsageError(f"Models cannot be given as a URL yet: {wanted[:200]}", advice=_WHAT_WORKS)
    if _is_path(wanted):
        return Resolution(_file(wanted, folder))
    if there := disk().get(wanted):
        return Resolution(there)
    return Resolution((catalog or load()).find(wanted))


def _is_path(text: str) -> bool:
    if text.startswith(("~", ".", os.sep)) or text.casefold().endswith(".gguf"):
        return True
    return "/" in text or os.sep in text or (os.altsep is not None and os.altsep in text)


def _file(text: str, folder: Path | None) -> Path:
    try:
        path = Path(text).expanduser().absolute()
        if not path.exists() and folder is not None and Path(text).name == text and (folder / text).is_file():
            path = folder / text
        if path.is_dir():
            raise UsageError(f"{path} is a folder.", advice="Name the GGUF file in it.")
        if path.exists():
            return path
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a name that is too long, no permission
        raise UsageError(f"{text[:200]} cannot be looked at: {error}", advice=_WHAT_WORKS) from error
    if not text.startswith(("~", ".", os.sep)) and _HUB_FORM.fullmatch(text):
        raise UsageError(f"There is no file {text[:200]} here, and hub names cannot be used yet.", advice=_WHAT_WORKS)
    raise UnknownModel(f"There is no file {str(path)[:200]}.", advice=_WHAT_WORKS)
