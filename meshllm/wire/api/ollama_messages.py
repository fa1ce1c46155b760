"""Messages of Ollama's `/api/chat` in the shape of OpenAI's `/v1/chat/completions`."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.refusal import invalid

_ROLES = ("system", "user", "assistant", "tool")
# The beginnings of base64 texts of image files, by which their types are known; Ollama's images have no type.
_IMAGE_TYPES = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp", "Qk": "bmp"}


def chat_messages(messages: object) -> list[dict[str, Any]]:
    """The messages; RequestRefused if they are not Ollama's."""
    if not isinstance(messages, list):
        raise invalid("messages", "'messages' must be a list of messages.")
    calls = _Calls()
    return [_message(message, f"messages[{index}]", calls) for index, message in enumerate(messages)]


class _Calls:
    """Gives calls of tools identifiers, and their results the same: in Ollama's API they may have none.

    The identifiers depend on nothing but the conversation, so that its prompt stays the same in each turn.
    """

    def __init__(self) -> None:
        self._count = 0
        # Calls without a result by a running number, which orders them: identifier and name. Their numbers by each: a
        # body may have a million calls.
        self._open: OrderedDict[int, tuple[str, str]] = OrderedDict()
        self._by_ident: dict[str, deque[int]] = {}
        self._by_name: dict[str, deque[int]] = {}

    def add(self, name: str, ident: object) -> str:
        """A call; returns its identifier."""
        self._count += 1
        made = ident if isinstance(ident, str) and ident else f"call_{self._count}"
        self._open[self._count] = (made, name)
        self._by_ident.setdefault(made, deque()).append(self._count)
        self._by_name.setdefault(name, deque()).append(self._count)
        return made

    def answer(self, ident: object, name: object) -> str:
        """The identifier of the call to which a result belongs: the named one, or the oldest without one."""
        if isinstance(ident, str) and ident:
            found = self._oldest(self._by_ident.get(ident))
            if found is None:
                return ident
        elif isinstance(name, str) and name:
            found = self._oldest(self._by_name.get(name))
        else:
            found = None if name else next(iter(self._open), None)
        if found is None:
            self._count += 1
            return f"call_{self._count}"
        return self._open.pop(found)[0]

    def _oldest(self, numbers: deque[int] | None) -> int | None:
        """The first of `numbers` whose call has no result yet."""
        while numbers:
            if (number := numbers.popleft()) in self._open:
                return number
        return None


def _message(message: object, param: str, calls: _Calls) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise invalid(param, f"'{param}' must be an object.")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{param}.role", f"'{param}.role' must be one of {', '.join(_ROLES)}.")
    content = message.get("content")
    if not isinstance(content, str | None):
        raise invalid(f"{param}.content", f"'{param}.content' must be a text.")
    new: dict[str, Any] = {"role": role, "content": with_images(content or "", message.get("images"), param)}
    if role == "tool":
        name = message.get("tool_name") or message.get("name")
        new["tool_call_id"] = calls.answer(message.get("tool_call_id"), name)
    elif role == "assistant":
        if isinstance(thinking := message.get("thinking"), str) and thinking:
            new["reasoning_content"] = thinking
        if (given := message.get("tool_calls")) is not None and given != []:
            new["tool_calls"] = _tool_calls(given, f"{param}.tool_calls", calls)
    return new


def _tool_calls(given: object, param: str, calls: _Calls) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        raise invalid(param, f"'{param}' must be a list of calls.")
    found = []
    for index, call in enumerate(given):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise invalid(f"{param}[{index}]", f"'{param}[{index}].function.name' is missing.")
        arguments = function.get("arguments")
        if isinstance(arguments, str):  # OpenAI's form, which clients mix up with this one
            text = arguments or "{}"
        elif isinstance(arguments, dict | None):
            text = strict_json.dumps(arguments or {}).decode()
        else:
            raise invalid(f"{param}[{index}]", f"'{param}[{index}].function.arguments' must be an object.")
        ident = calls.add(name, call.get("id"))
        found.append({"id": ident, "type": "function", "function": {"name": name, "arguments": text}})
    return found


def with_images(text: str, images: object, param: str) -> str | list[dict[str, Any]]:
    """`text`, or the parts of a message with the images before it, as Ollama puts them."""
    if images is None or images == []:
        return text
    where = f"{param}.images" if param else "images"
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise invalid(where, f"'{where}' must be a list of images in base64.")
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _url(image)}} for image in images]
    return [*parts, {"type": "text", "text": text}] if text else parts


def _url(image: str) -> str:
    if image.startswith("data:image/"):
        return image
    kind = next((kind for start, kind in _IMAGE_TYPES.items() if image.startswith(start)), "jpeg")
    return f"data:image/{kind};base64,{image}"


def offered_tools(tools: object) -> Sequence[Any]:
    """The tools, which have OpenAI's shape; a missing type is the only one there is."""
    if not isinstance(tools, list):
        raise invalid("tools", "'tools' must be a list of tools.")
    return [{"type": "function", **tool} if isinstance(tool, dict) else tool for tool in tools]
