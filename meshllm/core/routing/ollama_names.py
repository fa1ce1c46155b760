"""Finds the model that a name of Ollama's form means: `NAME`, `NAME:latest`, `NAME:SIZE` or `NAME:QUANT`. Pure.

A tag is never dropped if it states something else than what is served: another size or quantization answers otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from meshllm.core.routing.model_names import QUANTIZATION, ModelNames

# Servers of models, which clients write in front of a name.
_SERVERS: Final = ("hf.co/", "huggingface.co/", "registry.ollama.ai/", "ollama.com/")
_REPOSITORY: Final = re.compile(r"[-_.]gguf$", re.IGNORECASE)
_QUANTIZATION: Final = re.compile(QUANTIZATION, re.IGNORECASE)
_AT_END: Final = re.compile(rf"[-._: ]({QUANTIZATION})(?:\.gguf)?$", re.IGNORECASE)


def quantization_at_end(name: str) -> str:
    """The quantization that a model's name states at its end, in upper case; "" if it states none."""
    found = _AT_END.search(name)
    return found[1].upper() if found is not None else ""


def ollama_name(asked: str, names: ModelNames, quantization_of: Callable[[str], str]) -> str:
    """The name of the model that `asked` means; `asked`, or its beginning, if no single model is known by it.

    `quantization_of`: the quantization of a known model; "" if it is not known.
    """
    if names.is_known(asked):
        return names.find(asked)
    name = asked
    for server in _SERVERS:
        if asked.lower().startswith(server):
            name = asked[len(server) :].rpartition("/")[2]
            break
    base, colon, tag = name.rpartition(":")
    if not colon or not base:
        base, tag = name, "latest"
    for stem in dict.fromkeys((base, _REPOSITORY.sub("", base))):
        if (found := _tagged(stem, tag, names, quantization_of)) is not None:
            return found
    return asked


def _tagged(stem: str, tag: str, names: ModelNames, quantization_of: Callable[[str], str]) -> str | None:
    """The model that `stem` with `tag` means; None if there is none."""
    for mark in "-._:":
        joined = f"{stem}{mark}{tag}"
        if names.is_known(joined):
            return names.find(joined)
    if not names.is_known(stem):
        # Several models: the error for the name without the tag names them.
        return stem if tag.casefold() == "latest" and names.candidates(stem) else None
    found = names.find(stem)
    if tag.casefold() == "latest":
        return found
    if _QUANTIZATION.fullmatch(tag) is None:
        return None
    known = quantization_at_end(found) or quantization_of(found)
    return found if _plain(known) == _plain(tag) else None


def _plain(quantization: str) -> str:
    return quantization.upper().replace("-", "_")
