"""Translates enveloped calls (see `call_envelope`) in answers of `/v1/chat/completions` back into tool calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meshllm.wire.api.call_envelope import EnvelopeReader, Piece

_MAX_CHOICES = 128


class ChatCalls:
    """The translator of one answer; `ident` is used for ids of calls."""

    def __init__(self, ident: str) -> None:
        self._ident = ident
        self._readers: dict[int, EnvelopeReader] = {}

    def event(self, event: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """A chunk, with calls in the place of text."""
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices:
            return (event,)
        kept = [new for choice in choices if isinstance(choice, dict) and (new := self._chunk(choice)) is not None]
        return ({**event, "choices": kept},) if kept or "usage" in event else ()

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole answer."""
        choices = body.get("choices")
        if not isinstance(choices, list):
            return body
        return {**body, "choices": [self._whole(choice) if isinstance(choice, dict) else choice for choice in choices]}

    def _whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        message = choice.get("message")
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return choice
        reader = EnvelopeReader()
        answer, call = self._read(reader, message["content"], choice.get("index"), last=True)
        changed = {**message, "content": answer if call is None else None}
        if call is not None:
            changed["tool_calls"] = [{key: value for key, value in call.items() if key != "index"}]
        return {**choice, "message": changed, "finish_reason": _finish(choice.get("finish_reason"), reader)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        """The choice of a chunk; None if it says nothing yet."""
        index, delta, finish = choice.get("index"), choice.get("delta"), choice.get("finish_reason")
        number = index if isinstance(index, int) and 0 <= index < _MAX_CHOICES else 0
        reader = self._readers.setdefault(number, EnvelopeReader())
        delta = dict(delta) if isinstance(delta, dict) else {}
        text = delta.pop("content", None)
        answer, call = self._read(reader, text if isinstance(text, str) else "", number, last=finish is not None)
        if answer:
            delta["content"] = answer
        elif "role" in delta:
            delta["content"] = None if call else ""
        if call is not None:
            delta["tool_calls"] = [call]
        if not delta and finish is None:
            return None
        return {**choice, "delta": delta, "finish_reason": _finish(finish, reader)}

    def _read(
        self, reader: EnvelopeReader, text: str, index: object, *, last: bool
    ) -> tuple[str, dict[str, Any] | None]:
        """The answer and the call in a piece of text, as in a delta."""
        answer, name, arguments = "", None, ""
        for piece, value in reader.feed(text):
            if piece is Piece.NAME:
                name = value
            elif piece is Piece.ARGUMENTS:
                arguments += value
            else:
                answer += value
        if last and not reader.called:
            answer += reader.rest()
        if name is None and not arguments:
            return answer, None
        function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
        call: dict[str, Any] = {"index": 0, "function": function}
        if name is not None:
            call |= {"id": f"call_{self._ident}_{index or 0}", "type": "function"}
        return answer, call


def _finish(reason: object, reader: EnvelopeReader) -> object:
    return "tool_calls" if reason == "stop" and reader.called else reason


class PlainLogprobs:
    """Keeps `top_logprobs: 0`, of which the engine makes no log-probabilities at all: asked for one, it is left out."""

    def event(self, event: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """A chunk without alternatives."""
        return (self.whole(event),)

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """An answer without alternatives."""
        choices = body.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            found = choice.get("logprobs") if isinstance(choice, dict) else None
            tokens = found.get("content") if isinstance(found, dict) else None
            for token in tokens if isinstance(tokens, list) else ():
                if isinstance(token, dict):
                    token["top_logprobs"] = []
        return body
