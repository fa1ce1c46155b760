"""Requests as coding agents send them, for `scripts/bench agents`: Claude Code (messages), Codex (responses), opencode
(chat). The texts are made up from a seed; the sizes and the order of the parts are those of the real agents.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_VERBS = ("read", "write", "list", "search", "move", "check", "build", "format", "fetch", "count", "merge", "split")
_NOUNS = ("file", "folder", "index", "route", "token", "parser", "buffer", "record", "branch", "session", "report")
_RULES = (
    "Before you {verb} a {noun}, {other} the {noun2} and say what you expect to find.",
    "Never {verb} the {noun} of another project; ask the user about its {noun2} instead.",
    "If the {noun} does not {verb}, {other} it once more, then report the {noun2} and stop.",
    "Keep the {noun} short: {verb} what the user asked for, and leave the {noun2} as it is.",
    "A {noun} that you {verb} twice is a sign that the {noun2} is wrong; {other} it first.",
)


class Texts:
    """Made-up texts; the same for the same seed. Sizes are in characters, four of which are about a token."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(str(seed))

    def _words(self) -> dict[str, str]:
        pick = self._random.choice
        return {"verb": pick(_VERBS), "other": pick(_VERBS), "noun": pick(_NOUNS), "noun2": pick(_NOUNS)}

    def rules(self, size: int) -> str:
        """A system prompt."""
        lines: list[str] = []
        while sum(map(len, lines)) < size:
            lines.append(f"{len(lines) + 1}. {self._random.choice(_RULES).format(**self._words())}")
        return "\n".join(lines)

    def code(self, size: int) -> str:
        """The content of a file, as a tool returns it: with numbered lines."""
        lines: list[str] = []
        while sum(map(len, lines)) < size:
            words = self._words()
            name = f"{words['verb']}_{words['noun']}"
            number = self._random.randrange(10_000)
            lines += [
                f"def {name}_{number}(self, {words['noun2']}: str) -> int:",
                f'    """{words["other"].capitalize()} the {words["noun"]} of {words["noun2"]}."""',
                f"    return self.{words['other']}({words['noun2']}, {number}) + len({words['noun2']})",
            ]
        return "\n".join(f"{number:5} {line}" for number, line in enumerate(lines, 1))

    def tools(self, size: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Names, descriptions and schemas of tools."""
        made = 0
        for number in range(64):
            if made >= size:
                return
            words = self._words()
            name = f"{words['verb']}_{words['noun']}_{number}"
            fields = {
                field_: {"type": "string", "description": self.rules(60)} for field_ in (words["noun"], words["noun2"])
            }
            schema = {"type": "object", "properties": fields, "required": [words["noun"]]}
            description = self.rules(400)
            made += len(description) + len(json.dumps(schema))
            yield name, description, schema


@dataclass(frozen=True, slots=True)
class Sizes:
    """Characters: of the system prompt, of all tools, of what a tool returns in each turn."""

    system: int
    tools: int
    result: int


class Session:
    """A session of an agent. `path`: of the API; `headers` of each request; `next_body` is the request of its next
    turn, `answered` takes in what the model said. Sessions of one agent and `seed` have the same tools and rules."""

    def __init__(self, agent: str, seed: object, number: int, sizes: Sizes) -> None:
        self.agent, self.seed, self.number, self.sizes = agent, seed, number, sizes
        self.turns: list[tuple[str, str]] = []
        texts = Texts((agent, seed))
        self._rules = texts.rules(sizes.system)
        self._tools = list(texts.tools(sizes.tools))
        self._texts = Texts((agent, seed, number))
        self._first = f"{self._texts.rules(40)} Task {number}."

    @property
    def path(self) -> str:
        return {"claude": "/v1/messages", "codex": "/v1/responses", "opencode": "/v1/chat/completions"}[self.agent]

    @property
    def headers(self) -> dict[str, str]:
        ident = f"{self.agent}-{self.seed}-{self.number}"
        name = {"claude": "x-claude-code-session-id", "codex": "session-id", "opencode": "x-session-affinity"}
        return {"content-type": "application/json", name[self.agent]: ident}

    def answered(self, said: str) -> None:
        """The model's answer to the last request; a tool is called and returns a file."""
        self.turns.append((said, self._texts.code(self.sizes.result)))

    def next_body(self, model: str, tokens: int) -> dict[str, Any]:
        """The request of the next turn, for an answer of at most `tokens` tokens."""
        make = {"claude": self._claude, "codex": self._codex, "opencode": self._opencode}[self.agent]
        return {"model": model, "stream": True, "temperature": 0, **make(tokens)}

    def _claude(self, tokens: int) -> dict[str, Any]:
        tool = self._tools[0][0]
        messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": self._first}]}]
        for number, (said, result) in enumerate(self.turns):
            ident = f"toolu_{number}"
            use = {"type": "tool_use", "id": ident, "name": tool, "input": {"path": f"file{number}.py"}}
            text = [{"type": "text", "text": said}] if said else []
            messages.append({"role": "assistant", "content": [*text, use]})
            given = {"type": "tool_result", "tool_use_id": ident, "content": result}
            messages.append({"role": "user", "content": [given]})
        # The last signs of its version are a hash of the first user message.
        header = f"x-anthropic-billing-header: cc_version=2.1.197.{hash_of(self._first)}; cc_entrypoint=cli;"
        return {
            "max_tokens": tokens,
            "system": [{"type": "text", "text": text} for text in (header, "You are an agent.", self._rules)],
            "tools": [
                {"name": name, "description": told, "input_schema": schema} for name, told, schema in self._tools
            ],
            "messages": messages,
            "metadata": {"user_id": f"user_session_{self.seed}_{self.number}"},
        }

    def _codex(self, tokens: int) -> dict[str, Any]:
        tool = self._tools[0][0]

        def message(role: str, text: str) -> dict[str, Any]:
            kind = "output_text" if role == "assistant" else "input_text"
            return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}

        items = [message("developer", self._rules[: self.sizes.system // 4]), message("user", self._first)]
        for number, (said, result) in enumerate(self.turns):
            call = {"type": "function_call", "call_id": f"call_{number}", "name": tool}
            items += [message("assistant", said)] if said else []
            items.append({**call, "arguments": json.dumps({"path": f"file{number}.py"})})
            items.append({"type": "function_call_output", "call_id": f"call_{number}", "output": result})
        return {
            "max_output_tokens": tokens,
            "instructions": self._rules,
            "input": items,
            "tools": [
                {"type": "function", "name": name, "description": told, "parameters": schema, "strict": False}
                for name, told, schema in self._tools
            ],
            "tool_choice": "auto",
            "store": False,
            "prompt_cache_key": f"codex-{self.seed}-{self.number}",
        }

    def _opencode(self, tokens: int) -> dict[str, Any]:
        tool = self._tools[0][0]
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": self._rules},
            {"role": "user", "content": self._first},
        ]
        for number, (said, result) in enumerate(self.turns):
            called = {"name": tool, "arguments": json.dumps({"path": f"file{number}.py"})}
            call = {"id": f"call_{number}", "type": "function", "function": called}
            messages.append({"role": "assistant", "content": said, "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": result})
        return {
            "max_tokens": tokens,
            "messages": messages,
            "tools": [
                {"type": "function", "function": {"name": name, "description": told, "parameters": schema}}
                for name, told, schema in self._tools
            ],
            "stream_options": {"include_usage": True},
        }


def hash_of(text: str) -> str:
    """Three hexadecimal digits that depend on all of `text`."""
    return f"{sum(number * ord(letter) for number, letter in enumerate(text, 1)) % 4096:03x}"
