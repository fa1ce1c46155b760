"""Downloads files from the Hugging Face hub, or the server that HF_ENDPOINT names.

`huggingface_hub` gives addresses, sizes, digests, tokens and proxies. The bytes are streamed here over several
connections at once, because its own download (2.4) neither resumes nor can be stopped. Content is verified elsewhere.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import getproxies

from meshllm import __version__
from meshllm.errors import DownloadFailed
from meshllm.models.library.digest_index import SHA256
from meshllm.models.library.store import disk_error
from meshllm.models.transfer.partial_file import PartialFile
from meshllm.tasks import Owner
from meshllm.util.backoff import backoff
from meshllm.util.threads import in_thread

from .destinations import Destinations
from .manifest import HubSource, ModelFile
from .stream import DownloadThread, HubBody, Location, RangeIgnored, RetryLater, error_text, retry_after

if TYPE_CHECKING:
    import httpx2

MAX_WAIT_SECONDS: Final = 60.0  # longest Retry-After that is obeyed
MAX_PAUSE_SECONDS: Final = 30.0  # the longest pause between two tries of our own
# Chunks per request: 64 MiB, some seconds of work, so that the request costs nothing against it.
PIECE_CHUNKS: Final = 16
# Another connection is opened per this many missing chunks: small files use one.
CONNECTION_CHUNKS: Final = 4
# After this many whole responses in a row to range requests, the server is taken to ignore ranges.
IGNORED_RANGES: Final = 2


@dataclass(frozen=True, slots=True)
class HubSettings:
    """Deadlines in seconds. `endpoint` None: HF_ENDPOINT or the public hub.

    `decide_within`: until the first answer, after which the hub is unreachable. `stall`: silence during a file, after
    which the connection is replaced. `tries`: failures of one connection in a row, without a new byte on any, after
    which the source fails. `connections`: the most for one file.
    """

    endpoint: str | None = None
    decide_within: float = 4.0
    stall: float = 20.0
    tries: int = 5
    pause: float = 0.5
    connections: int = 4


class Hub:
    """The hub as a source of files."""

    def __init__(self, settings: HubSettings | None = None) -> None:
        self.settings = settings or HubSettings()

    @property
    def endpoint(self) -> str:
        """The hub's address as the environment has it now."""
        chosen = self.settings.endpoint or os.environ.get("HF_ENDPOINT") or ""
        if not chosen:
            from huggingface_hub import constants

            chosen = constants.ENDPOINT
        return chosen.rstrip("/")

    @property
    def destinations(self) -> Destinations:
        """Where the hub's answers may lead."""
        proxies = (urlsplit(url if "://" in url else f"//{url}").hostname for url in getproxies().values())
        return Destinations(self.endpoint, [host for host in proxies if host])

    async def probe(self, *, within: float) -> None:
        """Return if the endpoint answers within so many seconds. Raises DownloadFailed with the reason."""
        work = in_thread(lambda stop: _probe(self.endpoint, within), "hub-probe", leave=True)
        try:
            async with asyncio.timeout(within):
                await work
        except TimeoutError:
            raise DownloadFailed(f"{self.endpoint} did not answer within {within:g} s.") from None

    async def locate(self, source: HubSource, file: ModelFile, *, within: float) -> Location:
        """Look up the address of a file, within so many seconds.

        Raises DownloadFailed if the hub has no such file, has another content, or HF_HUB_OFFLINE is set; RetryLater if
        it cannot be reached.
        """
        work = in_thread(
            lambda stop: _locate(self.endpoint, self.destinations, source, file, within), "hub-locate", leave=True
        )
        try:
            async with asyncio.timeout(within + 0.5):
                return await work
        except TimeoutError:
            raise RetryLater(f"{self.endpoint} did not answer within {within:g} s", answered=False) from None

    async def fetch(self, source: HubSource, file: ModelFile, partial: PartialFile) -> None:
        """Download the missing bytes, beside other sources; returns when the file is complete.

        Raises DownloadFailed (bytes that arrived are kept) or NotEnoughSpace.
        """
        thread = DownloadThread(self.settings.stall, self.destinations)
        fetch = _FileDownload(self, thread, source, file, partial)
        missing = -(-(partial.size - partial.arrived) // partial.chunk_bytes)
        count = max(1, min(self.settings.connections, missing // CONNECTION_CHUNKS))
        owner = Owner("hub", awaited=True)
        try:
            await fetch.find()
            running = {owner.start(fetch.connection(), f"connection {number}") for number in range(count)}
            while running and not partial.complete:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            try:
                await owner.close()
            finally:
                thread.close()


class _FileDownload:
    """The download of one file over several connections that share what they learn of the server."""

    def __init__(
        self, hub: Hub, thread: DownloadThread, source: HubSource, file: ModelFile, partial: PartialFile
    ) -> None:
        self._hub = hub
        self._thread = thread
        self._settings = hub.settings
        self._source = source
        self._file = file
        self._partial = partial
        self._name = hub.endpoint
        self._location: Location | None = None
        self._ignored = 0  # whole responses in a row to range requests
        self._bodies: dict[object, HubBody] = {}  # by connection
        self._only: object | None = None  # the only connection to a server without ranges
        self._wait_until = 0.0

    async def find(self) -> None:
        """Look up the file's address. An unreachable hub fails at once."""
        try:
            self._location = await self._hub.locate(self._source, self._file, within=self._settings.decide_within)
        except RetryLater as reason:
            if not reason.answered:
                raise DownloadFailed(f"{self._hub.endpoint} cannot be reached: {reason}.") from None
            self._wait(reason.after)

    async def connection(self) -> None:
        """Download ranges until the file is complete. Raises DownloadFailed after too many failures in a row."""
        this, failures, seen = object(), 0, self._received()
        while not self._partial.complete and self._only in (None, this):
            await asyncio.sleep(max(0.0, self._wait_until - asyncio.get_running_loop().time()))
            whole = self._only is this
            piece = self._partial.claim(self._name, 1 if whole else PIECE_CHUNKS)
            if piece is None:
                await self._partial.changed()
                continue
            self._bodies[this] = HubBody(self._partial, piece, self._name, whole=whole)
            try:
                await self._fetch(self._bodies[this])
                failures = self._ignored = 0
            except RangeIgnored:
                self._ignored += 1
                if self._ignored >= IGNORED_RANGES:
                    reading = (other for other, body in self._bodies.items() if body.from_start)
                    self._only = self._only or next(reading, this)
            except RetryLater as reason:
                self._location = None  # a signed address expires
                failures = 1 if self._received() > seen else failures + 1
                if failures >= self._settings.tries:
                    raise DownloadFailed(f"The hub failed {failures} times in a row: {reason}.") from None
                self._wait(reason.after)
                await asyncio.sleep(backoff(failures - 1, base=self._settings.pause, cap=MAX_PAUSE_SECONDS))
            finally:
                del self._bodies[this]
            seen = self._received()

    async def _fetch(self, body: HubBody) -> None:
        try:
            # The hub has answered before: a longer deadline than for the first question.
            within = 2 * self._settings.decide_within
            location = self._location or await self._hub.locate(self._source, self._file, within=within)
            self._location = location
            await self._thread.call(lambda stop, session: body.fetch(stop, session, location))
        except OSError as error:
            raise disk_error(error, self._partial.path) from error
        finally:
            body.release()

    def _wait(self, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + min(MAX_WAIT_SECONDS, seconds)
        self._wait_until = max(self._wait_until, until)

    def _received(self) -> int:
        return self._partial.by_source[self._name]


def _locate(endpoint: str, destinations: Destinations, source: HubSource, file: ModelFile, within: float) -> Location:
    """Look up a file with the hub's client, without retries (in a thread)."""
    import httpx2
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    url = hf_hub_url(source.repository, source.path, revision=source.revision, endpoint=endpoint)
    headers = request_headers()
    try:
        found = get_hf_file_metadata(url, timeout=within, headers=headers, endpoint=endpoint)
    except OfflineModeIsEnabled:
        raise DownloadFailed("The hub is not asked: HF_HUB_OFFLINE is set.") from None
    except HfHubHTTPError as error:
        raise_for_refusal(error.response, source.repository, f"file {source.path} in {source.repository}")
        raise RetryLater(error_text(error), retry_after(error.response.headers)) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        raise RetryLater(error_text(error), answered=False) from None
    etag = (found.etag or "").lower()
    if (found.size is not None and found.size != file.size) or (SHA256.fullmatch(etag) and etag != file.sha256):
        raise DownloadFailed(f"The hub's {source.repository}/{source.path} has another size or sha256 than expected.")
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
    return Location(found.location, headers, destinations)


def request_headers() -> dict[str, str]:
    """Headers of requests to the hub: user agent, and the token if there is one."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # exported by its __init__

    return dict(build_hf_headers(library_name="mesh-llm", library_version=__version__))


def _probe(endpoint: str, within: float) -> None:
    import httpx2
    from huggingface_hub import get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        get_session().head(endpoint, timeout=within, follow_redirects=False)
    except OfflineModeIsEnabled:
        raise DownloadFailed("It is not asked: HF_HUB_OFFLINE is set.") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        raise DownloadFailed(f"{endpoint} cannot be reached: {error_text(error)}.") from None


def raise_for_refusal(response: httpx2.Response, repository: str, what: str) -> None:
    """Raise DownloadFailed for a response that a retry will not change."""
    status = response.status_code
    if status in (401, 403):
        raise DownloadFailed(
            f"Access to {repository} is restricted, or the hub has no such repository (status {status}).",
            advice="Check the name; or accept the model's terms on its page, and set HF_TOKEN or run `hf auth login`.",
        )
    if status in (400, 404, 410, 451):
        raise DownloadFailed(
            f"The hub has no {what} (status {status}).",
            advice="Check the spelling; a private repository needs a token in HF_TOKEN.",
        )
