"""Translates requests of Ollama's API that use a model into requests of OpenAI's. Pure.

Only the node that a caller asks translates: hosts, older nodes and backends see OpenAI's API alone. What changes the
answer is kept or refused by its name; how a model is loaded is its host's decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from meshllm.wire.api.ollama_messages import chat_messages, offered_tools, with_images
from meshllm.wire.api.ollama_options import openai_fields, unloads
from meshllm.wire.api.ollama_routes import OllamaApi
from meshllm.wire.api.refusal import invalid, unsupported
from meshllm.wire.api.routes import Api

_EFFORTS = ("low", "medium", "high")
_PATHS = {
    Api.CHAT: "/v1/chat/completions",
    Api.COMPLETIONS: "/v1/completions",
    Api.EMBEDDINGS: "/v1/embeddings",
}
MAX_MODEL_NAME = 512
# Read by the model only so that it is loaded.
_ANY_TEXT = "Hi"


class AnswerForm(Enum):
    """The shape of an answer. The LOADED ones are those of requests without a prompt, which only load the model."""

    CHAT = "chat"
    GENERATE = "generate"
    RAW = "raw"
    EMBED = "embed"
    EMBEDDING = "embedding"
    CHAT_LOADED = "chat loaded"
    GENERATE_LOADED = "generate loaded"
    EMBED_NOTHING = "embed nothing"
    EMBEDDING_NOTHING = "embedding nothing"


@dataclass(frozen=True, slots=True)
class OllamaCall:
    """A request of OpenAI's API, and how its answer is translated back. `streams`: the caller reads a stream."""

    api: Api
    body: dict[str, Any]
    form: AnswerForm
    streams: bool

    @property
    def path(self) -> str:
        """The canonical path."""
        return _PATHS[self.api]


def translate_request(api: OllamaApi, body: Mapping[str, Any], model: str) -> OllamaCall:
    """The request that `body` means, for `model`, the name that the mesh knows. RequestRefused if it cannot be kept.

    `api`: one of those that use a model. The type of `stream` was checked.
    """
    released = unloads(body.get("keep_alive"))
    if api is OllamaApi.CHAT:
        call = _chat(body, model)
    elif api is OllamaApi.GENERATE:
        call = _generate(body, model)
    else:
        call = _embed(api, body, model)
    if released and call.form in (AnswerForm.CHAT_LOADED, AnswerForm.GENERATE_LOADED):
        raise unsupported(
            "keep_alive", "'keep_alive': 0 does not unload a model here. 'mesh-llm drop MODEL' does, on its host."
        )
    return call


def _streams(body: Mapping[str, Any]) -> bool:
    return body.get("stream") is not False  # a stream is the default


def _chat(body: Mapping[str, Any], model: str) -> OllamaCall:
    messages = chat_messages(body.get("messages") or [])
    if not messages:
        return _loading(model, AnswerForm.CHAT_LOADED, body)
    chat = {"model": model, "messages": messages, **_common(body)}
    if body.get("tools"):
        chat["tools"] = offered_tools(body["tools"])
    return OllamaCall(Api.CHAT, chat, AnswerForm.CHAT, _streams(body))


def _loading(model: str, form: AnswerForm, body: Mapping[str, Any]) -> OllamaCall:
    """A request that makes a host load the model: a prompt to read, and one token, which is dropped."""
    return OllamaCall(Api.COMPLETIONS, {"model": model, "prompt": _ANY_TEXT, "max_tokens": 1}, form, _streams(body))


def _generate(body: Mapping[str, Any], model: str) -> OllamaCall:
    prompt, system = _text(body, "prompt"), _text(body, "system")
    raw = _flag(body, "raw")
    if raw and (body.get("template") or system or body.get("context")):
        raise invalid("raw", "raw mode does not support template, system, or context")
    if _text(body, "suffix"):
        message = "does not support insert: the models here continue a text at its end only"
        raise unsupported("suffix", f'"{model}" {message}')
    if body.get("template"):
        raise unsupported("template", "'template' is not supported: it is the model's own. Use 'raw' to do without it.")
    if body.get("context"):
        raise unsupported("context", "'context' is not supported: send the conversation to /api/chat.")
    if not prompt and not body.get("images"):
        return _loading(model, AnswerForm.GENERATE_LOADED, body)
    if not raw:
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": with_images(prompt, body.get("images"), "")})
        chat = {"model": model, "messages": messages, **_common(body)}
        return OllamaCall(Api.CHAT, chat, AnswerForm.GENERATE, _streams(body))
    for field in ("images", "logprobs", "top_logprobs"):
        if body.get(field):
            raise unsupported(field, f"'{field}' is not supported together with 'raw'.")
    completion = {"model": model, "prompt": prompt, **_sampling(body)}
    return OllamaCall(Api.COMPLETIONS, completion, AnswerForm.RAW, _streams(body))


def _embed(api: OllamaApi, body: Mapping[str, Any], model: str) -> OllamaCall:
    old = api is OllamaApi.EMBEDDINGS
    openai_fields(body.get("options"))
    if old:
        given: object = _text(body, "prompt")
    else:
        given = body.get("input")
        texts = given if isinstance(given, list) else [given]
        if given is not None and not all(isinstance(text, str) for text in texts):
            raise invalid("input", "'input' must be a text or a list of texts.")
        if not isinstance(body.get("truncate"), bool | None):
            raise invalid("truncate", "'truncate' must be true or false.")
    wanted: dict[str, Any] = {"model": model, "input": given or _ANY_TEXT}
    if body.get("dimensions"):
        wanted["dimensions"] = body["dimensions"]
    if given:
        form = AnswerForm.EMBEDDING if old else AnswerForm.EMBED
    else:
        form = AnswerForm.EMBEDDING_NOTHING if old else AnswerForm.EMBED_NOTHING
    return OllamaCall(Api.EMBEDDINGS, wanted, form, streams=False)


def _common(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that a chat template takes part in."""
    fields = {**_sampling(body), **_thinking(body.get("think"))}
    if _flag(body, "logprobs"):
        fields["logprobs"] = True
    if body.get("top_logprobs"):
        fields["top_logprobs"] = body["top_logprobs"]
    return fields


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """The options, the form of the answer, and whether it is a stream."""
    fields = openai_fields(body.get("options"))
    wanted = body.get("format")
    if wanted == "json":
        fields["response_format"] = {"type": "json_object"}
    elif isinstance(wanted, dict):
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    elif wanted not in (None, ""):
        raise invalid("format", "'format' must be \"json\" or a JSON schema.")
    if _streams(body):
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return fields


def _thinking(think: object) -> dict[str, Any]:
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if think in _EFFORTS:
        return {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": think}
    shown = think[:40] if isinstance(think, str) else type(think).__name__
    raise invalid("think", f'invalid think value: "{shown}" (must be "high", "medium", "low", true, or false)')


def _text(body: Mapping[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str | None):
        raise invalid(field, f"'{field}' must be a text.")
    return value or ""


def _flag(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field)
    if not isinstance(value, bool | None):
        raise invalid(field, f"'{field}' must be true or false.")
    return value is True


def model_of(body: object) -> str:
    """The model that a body names: `model`, or `name` as in older clients. RequestRefused if it names none."""
    if not isinstance(body, dict):
        raise invalid(None, "The body must be a JSON object.")
    name = body.get("model") or body.get("name")
    if name is None or name == "":
        raise invalid("model", "model is required")
    if not isinstance(name, str) or len(name) > MAX_MODEL_NAME:
        raise invalid("model", f"'model' must be a name of 1 to {MAX_MODEL_NAME} characters.")
    if not isinstance(body.get("stream"), bool | None):
        raise invalid("stream", "'stream' must be true or false.")
    return name
