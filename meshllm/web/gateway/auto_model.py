"""The model of requests for `auto`, and other models that a caller is told of."""

from __future__ import annotations

from urllib.parse import quote

from meshllm.core.routing import auto_choice
from meshllm.core.routing.affinity import SessionAffinity
from meshllm.core.routing.agent_choice import AgentModel
from meshllm.core.routing.auto_choice import Needs
from meshllm.core.routing.routes import NO_MESH, MeshIndex
from meshllm.core.snapshot import Purpose, Snapshot
from meshllm.web.gateway.api_request import ApiRequest, conversation_key, text_bytes
from meshllm.web.gateway.model_list import trained_context
from meshllm.web.gateway.target_table import TargetTable
from meshllm.web.gateway.upstream_errors import RequestFailed, UpstreamError
from meshllm.wire.api.errors import CONTEXT_IS_WHOLE, RAISE_CONTEXT

# The model that was picked, in responses to requests for `auto`.
MODEL_HEADER = "x-mesh-llm-model"
# Characters of text per token, of code: prose has 4.5. Too large an estimate only prefers a larger context.
_CHARACTERS_PER_TOKEN = 3
# An answer for which a context must have room, if the caller sets no limit, or a larger one.
_ANSWER_TOKENS = 1024
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
MAX_NAMED = 5


class AutoModels:
    """Picks the models of requests for `auto`: a session keeps its model as long as that suits."""

    def __init__(self, table: TargetTable) -> None:
        self._table = table
        self._sessions: SessionAffinity[str] = SessionAffinity()
        self._known: tuple[Snapshot, MeshIndex, list[AgentModel]] = (Snapshot(), NO_MESH, [])

    def pick(self, request: ApiRequest, now: float) -> str:
        """The model for `request`. Raises RequestFailed if none suits."""
        needs = needs_of(request)
        models = self._served()
        key = conversation_key(request.api, request.request, request.headers)
        kept = self._sessions.find(key, now) if key is not None else None
        for model in models:
            if model.name == kept and auto_choice.suits(model, needs) and auto_choice.holds(model, needs):
                return model.name
        chosen = auto_choice.choose(models, needs)
        if chosen is None:
            if not models and (mesh := self._table.snapshot.mesh) is not None:
                # A host may be about to start again, and this node may know of none yet.
                message = "'auto' has no model at the moment: no node of the mesh serves one. Retry."
                wait = 5 if mesh.settling else 30
                raise RequestFailed(503, "model_unavailable", message, f"retry-after: {wait}\r\n")
            raise RequestFailed(404, "model_not_found", auto_choice.none_suits(models, needs), param="model")
        if key is not None:
            self._sessions.remember(key, chosen.name, now)
        return chosen.name

    def _served(self) -> list[AgentModel]:
        """The models now: found once for each state of the core, because a mesh may have thousands."""
        snapshot, index = self._table.snapshot, self._table.index
        if self._known[0] is not snapshot or self._known[1] is not index:
            self._known = (snapshot, index, auto_choice.served_models(snapshot, index))
        return self._known[2]

    def _trained(self, model: str) -> int:
        snapshot, index = self._table.snapshot, self._table.index
        return trained_context(snapshot.model(model), index.hosts.get(model, ()))

    def with_larger_contexts(self, error: UpstreamError, request: ApiRequest) -> UpstreamError:
        """A `context_length_exceeded` error that also says which models hold the prompt, and advises no longer context
        than the model was made for."""
        details = dict(error.error)
        purpose = request.api.purpose or Purpose.GENERATE
        tokens, limit = error.number("n_prompt_tokens"), error.number("n_ctx")
        message = error.message
        if limit and 0 < self._trained(request.model) <= limit:
            message = message.replace(RAISE_CONTEXT, CONTEXT_IS_WHOLE)
        found = auto_choice.with_more_context(self._served(), purpose, tokens, limit) if limit else []
        if not found and message == error.message:
            return error
        named = ", ".join(f"{model.name} ({model.context})" for model in found[:MAX_NAMED])
        more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        details["message"] = f"{message} Models with enough context: {named}{more}." if found else message
        return UpstreamError(error.status, {**error.body, "error": details}, error.retry_after)


def model_header(model: str) -> str:
    """The header line that says what was picked; a name that is not ASCII is percent-encoded."""
    return f"{MODEL_HEADER}: {quote(model[:512], safe=' /:@+,;=()[]<>!$*|')}\r\n"


def needs_of(request: ApiRequest) -> Needs:
    """What a request needs of a model."""
    body = request.request
    limits = [value for name in _LIMITS if isinstance(value := body.get(name), int) and not isinstance(value, bool)]
    answer = min(max(0, *limits), _ANSWER_TOKENS) if limits else _ANSWER_TOKENS
    purpose = request.api.purpose or Purpose.GENERATE
    return Needs(
        purpose,
        vision=request.has_images(),
        tools=bool(body.get("tools")),
        tokens=text_bytes(body) // _CHARACTERS_PER_TOKEN + (answer if purpose is Purpose.GENERATE else 0),
    )
