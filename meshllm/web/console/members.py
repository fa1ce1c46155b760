"""The owner's acts on members: list, expel, revoke an invite, change the mesh key or the node's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web
from pydantic import BaseModel, ValidationError

from meshllm.errors import MeshError
from meshllm.web.console import endpoints
from meshllm.web.console.endpoints import ConsoleRoute
from meshllm.web.console.responses import error_response

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Members(Protocol):
    """What the node's part in its mesh does for its owner. Everything raises MeshError with what to do next."""

    @property
    def upgraded(self) -> bool:
        """Whether the mesh key comes from a shared secret."""

    def members(self) -> Sequence[DataclassInstance]:
        """All members."""

    def invites(self) -> list[dict[str, object]]:
        """The invites that were made here, with their state."""

    def revoke(self, serial: str) -> str:
        """Revoke an invite; returns its serial."""

    def expel(self, wanted: str) -> DataclassInstance:
        """Expel a member."""

    def rotate_mesh_key(self) -> None:
        """Make a new mesh key."""

    async def replace_node_key(self) -> str:
        """Give this node a new key; returns its new id. It starts again at once."""


class MemberHandlers:
    """Answers the endpoints of members and invites."""

    def __init__(self, members: Callable[[], Members]) -> None:
        self._members = members

    def routes(self) -> tuple[ConsoleRoute, ...]:
        """The endpoints."""
        return (
            ConsoleRoute(endpoints.MEMBERS, self._list),
            ConsoleRoute(endpoints.INVITES, self._invites),
            ConsoleRoute(endpoints.REVOKE, self._revoke),
            ConsoleRoute(endpoints.EXPEL, self._expel),
            ConsoleRoute(endpoints.ROTATE, self._rotate),
            ConsoleRoute(endpoints.ROTATE_NODE, self._rotate_node),
        )

    async def _list(self, request: web.Request) -> web.Response:
        async def act(members: Members, _: Any) -> BaseModel:
            rows = [endpoints.MemberFacts(**asdict(row)) for row in members.members()]
            return endpoints.MembersAnswer(members=rows, upgraded=members.upgraded)

        return await self._answer(request, None, act)

    async def _invites(self, request: web.Request) -> web.Response:
        async def act(members: Members, _: Any) -> BaseModel:
            return endpoints.InvitesAnswer.model_validate({"invites": members.invites()})

        return await self._answer(request, None, act)

    async def _revoke(self, request: web.Request) -> web.Response:
        async def act(members: Members, body: endpoints.RevokeRequest) -> BaseModel:
            return endpoints.RevokeAnswer(serial=members.revoke(body.serial))

        return await self._answer(request, endpoints.RevokeRequest, act)

    async def _expel(self, request: web.Request) -> web.Response:
        async def act(members: Members, body: endpoints.ExpelRequest) -> BaseModel:
            return endpoints.ExpelAnswer(**asdict(members.expel(body.node)))

        return await self._answer(request, endpoints.ExpelRequest, act)

    async def _rotate(self, request: web.Request) -> web.Response:
        async def act(members: Members, _: Any) -> BaseModel:
            members.rotate_mesh_key()
            return endpoints.RotateAnswer(rotated=True)

        return await self._answer(request, None, act)

    async def _rotate_node(self, request: web.Request) -> web.Response:
        async def act(members: Members, _: Any) -> BaseModel:
            return endpoints.NodeKeyAnswer(node=await members.replace_node_key())

        return await self._answer(request, None, act)

    async def _answer(
        self, request: web.Request, body: type[BaseModel] | None, act: Callable[[Members, Any], Awaitable[BaseModel]]
    ) -> web.Response:
        try:
            wanted = body.model_validate_json(await request.read(), strict=True) if body is not None else None
        except ValidationError:
            return error_response(400, "invalid_request", "The body has other fields than it must have.")
        try:
            found = await act(self._members(), wanted)
        except MeshError as error:
            return error_response(409, error.code, str(error))
        return web.Response(text=found.model_dump_json(), content_type="application/json")
