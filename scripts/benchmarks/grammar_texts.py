"""Random texts of a GBNF grammar, as the engine writes it for a schema: what a model could answer, without a model."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_RULE = re.compile(r"\n(?=[A-Za-z0-9-]+ ::= )")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_CONTROL = {"n": 10, "r": 13, "t": 9}
_ENDLESS = 10**9
# Characters that break naive grammars, tried where a class allows them.
_TRIED = [*map(ord, 'aZ0 "\\\n\t{}[],:.-_é漢'), 0x1F600, 0x7F, 0x2028]


@dataclass(frozen=True)
class Literal:
    """A fixed text."""

    text: str


@dataclass(frozen=True)
class Class:
    """One character of a class."""

    negated: bool
    ranges: tuple[tuple[int, int], ...]

    def has(self, code: int) -> bool:
        """Whether the class has a character."""
        return any(low <= code <= high for low, high in self.ranges) is not self.negated


@dataclass(frozen=True)
class Reference:
    """Another rule."""

    name: str


@dataclass(frozen=True)
class Repetition:
    """A part several times; `high` None: without end."""

    part: Node
    low: int
    high: int | None


@dataclass(frozen=True)
class Alternatives:
    """One of several sequences."""

    options: tuple[tuple[Node, ...], ...]


Node = Literal | Class | Reference | Repetition | Alternatives


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> Alternatives:
        found = self._alternatives()
        if self._at != len(self._text):
            raise ValueError(f"not understood: {self._text[self._at : self._at + 60]}")
        return found

    def _ahead(self) -> str:
        while self._at < len(self._text) and self._text[self._at] in " \t\n":
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _alternatives(self) -> Alternatives:
        options = [self._sequence()]
        while self._ahead() == "|":
            self._at += 1
            options.append(self._sequence())
        return Alternatives(tuple(options))

    def _sequence(self) -> tuple[Node, ...]:
        parts: list[Node] = []
        while self._ahead() not in ("", "|", ")"):
            part = self._part()
            while (bounds := self._bounds()) is not None:
                part = Repetition(part, *bounds)
            parts.append(part)
        return tuple(parts)

    def _part(self) -> Node:
        sign = self._text[self._at]
        if sign == '"':
            self._at += 1
            codes = []
            while self._text[self._at] != '"':
                codes.append(self._char())
            self._at += 1
            return Literal("".join(map(chr, codes)))
        if sign == "[":
            return self._class()
        if sign == "(":
            self._at += 1
            found = self._alternatives()
            if self._ahead() != ")":
                raise ValueError("a group is not closed")
            self._at += 1
            return found
        name = _NAME.match(self._text, self._at)
        if name is None:
            raise ValueError(f"not understood: {self._text[self._at : self._at + 60]}")
        self._at = name.end()
        return Reference(name[0])

    def _class(self) -> Class:
        self._at += 1
        negated = self._text[self._at] == "^"
        self._at += negated
        ranges = []
        while self._text[self._at] != "]":
            low = high = self._char()
            if self._text[self._at] == "-" and self._text[self._at + 1] != "]":
                self._at += 1
                high = self._char()
            ranges.append((low, high))
        self._at += 1
        return Class(negated, tuple(ranges))

    def _char(self) -> int:
        sign = self._text[self._at]
        if sign != "\\":
            self._at += 1
            return ord(sign)
        escaped = self._text[self._at + 1]
        digits = _HEX_DIGITS.get(escaped, 0)
        start = self._at + 2
        self._at = start + digits
        return int(self._text[start : self._at], 16) if digits else _CONTROL.get(escaped, ord(escaped))

    def _bounds(self) -> tuple[int, int | None] | None:
        sign = self._ahead()
        marks: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if sign in marks:
            self._at += 1
            return marks[sign]
        if sign != "{":
            return None
        end = self._text.index("}", self._at)
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        self._at = end + 1
        return int(low), int(low) if not comma else int(high) if high.strip() else None


class Grammar:
    """A grammar whose start is `root`."""

    def __init__(self, text: str) -> None:
        rules = (line.partition(" ::= ") for line in _RULE.split(text.strip()))
        self._rules = {name: _Parser(body).parse() for name, _, body in rules}
        self._shortest = dict.fromkeys(self._rules, _ENDLESS)
        changed = True
        while changed:
            changed = False
            for name, rule in self._rules.items():
                if (length := self._length(rule)) < self._shortest[name]:
                    self._shortest[name], changed = length, True

    def _length(self, node: Node) -> int:
        """The length of the shortest text, and the depth of its rules."""
        if isinstance(node, Literal):
            return len(node.text)
        if isinstance(node, Class):
            return 1
        if isinstance(node, Reference):
            return min(_ENDLESS, self._shortest[node.name] + 1)
        if isinstance(node, Repetition):
            return 0 if node.low == 0 else min(_ENDLESS, self._length(node.part) * node.low)
        return min(min(_ENDLESS, sum(map(self._length, option))) for option in node.options)

    def text(self, rng: random.Random, size: int) -> str:
        """A random text; after `size` characters the shortest way to an end is taken."""
        return _Sampling(self, rng, size).text()

    def rule(self, name: str) -> Alternatives:
        """A rule by name."""
        return self._rules[name]

    def shortest(self, options: tuple[tuple[Node, ...], ...]) -> list[tuple[Node, ...]]:
        """The options with the shortest texts."""
        lengths = [sum(map(self._length, option)) for option in options]
        return [option for option, length in zip(options, lengths, strict=True) if length == min(lengths)]


class _Sampling:
    def __init__(self, grammar: Grammar, rng: random.Random, size: int) -> None:
        self._grammar = grammar
        self._rng = rng
        self._left = size
        self._found: list[str] = []

    def text(self) -> str:
        self._add(Reference("root"))
        return "".join(self._found)

    def _add(self, node: Node) -> None:
        if isinstance(node, Literal):
            self._found.append(node.text)
            self._left -= 1
        elif isinstance(node, Class):
            self._found.append(chr(self._code(node)))
            self._left -= 1
        elif isinstance(node, Reference):
            if node.name != "space" or self._rng.random() < 0.2:
                self._add(self._grammar.rule(node.name))
        elif isinstance(node, Repetition):
            for _ in range(self._times(node)):
                self._add(node.part)
        else:
            options = node.options if self._left > 0 else self._grammar.shortest(node.options)
            for part in self._rng.choice(options):
                self._add(part)

    def _times(self, node: Repetition) -> int:
        if self._left <= 0:
            return node.low
        most = node.low + 6 if node.high is None else node.high
        times = self._rng.choice([node.low, node.low + 1, node.low + self._rng.randint(0, 6), min(most, 3000)])
        return min(times, most)

    def _code(self, node: Class) -> int:
        codes = [*_TRIED, self._rng.randint(32, 126)]
        for low, high in node.ranges:
            codes += [low - 1, low, self._rng.randint(low, high), high, high + 1]
        allowed = [code for code in codes if 0 <= code <= 0x10FFFF and not 0xD800 <= code < 0xE000 and node.has(code)]
        return self._rng.choice(allowed)
