"""Looks up a model's files at the hub: a repository's file list becomes a manifest, pinned to a commit.

Invariants: the answer is bounded before it is read and checked before it is used; names that could leave their folder
are skipped; an ambiguous reference is an error that lists the candidates.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from meshllm.errors import AmbiguousModel, DownloadFailed, UnknownModel
from meshllm.models.catalog.names import part_of, quantization_in
from meshllm.models.library.digest_index import SHA256
from meshllm.models.library.other_apps import gguf_in, hugging_face
from meshllm.util.backoff import backoff
from meshllm.util.threads import in_thread

from .destinations import MAX_REDIRECTS, REDIRECTS, Destinations
from .hub import MAX_PAUSE_SECONDS, MAX_WAIT_SECONDS, Hub, raise_for_refusal, request_headers
from .manifest import HubReference, HubSource, Manifest, ModelFile
from .manifest_cache import MAX_FILE_BYTES, MAX_FILES, is_file_name, is_repository_path
from .stream import RetryLater, error_text, retry_after

if TYPE_CHECKING:
    import httpx2

MAX_LISTING_BYTES: Final = 32 << 20  # the longest lists (a thousand files) have half a megabyte
MAX_LISTED: Final = 20_000
MAX_CANDIDATES: Final = 12  # listed in an error
LISTING_SECONDS: Final = 60.0  # for the whole list, however slowly it comes

PREFERRED_QUANTIZATIONS: Final = (
    "Q4_K_M", "UD-Q4_K_XL", "Q4_K_L", "Q4_K_XL", "Q4_K_S", "IQ4_XS", "IQ4_NL", "MXFP4", "MXFP4_MOE", "NVFP4", "Q4_1",
    "Q4_0", "Q5_K_M", "UD-Q5_K_XL", "Q5_K_S", "Q5_1", "Q5_0", "Q6_K", "UD-Q6_K_XL", "Q8_0", "UD-Q8_K_XL", "Q3_K_L",
    "UD-Q3_K_XL", "Q3_K_M", "IQ3_M", "Q3_K_S", "IQ3_XS", "IQ3_XXS", "UD-Q2_K_XL", "Q2_K", "IQ2_M", "BF16", "F16",
    "FP16", "F32",
)  # fmt: skip
"""Order of preference without a given quantization: 4 bits first (little loss at a quarter of the size), then more
bits, then fewer, unquantized last."""

PREFERRED_PROJECTORS: Final = ("F16", "BF16", "Q8_0", "F32")
"""Order of preference of projectors: half precision loses nothing visible and runs on every backend."""

_WITHOUT_THE_HUB: Final = (
    "Try again later. A model that was looked up once is known without the hub; a local file can be given by its path."
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A GGUF file in a repository's list; `sha256` is empty if the list has none."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.rpartition("/")[2]

    @property
    def quantization(self) -> str:
        """The quantization in its path ("" if none)."""
        return quantization_in(self.path)[0]


@dataclass(frozen=True, slots=True)
class RepositoryListing:
    """The GGUF files of a repository at one commit."""

    repository: str
    commit: str
    files: tuple[ListedFile, ...]


async def look_up(reference: HubReference, hub: Hub) -> Manifest:
    """The manifest of the model at the repository's current commit.

    Raises DownloadFailed if the hub is unreachable, has no such repository or sends an invalid list; UnknownModel or
    AmbiguousModel, with the candidates, if the repository has no such model or several.
    """
    settings, failures = hub.settings, 0
    within = settings.decide_within
    while True:
        try:
            listing = await _listing(reference, hub, within)
        except RetryLater as reason:
            if not reason.answered and not failures:
                raise DownloadFailed(f"{hub.endpoint} cannot be reached: {reason}.", advice=_WITHOUT_THE_HUB) from None
            failures += 1
            if failures >= settings.tries:
                raise DownloadFailed(
                    f"The hub failed {failures} times in a row: {reason}.", advice=_WITHOUT_THE_HUB
                ) from None
            wait = max(reason.after, backoff(failures - 1, base=settings.pause, cap=MAX_PAUSE_SECONDS))
            await asyncio.sleep(min(MAX_WAIT_SECONDS, wait))
        else:
            return choose(reference, listing, hub.endpoint)


async def _listing(reference: HubReference, hub: Hub, within: float) -> RepositoryListing:
    endpoint, destinations = hub.endpoint, hub.destinations
    work = in_thread(lambda stop: _ask(endpoint, destinations, reference, within), "hub-listing", leave=True)
    try:
        async with asyncio.timeout(LISTING_SECONDS):
            return parse(await work, reference.repository)
    except TimeoutError:
        raise RetryLater(f"{endpoint} did not send its list within {LISTING_SECONDS:g} s") from None


def _ask(endpoint: str, destinations: Destinations, reference: HubReference, within: float) -> bytes:
    """The hub's answer (in a thread). Redirects are checked; one to another server needs its certificate, too."""
    import httpx2
    from huggingface_hub import get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    repository, revision = reference.repository, quote(reference.revision, safe="")
    url = f"{endpoint}/api/models/{repository}/revision/{revision}?blobs=true"
    headers = request_headers()
    answered = False
    try:
        for _ in range(MAX_REDIRECTS + 1):
            with get_session().stream("GET", url, headers=headers, timeout=within, follow_redirects=False) as response:
                answered = True
                target = response.headers.get("Location", "") if response.status_code in REDIRECTS else ""
                if not target:
                    return _listing_of(response, reference)
            to = destinations.next_url(url, target)
            if urlsplit(to)[:2] != urlsplit(url)[:2]:
                headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
                if not getproxies():  # a proxy resolves names itself
                    destinations.check_name(urlsplit(to).hostname or "")
            url = to
    except OfflineModeIsEnabled:
        raise DownloadFailed("The hub is not asked: HF_HUB_OFFLINE is set.") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        raise RetryLater(error_text(error), answered=answered) from None
    raise RetryLater("it redirected too often")


def _listing_of(response: httpx2.Response, reference: HubReference) -> bytes:
    """The body of a response with a repository's list. Raises DownloadFailed, RetryLater."""
    repository = reference.repository
    raise_for_refusal(response, repository, f"repository {repository} with a revision {reference.revision}")
    if response.status_code != 200:
        raise RetryLater(f"status {response.status_code}", retry_after(response.headers))
    body = bytearray()
    for data in response.iter_bytes():
        body += data
        if len(body) > MAX_LISTING_BYTES:
            raise DownloadFailed(f"The hub's list of {repository} is too long.")
    return bytes(body)


def parse(body: bytes, repository: str) -> RepositoryListing:
    """The GGUF files in the hub's answer. Raises DownloadFailed if it is invalid."""
    try:
        data = json.loads(body)
        commit, listed = data["sha"], data["siblings"]
        if not _COMMIT.fullmatch(commit) or not isinstance(listed, list) or len(listed) > MAX_LISTED:
            raise ValueError
        files = [file for item in listed if (file := _listed(item)) is not None]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DownloadFailed(f"The hub's list of {repository} is not valid.") from None
    return RepositoryListing(repository, commit, tuple(sorted(files, key=lambda file: file.path)))


def _listed(item: dict[str, Any]) -> ListedFile | None:
    path = item["rfilename"]
    if not is_repository_path(path) or not is_file_name(path.rpartition("/")[2]):
        return None
    kept = item.get("lfs") or {}
    size, sha256 = kept.get("size", item.get("size")), kept.get("sha256")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= MAX_FILE_BYTES:
        return None
    return ListedFile(path, size, sha256 if isinstance(sha256, str) and SHA256.fullmatch(sha256) else "")


def cached(reference: HubReference) -> RepositoryListing | None:
    """The repository in huggingface_hub's cache, at the commit fetched last. Blocks."""
    folder = hugging_face() / f"models--{reference.repository.replace('/', '--')}"
    try:
        with (folder / "refs" / reference.revision).open("rb") as file:
            commit = file.read(100).decode("ascii").strip()
    except (OSError, ValueError):
        commit = reference.revision
    if not _COMMIT.fullmatch(commit):
        return None
    snapshot = folder / "snapshots" / commit
    there = [
        ListedFile(found.path.relative_to(snapshot).as_posix(), found.size, found.sha256) for found in gguf_in(snapshot)
    ]
    return (
        RepositoryListing(reference.repository, commit, tuple(sorted(there, key=lambda file: file.path)))
        if there
        else None
    )


# -- choosing a model


def choose(reference: HubReference, listing: RepositoryListing, endpoint: str) -> Manifest:
    """The manifest of the referenced model. Raises UnknownModel, AmbiguousModel, DownloadFailed."""
    first = _by_path(reference, listing) if reference.path else _by_quantization(reference, listing)
    files = tuple(_file(file, listing) for file in _parts(first, listing))
    if reference.sha256 and files[0].sha256 != reference.sha256:
        raise DownloadFailed(f"The hub's {listing.repository}/{first.path} has another sha256 than expected.")
    projector = _projector(reference, first, listing)
    origin = f"{listing.repository} at {endpoint}, commit {listing.commit[:7]}: {first.path}"
    return Manifest(
        reference.name,
        files,
        _file(projector, listing) if projector else None,
        origin=f"{origin}, with {projector.path}" if projector else origin,
    )


def _models(listing: RepositoryListing) -> list[ListedFile]:
    """The files that are models; of several parts the first."""
    models = []
    for file in listing.files:
        part = part_of(file.name)
        if not _is_projector(file) and "imatrix" not in file.name.casefold() and (part is None or part.number == 1):
            models.append(file)
    return models


def _is_projector(file: ListedFile) -> bool:
    return "mmproj" in file.name.casefold()


def _by_path(reference: HubReference, listing: RepositoryListing) -> ListedFile:
    found = next((file for file in listing.files if file.path == reference.path), None)
    if found is None:
        there = _models(listing)
        near = [file for file in there if file.name == reference.path.rpartition("/")[2]] or there
        raise UnknownModel(
            f"{listing.repository} has no file {reference.path}.", advice=_available([file.path for file in near])
        )
    return found


def _by_quantization(reference: HubReference, listing: RepositoryListing) -> ListedFile:
    models = _models(listing)
    by_name: dict[str, list[ListedFile]] = {}
    for file in models:
        by_name.setdefault(file.quantization, []).append(file)
    if wanted := reference.quantization:
        chosen = next((name for name in (wanted, f"UD-{wanted}") if name in by_name), None)
    else:
        chosen = next((name for name in PREFERRED_QUANTIZATIONS if name in by_name), None)
        if chosen is None and len(by_name) == 1:
            chosen = next(iter(by_name))
    if chosen is None:
        there = [name for name in by_name if name] or [file.path for file in models]
        raise UnknownModel(
            f"{listing.repository} has no model in {wanted or 'a usual quantization'}.", advice=_available(there)
        )
    found = by_name[chosen]
    if len(found) > 1:
        paths = [f"{listing.repository}/{file.path}" for file in found]
        raise AmbiguousModel(
            f"{listing.repository} has {len(paths)} different models{f' in {chosen}' if chosen else ''}.",
            advice=f"Name one file, e.g. --model {paths[0]}. Files: {_first_names(paths)}.",
            candidates=tuple(paths[:MAX_CANDIDATES]),
        )
    return found[0]


def _parts(first: ListedFile, listing: RepositoryListing) -> list[ListedFile]:
    """The file, or all parts of the model that it begins."""
    part = part_of(first.name)
    if part is None:
        return [first]
    if part.number != 1 or not 1 <= part.parts <= MAX_FILES:
        raise UnknownModel(f"{first.path} is part {part.number} of {part.parts}.", advice=f"Use {part.first} instead.")
    by_path = {file.path: file for file in listing.files}
    begin, _, end = first.path.rpartition("-00001-of-")
    paths = [f"{begin}-{number:05d}-of-{end}" for number in range(1, part.parts + 1)]
    if missing := [path for path in paths if path not in by_path]:
        raise DownloadFailed(
            f"{listing.repository} lacks {missing[0]}, a part of the model.",
            advice="Use another quantization or another repository.",
        )
    return [by_path[path] for path in paths]


def _projector(reference: HubReference, model: ListedFile, listing: RepositoryListing) -> ListedFile | None:
    """The projector: the named one, or the best one beside the model."""
    there = [file for file in listing.files if _is_projector(file) and part_of(file.name) is None]
    if reference.projector:
        found = next((file for file in listing.files if file.path == reference.projector), None)
        if found is None:
            advice = _available([file.path for file in there])
            raise UnknownModel(f"{listing.repository} has no projector {reference.projector}.", advice=advice)
        return found
    folder = model.path.rpartition("/")[0]
    near = [file for file in there if file.path.rpartition("/")[0] == folder] or there
    rank = {name: number for number, name in enumerate(PREFERRED_PROJECTORS)}
    return min(near, key=lambda file: rank.get(file.quantization, len(rank)), default=None)


def _file(file: ListedFile, listing: RepositoryListing) -> ModelFile:
    if not file.sha256:
        raise DownloadFailed(f"The hub lists no sha256 of {listing.repository}/{file.path}: so it cannot be verified.")
    source = HubSource(listing.repository, listing.commit, file.path)
    return ModelFile(file.name, file.size, file.sha256, (source,))


def _available(names: Sequence[str]) -> str:
    return f"It has {_first_names(names)}." if names else "It has no GGUF files."


def _first_names(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - MAX_CANDIDATES
    return ", ".join(listed[:MAX_CANDIDATES]) + (f" and {more} more" if more > 0 else "")
