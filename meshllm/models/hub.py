"""Fetches files from the Hugging Face hub, or whatever HF_ENDPOINT names, with the hub's own client.

Law: `huggingface_hub` says where a file lies, what its size and digest are, and with which token and proxies to ask.
The bytes are streamed here, because its own download (2.4) neither resumes nor can be stopped. Whether the hub can be
reached is decided within a short deadline. What arrives is only a claim until its digest was checked.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from meshllm import __version__
from meshllm.errors import DownloadFailed
from meshllm.tasks import backoff

from .manifest import HubSource, ModelFile
from .store import disk_error
from .threads import Relay, Stop, in_thread

if TYPE_CHECKING:
    import httpx2

MAX_WAIT_SECONDS: Final = 60.0  # the most that a server's Retry-After is obeyed

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class HubSettings:
    """Deadlines in seconds. `endpoint` None means HF_ENDPOINT or the public hub.

    `decide_within`: until the first answer; after that the hub counts as unreachable. `stall`: silence in the middle
    of a file, after which the connection is given up and a new one goes on from there. `tries`: failures in a row
    without a single new byte, after which the source is given up.
    """

    endpoint: str | None = None
    decide_within: float = 4.0
    stall: float = 20.0
    tries: int = 5
    pause: float = 0.5


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes are, and the headers to ask with (the token only if it is the hub itself that is asked)."""

    url: str
    headers: dict[str, str]


class _Again(Exception):
    """This try failed, another may not; `after` is what the server asked us to wait, in seconds.

    `answered` is False where nobody answered at all, so that the hub may be out of reach.
    """

    def __init__(self, reason: str, after: float = 0.0, *, answered: bool = True) -> None:
        super().__init__(reason)
        self.after = after
        self.answered = answered


class Hub:
    """The hub as a source of files."""

    def __init__(self, settings: HubSettings | None = None) -> None:
        self.settings = settings or HubSettings()

    @property
    def endpoint(self) -> str:
        """The address that is asked, as the environment has it now."""
        chosen = self.settings.endpoint or os.environ.get("HF_ENDPOINT") or ""
        if not chosen:
            from huggingface_hub import constants

            chosen = constants.ENDPOINT
        return chosen.rstrip("/")

    async def probe(self, *, within: float) -> None:
        """Return if something answers at the endpoint within so many seconds. Raises DownloadFailed with the reason."""
        work = in_thread(lambda stop: _probe(self.endpoint, within), "hub-probe", leave=True)
        try:
            await asyncio.wait_for(work, within)
        except TimeoutError:
            raise DownloadFailed(f"{self.endpoint} did not answer within {within:g} s.") from None

    async def locate(self, source: HubSource, file: ModelFile, *, within: float) -> Location:
        """Ask the hub for the file within so many seconds.

        Raises DownloadFailed where it holds no such file, or other bytes, or may not be asked; `_Again` where it
        cannot be reached.
        """
        work = in_thread(lambda stop: _locate(self.endpoint, source, file, within), "hub-locate", leave=True)
        try:
            return await asyncio.wait_for(work, within + 0.5)
        except TimeoutError:
            raise _Again(f"{self.endpoint} did not answer within {within:g} s", answered=False) from None

    async def fetch(self, source: HubSource, file: ModelFile, partial: Path, report: Callable[[int], None]) -> None:
        """Complete `partial` with the file's bytes, going on from what is there; `report` hears its growing size.

        Raises DownloadFailed with what has arrived kept, or OutOfRoom.
        """
        settings, within = self.settings, self.settings.decide_within
        failures = 0
        while True:
            before = _size(partial)
            try:
                location = await self.locate(source, file, within=within)  # each time: a signed address runs out
                await self._stream(location, file, partial, report)
                return
            except _Again as reason:
                if within == settings.decide_within and not reason.answered:
                    raise DownloadFailed(f"The hub cannot be reached: {reason}.") from None
                failures = 1 if _size(partial) > before else failures + 1
                if failures >= settings.tries:
                    raise DownloadFailed(f"The hub failed {failures} times in a row: {reason}.") from None
                wait = max(reason.after, backoff(failures - 1, base=settings.pause))
            within = 2 * settings.decide_within  # it is there: now patience pays
            await asyncio.sleep(min(MAX_WAIT_SECONDS, wait))

    async def _stream(self, location: Location, file: ModelFile, partial: Path, report: Callable[[int], None]) -> None:
        stall, arrived = self.settings.stall, Relay(report)
        await in_thread(lambda stop: _stream(stop, location, file, partial, stall, arrived), "hub-stream", leave=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _locate(endpoint: str, source: HubSource, file: ModelFile, within: float) -> Location:
    """One question to the hub, by its own client, without retries (in a thread)."""
    import httpx2
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # exported by its __init__

    url = hf_hub_url(source.repository, source.path, revision=source.revision, endpoint=endpoint)
    headers = build_hf_headers(library_name="mesh-llm", library_version=__version__)
    try:
        found = get_hf_file_metadata(url, timeout=within, headers=headers, endpoint=endpoint)
    except OfflineModeIsEnabled:
        raise DownloadFailed("The hub may not be asked: HF_HUB_OFFLINE is set.") from None
    except HfHubHTTPError as error:
        _refuse(error.response, source)
        raise _Again(_words(error), _retry_after(error.response)) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        raise _Again(_words(error), answered=False) from None
    etag = (found.etag or "").lower()
    if (found.size is not None and found.size != file.size) or (_SHA256.fullmatch(etag) and etag != file.sha256):
        raise DownloadFailed(f"The hub's {source.repository}/{source.path} holds other bytes than the catalogue says.")
    asked = dict(headers)
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        asked = {key: value for key, value in asked.items() if key.lower() != "authorization"}
    return Location(found.location, asked)


def _probe(endpoint: str, within: float) -> None:
    import httpx2
    from huggingface_hub import get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        get_session().head(endpoint, timeout=within, follow_redirects=False)
    except OfflineModeIsEnabled:
        raise DownloadFailed("It may not be asked: HF_HUB_OFFLINE is set.") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        raise DownloadFailed(f"{endpoint} cannot be reached: {_words(error)}.") from None


def _refuse(response: httpx2.Response, source: HubSource) -> None:
    """Raise DownloadFailed for an answer that asking again will not change."""
    status = response.status_code
    if status in (401, 403):
        raise DownloadFailed(
            f"The hub does not give {source.repository} to everyone (it answered {status}).",
            advice="Accept the model's terms on its page, and set HF_TOKEN or run `hf auth login`.",
        )
    if status in (400, 404, 410, 451):
        raise DownloadFailed(f"The hub has no file {source.path} in {source.repository} (it answered {status}).")


def _stream(
    stop: Stop, location: Location, file: ModelFile, partial: Path, stall: float, arrived: Callable[[int], None]
) -> None:
    """One connection's worth of bytes, appended to `partial` (in a thread)."""
    import httpx2
    from huggingface_hub import get_session

    have = _size(partial)
    if have > file.size:
        with stop:
            partial.unlink(missing_ok=True)
        have = 0
    if have == file.size:
        return
    headers = {**location.headers, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    timeout = httpx2.Timeout(stall, connect=min(stall, 10.0))
    try:
        with get_session().stream(
            "GET", location.url, headers=headers, timeout=timeout, follow_redirects=True
        ) as response:
            start = _start(response, have, file)
            with stop:
                handle = partial.open("r+b" if start else "wb", buffering=0)  # closing it must write nothing more
            with handle:
                have = handle.seek(start)
                for chunk in response.iter_raw():
                    if have + len(chunk) > file.size:
                        raise DownloadFailed("The hub sent more bytes than the file has.")
                    rest = memoryview(chunk)
                    while rest:
                        with stop:
                            written = handle.write(rest)
                        rest = rest[written:]
                    have += len(chunk)
                    arrived(have)
    except httpx2.HTTPError as error:
        raise _Again(_words(error)) from None
    except OSError as error:
        raise disk_error(error, partial) from error
    if have < file.size:
        raise _Again(f"the connection ended after {have} of {file.size} bytes")


def _start(response: httpx2.Response, have: int, file: ModelFile) -> int:
    """The place in the file at which the answer's body begins. Raises `_Again` where it cannot be used."""
    status = response.status_code
    if status == 200:
        return 0  # the range was ignored, or none was asked for
    if status == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match and int(match[1]) == have and match[3] in ("*", str(file.size)):
            return have
        raise _Again("it sent another range than the one that was asked for")
    raise _Again(f"it answered {status}", _retry_after(response))


def _retry_after(response: httpx2.Response) -> float:
    value = response.headers.get("Retry-After", "").strip()
    return float(value) if value.isascii() and value.isdigit() and len(value) < 6 else 0.0


def _words(error: BaseException) -> str:
    """The first line of an error of the client, shortened."""
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return text[:200].rstrip(".")
