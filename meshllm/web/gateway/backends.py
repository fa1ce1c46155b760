"""Backends: OpenAI-compatible servers given with `--backend`: their URLs, and their lists of models."""

from __future__ import annotations

import ipaddress
import os
from importlib import import_module
from urllib.parse import urlsplit

import orjson

from meshllm.core.routing.agent_choice import AUTO
from meshllm.errors import BadBackend
from meshllm.util.threads import in_thread

PROBE_SECONDS = 5.0
MAX_LIST_BYTES = 4 << 20
MAX_MODELS = 2000
MAX_NAME = 512


def check_url(text: str) -> str:
    """A backend's base URL, without a trailing `/v1`. Raises BadBackend with the reason.

    Credentials in the URL are refused, because other users can read command lines. Plain HTTP is allowed only to
    private networks: elsewhere, keys and prompts would cross the internet unencrypted.
    """
    advice = "Give it as http://HOST:PORT/v1 or https://HOST/v1, with ',key=VARIABLE' if it needs a key."
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")  # as in name resolution: labels of 1 to 63 letters
    except ValueError as error:
        raise BadBackend(f"{text!r} is not a URL: {error}.", advice=advice) from error
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() or not c.isprintable() for c in text):
        raise BadBackend(f"{text!r} is not a valid server URL.", advice=advice)
    if not text.isascii():
        raise BadBackend(
            f"{text!r} contains non-ASCII characters.",
            advice="Write the host in Punycode (xn--...) and percent-encode the path.",
        )
    if parts.username is not None or parts.password is not None:
        raise BadBackend("The backend URL contains credentials.", advice=advice)
    if parts.query or parts.fragment:
        raise BadBackend(f"{text!r} has a query or a fragment; a base URL must not.", advice=advice)
    if parts.scheme == "http" and not _is_private(host):
        raise BadBackend(
            f"{host} is not in a private network: http:// would send keys and prompts unencrypted.", advice=advice
        )
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _is_private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # Names without a dot and those in local domains resolve inside the network.
        return "." not in host or host.endswith((".local", ".localhost", ".lan", ".internal", ".home.arpa"))
    return address.is_private or address.is_loopback or address.is_link_local


async def list_models(url: str, key: str | None) -> tuple[str, ...]:
    """The names of a backend's models, in its order. Raises BadBackend with the reason, within PROBE_SECONDS."""
    await in_thread(lambda stop: import_module("aiohttp"), "load aiohttp")  # takes 0.2 s
    import aiohttp

    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(f"{url}/v1/models", allow_redirects=False) as response,
        ):
            body = await response.content.read(MAX_LIST_BYTES)
            while len(body) < MAX_LIST_BYTES and (more := await response.content.read(MAX_LIST_BYTES - len(body))):
                body += more
            status = response.status
    except TimeoutError as error:
        raise BadBackend(f"GET /v1/models timed out after {PROBE_SECONDS:.0f} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise BadBackend(f"connection failed: {_reason(error)}") from error
    if status in (401, 403):
        raise BadBackend(
            f"it requires an API key (status {status})", advice="Name one with ',key=VARIABLE' after the URL."
        )
    if status != 200:
        raise BadBackend(f"GET /v1/models returned status {status}")
    return parse_models(body)


def _reason(error: Exception) -> str:
    """The system's error text, without aiohttp's additions."""
    import aiohttp

    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and (cause.errno or 0) > 0:
        return os.strerror(cause.errno or 0)
    return str(cause)


def parse_models(body: bytes) -> tuple[str, ...]:
    """The names in a `GET /v1/models` response. Raises BadBackend if it is not one."""
    try:
        data = orjson.loads(body)["data"]
        # Another node's choice among its models is no model.
        names = [card["id"] for card in data[:MAX_MODELS] if (card["id"], card.get("owned_by")) != (AUTO, "mesh-llm")]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise BadBackend("GET /v1/models did not return a list of models") from error
    valid = [name for name in names if isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable()]
    return tuple(dict.fromkeys(valid))
