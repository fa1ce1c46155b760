"""Parses model names: quantizations, parts of a split GGUF, and the forms of a reference to the hub. Pure.

Invariants: a result is printable and bounded, and no path in it is absolute or contains "..".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from meshllm.core.routing.model_names import QUANTIZATION
from meshllm.errors import UsageError
from meshllm.models.hub.manifest import HubReference

MAX_MODEL_NAME: Final = 128
HUB_HOSTS: Final = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
HUB_SCHEMES: Final = ("hf", "huggingface")
HUB_FORMS: Final = (
    "org/repo, org/repo:Q4_K_M, org/repo/file.gguf, or the address of any of these at https://huggingface.co"
)

_WHOLE_QUANTIZATION = re.compile(QUANTIZATION, re.IGNORECASE)
_SOME_QUANTIZATION = re.compile(rf"(?<![a-z0-9]){QUANTIZATION}(?![a-z0-9])", re.IGNORECASE)
_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.IGNORECASE)
# The characters that the hub allows in owners and repositories, and that occur in file names.
_OWNER = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMPONENT = re.compile(r"\w[\w.+,=@()\[\] -]{0,199}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,99}(/[\w.-]{1,100}){0,4}", re.ASCII)
_VERBS = frozenset({"tree", "blob", "resolve", "raw"})  # org/repo/VERB/revision/path, in addresses of the hub
_NO_MODELS = frozenset({"datasets", "spaces", "docs", "blog", "papers", "collections", "api", "models", "settings"})


@dataclass(frozen=True, slots=True)
class GgufPart:
    """The part of a split model that a file is, counted from 1, and the name of the first part."""

    number: int
    parts: int
    first: str


def quantization(text: str) -> str:
    """The canonical spelling of a quantization ("q4-k-m" is Q4_K_M). Raises UsageError if it is none."""
    if not _WHOLE_QUANTIZATION.fullmatch(text):
        raise UsageError(
            f"{text[:40]!r} is not a quantization.", advice="Usual ones are Q4_K_M, Q8_0, IQ4_XS, UD-Q4_K_XL and BF16."
        )
    return _spelled(text)


def quantization_in(text: str) -> tuple[str, str]:
    """The last quantization in `text` ("" if none), and the text without it."""
    mentions = list(_SOME_QUANTIZATION.finditer(text))
    if not mentions:
        return "", text
    last = mentions[-1]
    return _spelled(last[0]), f"{text[: last.start()]} {text[last.end() :]}"


def part_of(file_name: str) -> GgufPart | None:
    """The part that a file is, by its name; None for a file that is not split."""
    match = _PART.fullmatch(file_name)
    if match is None:
        return None
    first = f"{match['stem']}-00001-of-{match['parts']}{file_name[-5:]}"
    return GgufPart(int(match["part"]), int(match["parts"]), first)


def model_name(file_name: str) -> str:
    """The model's name: the file name without its suffix and part number."""
    match = _PART.fullmatch(file_name)
    return match["stem"] if match else re.sub(r"\.gguf$", "", file_name, flags=re.IGNORECASE)


def hub_reference(text: str, endpoint: str = "") -> HubReference | None:
    """The hub model that `text` names; None if it has no form of a hub reference.

    `endpoint`: the address of a mirror (HF_ENDPOINT), whose own URLs are understood too. Raises UsageError for an
    invalid reference and for URLs of other sites.
    """
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme.casefold() in HUB_SCHEMES:
            return _parsed(rest, web=False)
        return _from_address(text, endpoint)
    host, _, rest = text.partition("/")
    if host.casefold() in HUB_HOSTS:
        return _from_address(f"https://{text}", endpoint)
    return _parsed(text, web=False) if rest and not text.startswith(("/", ".", "~")) else None


def _spelled(text: str) -> str:
    name = text.upper().replace("-", "_")
    return f"UD-{name[3:]}" if name.startswith("UD_") else name


def _from_address(text: str, endpoint: str) -> HubReference:
    address = _address(text)
    path = _at_the_hub(address, _address(endpoint)) if address else None
    if address is None or path is None:
        raise UsageError(
            f"Models are not downloaded from {text[:200]}.",
            advice=f"Use {HUB_FORMS}, or the path of a GGUF file.",
        )
    try:
        shown = parse_qs(address.query).get("show_file_info", [""])[0]  # the form of links in the hub's file list
    except ValueError:  # too many fields
        shown = ""
    return _parsed(f"{path.rstrip('/')}/{shown}" if shown else path, web=not shown)


def _address(text: str) -> SplitResult | None:
    try:
        address = urlsplit(text)
        _ = address.hostname, address.port
    except ValueError:  # invalid host or port
        return None
    return address


def _at_the_hub(address: SplitResult, mirror: SplitResult | None) -> str | None:
    """The path below the hub's root; None for a URL of another site."""
    if address.scheme not in ("http", "https"):
        return None
    if address.hostname in HUB_HOSTS:
        return address.path
    if mirror is None or not mirror.hostname or (address.hostname, address.port) != (mirror.hostname, mirror.port):
        return None
    prefix = mirror.path.rstrip("/")
    return address.path[len(prefix) :] if address.path.startswith(f"{prefix}/") else None


def _parsed(text: str, *, web: bool) -> HubReference:
    """`org/repo[@revision][:quantization]`, `org/repo[@revision]/path`, and `org/repo/VERB/revision[/path]`."""
    segments = [unquote(segment) if web else segment for segment in text.strip("/").split("/")]
    if len(segments) < 2 or not all(segments):
        raise UsageError(f"{text[:200]!r} names no model at the hub.", advice=f"Write {HUB_FORMS}.")
    owner, (repository, revision, tag), path = segments[0], _split(segments[1]), segments[2:]
    if owner.casefold() in _NO_MODELS:
        raise UsageError(f"There are no models under {owner}/ at the hub.", advice=f"Write {HUB_FORMS}.")
    if path and not tag and path[0] in _VERBS and len(path) > 1:
        verb, revision, path = path[0], path[1], path[2:]
        if verb == "tree" and len(path) == 1 and _WHOLE_QUANTIZATION.fullmatch(path[0]):
            tag, path = path[0], []  # a folder that holds the parts of one quantization
    if not _OWNER.fullmatch(owner) or not _OWNER.fullmatch(repository) or ".." in f"{owner}/{repository}":
        raise UsageError(
            f"{owner[:99]}/{repository[:99]} is not a valid repository name.", advice=f"Write {HUB_FORMS}."
        )
    if repository.casefold().endswith(".gguf") and not path:
        raise UsageError(f"{text[:200]!r} names a file without a repository.", advice=f"Write {HUB_FORMS}.")
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"{revision[:99]!r} cannot be a revision of a repository.", advice=f"Write {HUB_FORMS}.")
    if tag and path:
        raise UsageError(f"{text[:200]!r} names a file twice.", advice=f"Write {HUB_FORMS}.")
    if tag.casefold().endswith(".gguf"):
        tag, path = "", [tag]
    chosen = quantization(tag) if tag else ""
    name = _file_name(path) if path else _repository_name(repository, chosen)
    if len(name) > MAX_MODEL_NAME:
        raise UsageError(f"{name[:60]}... is too long for a name.", advice=f"At most {MAX_MODEL_NAME} letters, please.")
    return HubReference(name, f"{owner}/{repository}", "/".join(path), chosen, revision or "main")


def _split(segment: str) -> tuple[str, str, str]:
    """Repository, revision and tag of `repo[@revision][:tag]`."""
    rest, _, tag = segment.partition(":")
    repository, _, revision = rest.partition("@")
    return repository, revision, tag


def _file_name(path: list[str]) -> str:
    """What the model in that file is called. Raises UsageError where it is no file of a model."""
    shown = "/".join(path)[:200]
    if len(path) > 8 or not all(_COMPONENT.fullmatch(part) and ".." not in part for part in path):
        raise UsageError(f"{shown!r} cannot be the path of a file at the hub.", advice=f"Write {HUB_FORMS}.")
    file = path[-1]
    if not file.casefold().endswith(".gguf"):
        raise UsageError(
            f"{shown} is not a GGUF file.", advice="Only GGUF files can be served: see what else is there."
        )
    if file.casefold().startswith(("mmproj", "imatrix")) or "mmproj" in file.casefold():
        raise UsageError(f"{shown} only goes with a model.", advice="Name the model's own GGUF file.")
    if (part := part_of(file)) and (part.number != 1 or part.parts < 1):
        first = "/".join((*path[:-1], part.first))
        raise UsageError(f"{shown} is part {part.number} of {part.parts}.", advice=f"Name {first} instead.")
    return model_name(file)


def _repository_name(repository: str, chosen: str) -> str:
    base = re.sub(r"[-_.]gguf$", "", repository, flags=re.IGNORECASE)
    return f"{base}-{chosen}" if chosen else base
