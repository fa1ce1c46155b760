"""An API request: its body, parsed and bounded; what is sent upstream for it; the repair of its response. Pure."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from meshllm.core.routing.routes import ENGINE, TargetKind
from meshllm.core.serving.vector_traits import UNKNOWN_VECTORS, VectorTraits
from meshllm.web.gateway.crashed_requests import digest_of
from meshllm.web.gateway.upstream_errors import RequestFailed
from meshllm.web.http.client import UpstreamPool
from meshllm.web.http.parser import Request
from meshllm.wire.api.chat_stream import with_own_id
from meshllm.wire.api.conversation import ANY_TEMPLATE, TemplateTraits
from meshllm.wire.api.engine_request import prepare
from meshllm.wire.api.images import PICTURE_WORDS, shows_pictures
from meshllm.wire.api.json_size import MAX_GUEST_VALUES, MAX_VALUES, has_too_many_values
from meshllm.wire.api.ollama_routes import find_ollama_route
from meshllm.wire.api.prepared import Prepared
from meshllm.wire.api.refusal import Refusal, RequestRefused
from meshllm.wire.api.request_limits import problem_of_constraints, tasks_of, too_many_tasks, without_owner_fields
from meshllm.wire.api.response_translation import WRONG_SHAPE, MakeTranslator, TranslatedStream, Translator
from meshllm.wire.api.routes import Api, find_route, model_in_path
from meshllm.wire.api.several_choices import assembled, events_in
from meshllm.wire.api.stream_repair import StreamRepair, repair_response, stream_repair

# The only headers of the caller that are sent upstream: never its keys, cookies or hop-by-hop headers.
FORWARDED_HEADERS = frozenset((b"anthropic-version", b"anthropic-beta"))
MAX_MODEL_NAME = 512
OLLAMA = "ollama"  # the API in logs and metrics
_REPAIRED = (Api.RESPONSES, Api.MESSAGES)  # whole responses of these; see `routes.ENGINE`
# Names the trust domain of a request to the engine, which reuses cached prompts only within it (patch 14).
SALT_HEADER = "x-prompt-cache-salt"

# Session headers of agents (Codex, Claude Code, OpenCode, goose) and common ones.
SESSION_HEADERS = (
    b"x-session-id",
    b"session-id",
    b"session_id",
    b"conversation_id",
    b"x-claude-code-session-id",
    b"x-session-affinity",
    b"x-opencode-session",
    b"agent-session-id",
)
SESSION_FIELDS = ("prompt_cache_key", "session_id")
# Before the session's identifier in Claude Code's `metadata.user_id`; newer versions write JSON there.
_SESSION_PART = "_session_"
MAX_SESSION_BYTES = 512
_MAX_USER = 4096
# The hashed beginning of a conversation: two that agree in it share most of a host's prompt cache.
PREFIX_BYTES = 16 << 10
# A plain prompt has no turns: it grows at its end, and only its beginning stays the same.
PROMPT_PREFIX_BYTES = 1024
# Fields that are not text: no tokens of the prompt, or far fewer than bytes.
_NOT_TEXT = frozenset(("image_url", "input_audio", "file", "file_data", "source", "data", "url", "encrypted_content"))
_MAX_PARTS = 20_000


@dataclass(slots=True)
class WholeResponse:
    """A response that is not a stream, while it arrives. `retry_after` in seconds, 0 if the target names none."""

    status: int = 0
    is_json: bool = False
    retry_after: int = 0
    size: int = 0
    _parts: list[bytes] = field(default_factory=list)

    def add(self, data: bytes) -> None:
        """Append more of the body."""
        self._parts.append(data)
        self.size += len(data)

    @property
    def body(self) -> bytes:
        """The body received so far."""
        return b"".join(self._parts)


@dataclass(slots=True)  # not frozen: that costs every request some microseconds
class ApiRequest:
    """`path` is the canonical path; `request` is `body`, parsed; `headers` are the caller's, with lower-case names.

    `tasks`: how many tasks the engine makes of it. `salt`: the trust domain of its caller, whose cached prompts it may
    reuse; empty: the owner's. Not changed once made, but for the name of its model (`rename`) and what an engine of
    this node gets (`prepare`).
    """

    api: Api
    path: str
    request: Mapping[str, Any]
    body: bytes
    headers: Mapping[bytes, bytes]
    request_id: str = ""
    tasks: int = 1
    salt: str = ""
    _prepared: Prepared | None = None
    _prepared_body: bytes = b""
    _prepared_for: TemplateTraits = ANY_TEMPLATE

    def refusal(self, traits: TemplateTraits = ANY_TEMPLATE, vectors: VectorTraits = UNKNOWN_VECTORS) -> Refusal | None:
        """Why an engine of this node, with such a chat template, or such vectors, cannot keep what the caller asks for.

        Nothing is encoded: a request that waits for a slot takes no more memory than its body.
        """
        if self._prepared is not None and self._prepared_for == traits:
            return None
        self._prepared, self._prepared_body = None, b""
        prepared = prepare(self.api, self.request, traits, vectors)
        if isinstance(prepared, Refusal):
            return prepared
        self._prepared, self._prepared_for = prepared, traits
        return None

    def prepare(self, traits: TemplateTraits = ANY_TEMPLATE, vectors: VectorTraits = UNKNOWN_VECTORS) -> Refusal | None:
        """Prepare the request for an engine of this node; the reason if it cannot keep what the caller asks for."""
        if (refusal := self.refusal(traits, vectors)) is not None:
            return refusal
        if not self._prepared_body and self._prepared is not None and self._prepared.body is not None:
            try:
                self._prepared_body = _encode(self._prepared.body)
            except (ValueError, RecursionError):
                return Refusal(None, "The body is nested too deeply.", "too_large")
        return None

    def rename(self, model: str) -> None:
        """Ask for `model`, by the name that its hosts know."""
        self.request = {**self.request, "model": model}
        self.body = _encode(self.request)

    @property
    def digest(self) -> bytes:
        """What the request is remembered by if an engine dies of it."""
        return digest_of(self.body)

    @property
    def model(self) -> str:
        """The requested model."""
        return str(self.request["model"])

    @property
    def streams(self) -> bool:
        """Whether the caller wants a stream."""
        return self.request.get("stream") is True and self.api.can_stream

    @property
    def estimated_tokens(self) -> int:
        """A rough estimate of the prompt's length in tokens."""
        return len(self.body) // 4

    def has_images(self) -> bool:
        """Whether the request holds images: a scan of the body, and a full check only where the scan finds any."""
        return any(word in self.body for word in PICTURE_WORDS) and shows_pictures(self.request)

    def wire(self, pool: UpstreamPool, key: str | None) -> bytes:
        """The whole HTTP request for a target; `key`: the bearer token it requires."""
        address, path, body = pool.address, self.path, self.body
        if pool.target.kind is ENGINE and (prepared := self._prepared) is not None:
            path, body = prepared.path or path, self._prepared_body or body
        head = (
            f"POST {address.prefix}{path} HTTP/1.1\r\nhost: {address.authority}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {self.request_id}\r\n"
        )
        if not FORWARDED_HEADERS.isdisjoint(self.headers):
            forwarded = sorted(FORWARDED_HEADERS & self.headers.keys())
            head += "".join(f"{name.decode()}: {self.headers[name].decode('latin-1')}\r\n" for name in forwarded)
        if self.salt and pool.target.kind is ENGINE:
            head += f"{SALT_HEADER}: {self.salt}\r\n"
        if key is not None:
            head += f"authorization: Bearer {key}\r\n"
        return b"%b\r\n%b" % (head.encode("latin-1"), body)

    def stream_repair(self, now: int, kind: TargetKind | None, *, split: bool) -> StreamRepair:
        """The repair of the response stream of a target of this `kind`.

        `now` in seconds since the epoch, `split` as in `TargetOffer`.
        """
        defaults = self._defaults(now)
        repair = stream_repair(self.api, **defaults, shared=split, request_id=self.request_id)
        if (make := self._translator(kind)) is not None:
            return TranslatedStream(make(defaults["ident"]), repair)
        return repair

    def whole_response(
        self, body: bytes, kind: TargetKind | None, *, is_json: bool, wall: Callable[[], int]
    ) -> bytes | Refusal | None:
        """The response body to forward; None if it is not JSON or too large. Responses of two APIs are repaired.

        `kind`: of the target; `wall`: the time in seconds since the epoch. A Refusal, if only the response shows that
        the request cannot be kept.
        """
        make = self._translator(kind)
        if make is not None and self._prepared is not None and self._prepared.streamed and not is_json:
            return _assembled(self.api, make(secrets.token_hex(12)), body)
        if is_json and make is None and self.api not in _REPAIRED:
            return with_own_id(self.api, body) or None
        if has_too_many_values(body):
            return None
        try:
            response = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(response, dict) or (make is None and self.api not in _REPAIRED):
            return body
        try:
            defaults = self._defaults(wall())
            if make is not None:
                response = _translated(make(defaults["ident"]), response)
                if response is None:
                    return None
            return with_own_id(self.api, orjson.dumps(repair_response(self.api, response, **defaults)))
        except RequestRefused as refused:
            return refused.refusal
        except (orjson.JSONEncodeError, RecursionError):
            return body  # nested more deeply, or with larger numbers, than orjson can write

    def _translator(self, kind: TargetKind | None) -> MakeTranslator | None:
        return self._prepared.translator if kind is ENGINE and self._prepared is not None else None

    def _defaults(self, now: int) -> dict[str, Any]:
        """The values of fields that the target left out."""
        return {"model": self.model, "ident": secrets.token_hex(12), "created": now, "request": self.request}


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
        return json.dumps(body, separators=(",", ":")).encode()


def _assembled(api: Api, translator: Translator, stream: bytes) -> bytes | Refusal | None:
    """The whole answer that a stream makes, or the error in it; None if it is neither."""
    try:
        events = (new for event in events_in(stream) for new in translator.event(event))
        return with_own_id(api, orjson.dumps(assembled(events)))
    except RequestRefused as refused:
        return refused.refusal
    except WRONG_SHAPE:
        return None


def _translated(translator: Translator, response: dict[str, Any]) -> dict[str, Any] | None:
    """The response translated; None if it is not of its API."""
    try:
        return translator.whole(response)
    except RequestRefused:
        raise
    except WRONG_SHAPE:
        return None


def api_of(path: str) -> Api:
    """The API whose error shape suits a path, known or not."""
    route = find_route(path)
    if route is not None:
        return route.api
    return Api.MESSAGES if path.startswith("/v1/messages") else Api.CHAT


def api_label(path: str) -> str:
    """The API of a path for logs and metrics; "other" if it belongs to none."""
    route = find_route(path)
    if route is not None:
        return route.api._value_
    if find_ollama_route(path) is not None:
        return OLLAMA
    return Api.MODELS.value if model_in_path(path) is not None else "other"


def understand(
    api: Api,
    path: str,
    http: Request,
    request_id: str,
    *,
    guest: str = "",
    known_models: Callable[[], str] | None = None,
) -> ApiRequest:
    """The request for a model in `http`. Raises RequestFailed if it is none, or asks too much of an engine.

    `path`: the canonical one. `guest`: the node id of a peer that is a guest, whose requests have a trust domain of
    their own. `known_models`: a sentence to append where the body names no model.
    """
    content = http.body
    body = parsed(content, MAX_GUEST_VALUES if guest else MAX_VALUES)
    if (problem := problem_of(body)) is not None:
        parameter, message = problem
        missing = parameter == "model" and body.get("model") in (None, "")
        more = known_models() if missing and known_models is not None else ""
        raise RequestFailed(400, "invalid_parameter", message + more, param=parameter)
    if (problem := problem_of_constraints(api, body)) is not None:
        parameter, message = problem
        raise RequestFailed(400, "too_large", message, param=parameter)
    tasks = tasks_of(api, body)
    if tasks > 1 and (message := too_many_tasks(api, tasks, guest=bool(guest))):
        raise RequestFailed(400, "too_many_prompts", message)
    if guest and (stripped := without_owner_fields(body)) is not None:
        body = stripped
        try:
            content = orjson.dumps(stripped)
        except orjson.JSONEncodeError:
            raise RequestFailed(400, "too_large", "The body is nested too deeply.") from None
    return ApiRequest(api, path, body, content, http.headers, request_id, tasks, guest)


def parsed(content: bytes, limit: int = MAX_VALUES) -> Any:
    """The JSON value in a body. Raises RequestFailed if it is none, or has more than `limit` values."""
    if has_too_many_values(content, limit):
        raise RequestFailed(400, "too_large", "The body has too many values: send fewer inputs in one request.")
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise RequestFailed(400, "invalid_json", _not_json(content, error)) from None


def _not_json(content: bytes, error: ValueError) -> str:
    """Why a body is not JSON."""
    if not content:
        return "The body is empty: send JSON."
    try:
        content.decode()
    except UnicodeDecodeError as wrong:
        byte = content[wrong.start]
        return f"The body is not UTF-8: byte {wrong.start} is 0x{byte:02x}. Send JSON encoded as UTF-8."
    return f"The body is not valid JSON: {error}."


def problem_of(body: object) -> tuple[str | None, str] | None:
    """Why a body is not a request for a model: the parameter at fault, if any, and a message; None if it is one."""
    if not isinstance(body, dict):
        return None, "The body must be a JSON object."
    model = body.get("model")
    if model is None:
        return "model", "The parameter 'model' is missing."
    if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_NAME:
        return "model", f"The parameter 'model' must be a name of 1 to {MAX_MODEL_NAME} characters."
    stream = body.get("stream")
    if stream is not None and stream is not True and stream is not False:
        return "stream", "The parameter 'stream' must be true or false."
    return None


# -- facts for routing


def conversation_key(api: Api, request: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bytes | None:
    """A hash that is the same for all requests of a conversation; None if the body does not identify one.

    A session counts by its identifier alone, because an agent names the same one in a header and in the body.
    Computed from the session named by the caller, else from the messages before the first answer (system and user).
    """
    digest = hashlib.blake2b(str(request.get("model")).encode("utf-8", "replace"), digest_size=16)
    named = _session(request, headers)
    if named is not None:
        digest.update(b"\0session\0" + named)
        return digest.digest()
    if not api.can_stream:
        return None  # embeddings and rerank requests have no next turn
    left = PREFIX_BYTES
    digest.update(b"\0prefix\0")
    for text in _beginning(request):
        piece = text[:left].encode("utf-8", "replace")[:left]
        digest.update(piece + b"\0")
        left -= len(piece)
        if left <= 0:
            break
    return digest.digest() if left < PREFIX_BYTES else None


def _session(request: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bytes | None:
    for name in SESSION_FIELDS:
        if isinstance(value := request.get(name), str) and value:
            return value[:MAX_SESSION_BYTES].encode("utf-8", "replace")
    for header in SESSION_HEADERS:
        if found := headers.get(header):
            return found[:MAX_SESSION_BYTES]
    metadata = request.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    # The user, if that is all that is named. OpenAI's field served this purpose before `prompt_cache_key`.
    named = _session_of(user) if isinstance(user, str) and user else request.get("user")
    return named[:MAX_SESSION_BYTES].encode("utf-8", "replace") if isinstance(named, str) and named else None


def _session_of(user: str) -> str:
    """The session in `metadata.user_id`, else the whole of it."""
    _, found, session = user.rpartition(_SESSION_PART)
    if found and session:
        return session
    if user.startswith("{") and len(user) <= _MAX_USER:
        try:
            written = orjson.loads(user)
        except orjson.JSONDecodeError:
            return user
        named = written.get("session_id") if isinstance(written, dict) else None
        if isinstance(named, str) and named:
            return named
    return user


def _beginning(request: Mapping[str, Any]) -> Iterator[str]:
    """The texts before the first assistant message, in order."""
    for name in ("system", "instructions"):
        yield from texts(request.get(name))
    messages = request.get("messages")
    if messages is None:
        messages = request.get("input")
    if isinstance(messages, list):
        for message in messages[:64]:
            role = message.get("role") if isinstance(message, dict) else None
            if role == "assistant":
                return
            yield from texts(message)
            if role == "user":
                return
        return
    prompt = messages if messages is not None else request.get("prompt")
    for text in texts(prompt):
        yield text[:PROMPT_PREFIX_BYTES]
        return


def texts(value: object) -> Iterator[str]:
    """All text strings in a part of a body, in order; at most `_MAX_PARTS` parts are visited."""
    todo, seen = [value], 0
    while todo and seen < _MAX_PARTS:
        seen += 1
        part = todo.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, list):
            todo.extend(reversed(part[:_MAX_PARTS]))
        elif isinstance(part, dict):
            todo.extend(item for key, item in reversed(part.items()) if key not in _NOT_TEXT)


def text_bytes(request: Mapping[str, Any]) -> int:
    """A lower bound of the prompt's text in characters, without images."""
    fields = ("system", "instructions", "messages", "input", "prompt", "tools", "query", "documents")
    return sum(len(text) for field in fields for text in texts(request.get(field)))
