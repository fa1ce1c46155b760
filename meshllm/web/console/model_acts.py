"""The owner's acts on models of the running node: load, drop, and what there is to load or download."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from meshllm.errors import EnvironmentFailure, MeshError

if TYPE_CHECKING:
    from aiohttp import web
    from pydantic import BaseModel

    from meshllm.web.console.endpoints import ConsoleRoute, LibraryAnswer


@dataclass(frozen=True, slots=True)
class LoadBegun:
    """A model is being loaded, or is served already (`serves`); `snapshot`: the version of the status before."""

    model: str
    snapshot: int
    serves: bool


class ModelActs(Protocol):
    """What a node does with its models for its owner. Everything raises MeshError with what to do next."""

    async def load(self, text: str) -> LoadBegun:
        """Begin to serve the model that `text` means."""

    async def drop(self, text: str) -> str:
        """Stop serving the model that `text` means, once its answers have ended; returns its name."""

    async def library(self) -> LibraryAnswer:
        """The models that can be loaded or downloaded."""


def no_models() -> ModelActs:
    """Always raises EnvironmentFailure: the node serves no models of its own."""
    raise EnvironmentFailure("This node does not load models.")


class ModelHandlers:
    """Answers the endpoints of models."""

    def __init__(self, models: Callable[[], ModelActs]) -> None:
        self._models = models

    def routes(self) -> tuple[ConsoleRoute, ...]:
        """The endpoints."""
        from meshllm.web.console import endpoints

        return (
            endpoints.ConsoleRoute(endpoints.LOAD, self._load),
            endpoints.ConsoleRoute(endpoints.DROP, self._drop),
            endpoints.ConsoleRoute(endpoints.LIBRARY, self._library),
        )

    async def _library(self, request: web.Request) -> web.Response:
        from aiohttp import web

        from meshllm.web.console.responses import error_response

        try:
            found = await self._models().library()
        except MeshError as error:
            return error_response(409, error.code, str(error))
        return web.Response(text=found.model_dump_json(), content_type="application/json")

    async def _load(self, request: web.Request) -> web.Response:
        from meshllm.web.console.endpoints import LoadAnswer

        async def act(models: ModelActs, text: str) -> BaseModel:
            return LoadAnswer(**asdict(await models.load(text)))

        return await self._answer(request, act)

    async def _drop(self, request: web.Request) -> web.Response:
        from meshllm.web.console.endpoints import DropAnswer

        async def act(models: ModelActs, text: str) -> BaseModel:
            return DropAnswer(model=await models.drop(text))

        return await self._answer(request, act)

    async def _answer(
        self, request: web.Request, act: Callable[[ModelActs, str], Awaitable[BaseModel]]
    ) -> web.Response:
        from aiohttp import web
        from pydantic import ValidationError

        from meshllm.web.console.endpoints import ModelRequest
        from meshllm.web.console.responses import error_response

        try:
            text = ModelRequest.model_validate_json(await request.read(), strict=True).model
        except ValidationError:
            return error_response(400, "invalid_request", 'The body must be {"model": NAME}.')
        try:
            found = await act(self._models(), text)
        except MeshError as error:
            return error_response(409, error.code, str(error))
        return web.Response(text=found.model_dump_json(), content_type="application/json")
