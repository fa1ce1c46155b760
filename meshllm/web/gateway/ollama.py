"""Ollama's API at the gateway: its lists, and requests for models, which go the way of OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from meshllm import __version__
from meshllm.core.routing.agent_choice import AUTO
from meshllm.core.routing.auto_choice import is_here
from meshllm.core.routing.ollama_names import ollama_name
from meshllm.core.snapshot import ModelState, Snapshot
from meshllm.web.gateway.api_request import parsed
from meshllm.web.gateway.model_list import auto_card, model_card, model_list, unknown_model_message
from meshllm.web.gateway.ollama_caller import OllamaCaller, OllamaErrors, stamp
from meshllm.web.gateway.proxy import Proxy
from meshllm.web.gateway.relay import JSON
from meshllm.web.gateway.request import ProxiedRequest
from meshllm.web.gateway.request_log import RequestTrace
from meshllm.web.gateway.target_table import TargetTable
from meshllm.web.gateway.upstream_errors import RequestFailed
from meshllm.web.http.parser import Request
from meshllm.web.http.server import CallerConnection
from meshllm.wire.api.ollama_models import NEVER, NO_FACTS, FileFacts, ps_body, show_body, tags_body, version_body
from meshllm.wire.api.ollama_request import model_of, translate_request
from meshllm.wire.api.ollama_routes import OllamaApi, OllamaRoute
from meshllm.wire.api.refusal import RequestRefused
from meshllm.wire.api.routes import Api

# The shape in which errors are made; `OllamaErrors` translates it.
_SHAPE = Api.CHAT


class OllamaEndpoint:
    """Answers requests of Ollama's API."""

    def __init__(self, proxy: Proxy, table: TargetTable) -> None:
        self._proxy = proxy
        self._table = table

    def on_request(
        self, connection: CallerConnection, request: Request, route: OllamaRoute, trace: RequestTrace, cors: str
    ) -> ProxiedRequest | None:
        """Answer `request`, or begin to. The caller has been admitted."""
        try:
            return self._answer(connection, request, route, trace, cors)
        except RequestRefused as refused:
            refusal = refused.refusal
            failed = RequestFailed.by(refusal)
        except RequestFailed as error:
            failed = error
        headers = failed.headers + cors
        self._proxy.reject(OllamaErrors(connection), _SHAPE, trace, failed.status, failed.code, failed.message, headers)
        return None

    def _answer(
        self, connection: CallerConnection, request: Request, route: OllamaRoute, trace: RequestTrace, cors: str
    ) -> ProxiedRequest | None:
        if request.method not in route.methods:
            allowed = ", ".join(route.methods)
            message = f"{request.path} accepts {allowed}, not {request.method[:20]}."
            raise RequestFailed(405, "method_not_allowed", message, f"allow: {allowed}\r\n")
        match route.api:
            case OllamaApi.VERSION:
                body: Any = version_body(__version__)
            case OllamaApi.TAGS:
                body = tags_body(self._cards(), self._facts())
            case OllamaApi.PS:
                body = ps_body(self._cards(), self._facts())
            case OllamaApi.SHOW:
                body = self._show(connection, request, trace, cors)
            case OllamaApi.PULL:
                body = self._pull(request, route)
            case OllamaApi.REFUSED:
                raise _not_here(request.path, route)
            case _:
                return self._proxied(connection, request, route, trace, cors)
        if body is not None:
            self._proxy.recorder.answered(trace, 200)
            connection.send(200, JSON, orjson.dumps(body), cors)
        return None

    def _proxied(
        self, connection: CallerConnection, request: Request, route: OllamaRoute, trace: RequestTrace, cors: str
    ) -> ProxiedRequest:
        """Start the request as one of OpenAI's API."""
        body = parsed(request.body)
        asked = model_of(body)
        try:
            call = translate_request(route.api, body, self._known_name(asked))
            request.body = orjson.dumps(call.body)
        except RequestRefused:
            raise
        except (orjson.JSONEncodeError, ValueError, RecursionError):
            raise RequestFailed(400, "too_large", "The body is nested too deeply.") from None
        caller = OllamaCaller(connection, call.form, asked, streams=call.streams, now=self._proxy.now)
        return self._proxy.start(caller, request, call.api, call.path, trace, cors=cors)

    def _pull(self, request: Request, route: OllamaRoute) -> dict[str, str]:
        """A model that the mesh has needs no download. RequestFailed for another one."""
        name = self._known_name(model_of(parsed(request.body)))
        if not (self._table.names.is_known(name) or self._table.is_auto(name)):
            raise _not_here(request.path, route)
        return {"status": "success"}

    def _show(
        self, connection: CallerConnection, request: Request, trace: RequestTrace, cors: str
    ) -> dict[str, Any] | None:
        """The facts of a model; None if there is none, which was answered."""
        asked, table = model_of(parsed(request.body)), self._table
        name = self._known_name(asked)
        if table.is_auto(name):
            card = auto_card(table.snapshot, table.index)
        else:
            card = model_card(table.snapshot, table.index, name)
        if card is None:
            now = self._proxy.now()
            message = unknown_model_message(table.snapshot, asked, table.index, now, table.names, table.aliases)
            caller = OllamaErrors(connection, asked)
            self._proxy.reject(caller, _SHAPE, trace, 404, "model_not_found", message, cors)
            return None
        return show_body(card, self._facts().get(name, NO_FACTS))

    # -- what is known of models

    def _known_name(self, asked: str) -> str:
        """The name by which the mesh knows the model that a caller means; `asked` if there is none."""
        if self._table.is_auto(asked.removesuffix(":latest")) and not is_here(asked, self._table.snapshot):
            return AUTO
        if asked not in self._table.aliases and self._table.is_exact(asked):
            return asked  # nearly always; all names are collected for the others only
        return ollama_name(asked, self._table.names, lambda name: self._facts().get(name, NO_FACTS).quantization)

    def _cards(self) -> list[dict[str, Any]]:
        table = self._table
        cards: list[dict[str, Any]] = model_list(table.snapshot, table.index, table.aliases, table.names)["data"]
        return cards

    def _facts(self) -> Mapping[str, FileFacts]:
        """What the files here say, by model."""
        snapshot = self._table.snapshot
        return {model.name: self._facts_of(model, snapshot) for model in snapshot.models}

    def _facts_of(self, model: ModelState, snapshot: Snapshot) -> FileFacts:
        expires, facts = NEVER, model.facts
        if snapshot.idle_unload is not None and model.idle_since is not None:
            expires = stamp(model.idle_since + snapshot.idle_unload - self._proxy.now())
        if facts is None:
            return FileFacts(expires=expires)
        return FileFacts(facts.quantization, facts.digest, expires)


def _not_here(path: str, route: OllamaRoute) -> RequestFailed:
    return RequestFailed(501, "not_supported", f"{path[:40]} is not supported here. {route.advice}")
