"""Regular expressions of JSON schemas, as the engine's grammar keeps them. Pure; bounded by the pattern's size.

The engine matches `pattern` against the characters between the quotes of the JSON text, where a quote is `\\"`, and
keeps only patterns with both anchors. So a pattern is parsed here (ECMA-262, the part that describes regular languages)
and written again over JSON text. Classes that JavaScript and Python read differently (`\\s`, `\\W`) are narrowed to
what both accept: an answer may match less than the pattern allows, never more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

# Of groups in a pattern; the engine's own bound is 100, and request_limits refuses more than 32 at the caller's node.
MAX_DEPTH = 40
# Bounds that are tried for the repetitions of a text that is too long.
_SHORTER = (1000, 500, 250, 120, 80, 60, 50, 40, 30, 25, 20, 16, 13, 10, 8, 6, 5, 4, 3, 2, 1)
# One repetition, as in the engine.
MAX_REPEAT = 2000
MAX_WRITTEN = 64 << 10
# Of matching one text here (a constant of a schema).
MAX_STEPS = 100_000
_LAST = 0x10FFFF
_BOUNDS = re.compile(r"\{[0-9]{1,6}(?:,[0-9]{0,6})?\}")

Ranges = tuple[tuple[int, int], ...]


class PatternProblem(ValueError):
    """Why a pattern cannot be kept."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character within inclusive ranges of code points."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Sequence:
    """Parts, one after another."""

    parts: tuple[Regex, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several."""

    options: tuple[Regex, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`part` from `low` to `high` times; None: without end."""

    part: Regex
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Anchor:
    """The start (`^`) or the end of the text; valid at the ends of a pattern only."""

    start: bool


@dataclass(frozen=True, slots=True)
class Guarded:
    """The texts of `regex` that match all of `needed` and none of `denied` (looking ahead at the start of a pattern).

    It has no grammar; another pattern whose texts all match can stand for it (`schema_inclusion`).
    """

    regex: Regex
    needed: tuple[Regex, ...]
    denied: tuple[Regex, ...]


Regex = Chars | Sequence | Choice | Repeat | Anchor | Guarded


def _union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], high)
        else:
            merged.append((low, high))
    return tuple(merged)


def _complement(ranges: Ranges) -> Ranges:
    found, start = [], 0
    for low, high in ranges:
        if low > start:
            found.append((start, low - 1))
        start = high + 1
    return (*found, (start, _LAST)) if start <= _LAST else tuple(found)


def _of(text: str) -> Ranges:
    return _union((ord(char), ord(char)) for char in text)


_DIGITS: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE = _of("\t\n\r ")
_LINE_ENDS = _of("\n\r\u2028\u2029")
# Blanks of JavaScript or of Python.
_ANY_SPACE = _union(
    ((0x09, 0x0D), (0x1C, 0x20), *_of("\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"), (0x2000, 0x200A))
)
# Not digits for Python, which counts those of all scripts: Latin, Greek, Cyrillic, Hebrew; kana, CJK, Yi; Hangul.
_NO_DIGITS: Ranges = ((0x00, 0x2F), (0x3A, 0x65F), (0x3040, 0xA4CF), (0xAC00, 0xD7A3))
_ASCII_NO_WORD: Ranges = ((0x00, 0x2F), (0x3A, 0x40), (0x5B, 0x5E), (0x60, 0x60), (0x7B, 0x7F))
# What a class certainly has. What it may have is the complement of its opposite's.
_NARROW: dict[str, Ranges] = {
    "d": _DIGITS,
    "D": _NO_DIGITS,
    "w": _WORD,
    "W": _ASCII_NO_WORD,
    "s": _SPACE,
    "S": _complement(_ANY_SPACE),
}
_CONTROL = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0x00}
ANY_CHAR = Chars(((0, _LAST),))
_EMPTY = Sequence(())


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0

    def parse(self) -> Regex:
        found = self._choice()
        if self._at < len(self._text):
            raise PatternProblem("a parenthesis is not opened")
        return found

    def guards(self) -> list[tuple[bool, Regex]]:
        """What is looked for ahead at the start of the text, and whether it must not be there."""
        found = []
        while self._peek("(?!") or self._peek("(?="):
            self._at += 2
            negative = self._next() == "!"
            found.append((negative, _whole(_behind_start(self._choice()))))
            if not self._take(")"):
                raise PatternProblem("a parenthesis is not closed")
        return found

    def _peek(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _take(self, text: str) -> bool:
        found = self._peek(text)
        self._at += len(text) if found else 0
        return found

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise PatternProblem("it ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _choice(self) -> Regex:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise PatternProblem("its groups are nested too deeply")
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        self._depth -= 1
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Regex:
        parts: list[Regex] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeated(self._part()))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _part(self) -> Regex:
        char = self._next()
        if char in "^$":
            return Anchor(char == "^")
        if char == ".":
            return Chars(_complement(_LINE_ENDS))
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == "\\":
            found = self._escape(in_class=False)
            return Chars(found if isinstance(found, tuple) else ((found, found),))
        if char in "*+?":
            raise PatternProblem(f"'{char}' repeats nothing")
        return Chars(((ord(char), ord(char)),))

    def _group(self) -> Regex:
        if self._take("?"):
            if self._take("<") and not (self._peek("=") or self._peek("!")):
                end = self._text.find(">", self._at)
                if end < 0:
                    raise PatternProblem("the name of a group does not end")
                self._at = end + 1
            elif not self._take(":"):
                raise PatternProblem("it looks ahead or behind, or sets flags")
        found = self._choice()
        if not self._take(")"):
            raise PatternProblem("a parenthesis is not closed")
        return found

    def _repeated(self, part: Regex) -> Regex:
        bounds = self._quantifier()
        if bounds is None:
            return part
        if isinstance(part, Anchor):
            raise PatternProblem("an anchor is repeated")
        if self._peek("*") or self._peek("+") or self._bounds_follow():
            raise PatternProblem("a repetition is repeated")
        self._take("?")  # lazy: the same texts match
        low, high = bounds
        if high is not None and high < low:
            raise PatternProblem("a repetition ends before it starts")
        if max(low, high or 0) > MAX_REPEAT:
            raise PatternProblem(f"it repeats more than {MAX_REPEAT} times")
        return Repeat(part, low, high)

    def _quantifier(self) -> tuple[int, int | None] | None:
        if self._take("*"):
            return 0, None
        if self._take("+"):
            return 1, None
        if self._take("?"):
            return 0, 1
        if not self._bounds_follow():
            return None
        end = self._text.index("}", self._at)
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        self._at = end + 1
        return int(low), (int(high) if high else None) if comma else int(low)

    def _bounds_follow(self) -> bool:
        """Whether `{2}`, `{2,}` or `{2,3}` follows; any other brace is a character."""
        if not self._peek("{"):
            return False
        low, comma, high = self._text[self._at + 1 : self._at + 16].partition("}")[0].partition(",")
        closed = "}" in self._text[self._at : self._at + 16]
        return (
            closed
            and low.isascii()
            and low.isdigit()
            and (not comma or not high or (high.isascii() and high.isdigit()))
        )

    def _class(self) -> Regex:
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            low = high = self._class_item(negated)
            if isinstance(low, tuple):
                ranges += low
                continue
            if self._peek("-") and not self._peek("-]"):
                self._at += 1
                high = self._class_item(negated)
            if not isinstance(high, int) or high < low:
                raise PatternProblem("a range of characters ends before it starts")
            ranges.append((low, high))
        return Chars(_complement(_union(ranges)) if negated else _union(ranges))

    def _class_item(self, negated: bool) -> int | Ranges:
        char = self._next()
        return self._escape(in_class=True, negated=negated) if char == "\\" else ord(char)

    def _escape(self, *, in_class: bool, negated: bool = False) -> int | Ranges:
        """The character or the set after a backslash; `negated`: the set is taken away from all."""
        char = self._next()
        if char in _NARROW:
            return _complement(_NARROW[char.swapcase()]) if negated else _NARROW[char]
        if char in _CONTROL:
            return _CONTROL[char]
        if char == "x":
            return self._hex(2)
        if char == "u":
            if self._take("{"):
                digits, _, _ = self._text[self._at : self._at + 8].partition("}")
                code = self._hex(len(digits))
                self._at += 1
                return code
            code = self._hex(4)
            if 0xD800 <= code < 0xDC00 and self._take("\\u"):
                return 0x10000 + ((code - 0xD800) << 10) + (self._hex(4) - 0xDC00)
            return code
        if char == "b" and in_class:
            return 0x08
        if char.isalnum():
            raise PatternProblem(f"'\\{char}' cannot be expressed")
        return ord(char)

    def _hex(self, digits: int) -> int:
        text = self._text[self._at : self._at + digits]
        self._at += digits
        try:
            code = int(text, 16) if len(text) == digits and text.isalnum() else -1
        except ValueError:
            code = -1
        if not 0 <= code <= _LAST:
            raise PatternProblem("an escaped character has no valid number")
        return code


def parse(pattern: str) -> Regex:
    """The texts that `pattern` matches as a whole: what may stand before and after it is part of the result."""
    if not pattern.startswith(("^(?!", "^(?=")):
        return _whole(_Parser(pattern).parse())
    parser = _Parser(pattern[1:])
    guards = parser.guards()
    found = parser.parse()
    if isinstance(found, Choice):
        raise PatternProblem("it looks ahead in one of its alternatives")
    denied = tuple(regex for negative, regex in guards if negative)
    return Guarded(_whole(_behind_start(found)), tuple(regex for negative, regex in guards if not negative), denied)


def _behind_start(regex: Regex) -> Regex:
    """`regex` at the start of the text."""
    if isinstance(regex, Choice):
        return Choice(tuple(map(_behind_start, regex.options)))
    return Sequence((Anchor(True), *(regex.parts if isinstance(regex, Sequence) else (regex,))))


def _whole(found: Regex) -> Regex:
    options = found.options if isinstance(found, Choice) else (found,)
    whole = tuple(_anchored(option) for option in options)
    return whole[0] if len(whole) == 1 else Choice(whole)


def _anchored(option: Regex) -> Regex:
    parts = list(option.parts) if isinstance(option, Sequence) else [option]
    anything = Repeat(ANY_CHAR, 0, None)
    starts = bool(parts) and parts[0] == Anchor(True)
    parts = parts[1:] if starts else [anything, *parts]
    ends = bool(parts) and parts[-1] == Anchor(False)
    parts = parts[:-1] if ends else [*parts, anything]
    found = parts[0] if len(parts) == 1 else Sequence(tuple(parts))
    if _has_anchor(found):
        raise PatternProblem("an anchor stands inside of it")
    return found


def _has_anchor(regex: Regex) -> bool:
    if isinstance(regex, Sequence | Choice):
        return any(map(_has_anchor, regex.parts if isinstance(regex, Sequence) else regex.options))
    return isinstance(regex, Anchor) or (isinstance(regex, Repeat) and _has_anchor(regex.part))


def span(regex: Regex) -> tuple[int, int | None]:
    """The least and the greatest number of characters that match; None: without end."""
    if isinstance(regex, Chars):
        return 1, 1
    if isinstance(regex, Repeat):
        low, high = span(regex.part)
        return low * regex.low, None if high is None or regex.high is None else high * regex.high
    if isinstance(regex, Sequence):
        spans = [span(part) for part in regex.parts]
        highs = [high for _, high in spans]
        return sum(low for low, _ in spans), None if None in highs else sum(high or 0 for high in highs)
    if isinstance(regex, Choice):
        spans = [span(option) for option in regex.options]
        highs = [high for _, high in spans]
        return min(low for low, _ in spans), None if None in highs else max(high or 0 for high in highs)
    return 0, 0


def within(regex: Regex, least: int, most: int | None) -> Regex | None:
    """`regex` for texts of `least` to `most` characters; None if that cannot be expressed.

    It can where the pattern's own lengths are within the bounds, or where all variation is in one repetition of
    single characters. Texts that are only too long are made shorter in every repetition.
    """
    if isinstance(regex, Guarded):
        return regex
    low, high = span(regex)
    if low >= least and (most is None or (high is not None and high <= most)):
        return regex
    return _stretched(regex, low, least, most) or (None if most is None or low < least else _shortened(regex, most))


def _shortened(regex: Regex, most: int) -> Regex | None:
    for times in _SHORTER:
        shorter = _repeated_at_most(regex, times)
        high = span(shorter)[1]
        if high is not None and high <= most:
            return shorter
    return None


def _repeated_at_most(regex: Regex, times: int) -> Regex:
    if isinstance(regex, Sequence):
        return Sequence(tuple(_repeated_at_most(part, times) for part in regex.parts))
    if isinstance(regex, Choice):
        return Choice(tuple(_repeated_at_most(option, times) for option in regex.options))
    if not isinstance(regex, Repeat):
        return regex
    high = max(regex.low, times if regex.high is None else min(times, regex.high))
    return Repeat(_repeated_at_most(regex.part, times), regex.low, high)


def _stretched(regex: Regex, low: int, least: int, most: int | None) -> Regex | None:
    if isinstance(regex, Choice):
        fitted = [within(option, least, most) for option in regex.options]
        return None if None in fitted else Choice(tuple(option for option in fitted if option is not None))
    parts = list(regex.parts) if isinstance(regex, Sequence) else [regex]
    varying = [index for index, part in enumerate(parts) if len(set(span(part))) == 2]
    if len(varying) != 1:
        return None
    part = parts[varying[0]]
    if not isinstance(part, Repeat) or span(part.part) != (1, 1):
        return None
    fixed = low - part.low
    fewest = max(part.low, least - fixed)
    ends = [end for end in (part.high, None if most is None else most - fixed) if end is not None]
    greatest = min(ends) if ends else None
    if greatest is not None and greatest < fewest:
        return None
    parts[varying[0]] = replace(part, low=fewest, high=greatest)
    return Sequence(tuple(parts))


def of_length(least: int, most: int | None) -> Regex:
    """Any text of `least` to `most` characters."""
    return Repeat(ANY_CHAR, least, most)


def matches(regex: Regex, text: str) -> bool:
    """Whether the whole text matches. Every pattern ends: PatternProblem after some 100,000 steps."""
    if isinstance(regex, Guarded):
        return (
            matches(regex.regex, text)
            and all(matches(one, text) for one in regex.needed)
            and not any(matches(one, text) for one in regex.denied)
        )
    return len(text) in _Matcher(text).ends(regex, frozenset((0,)))


class _Matcher:
    def __init__(self, text: str) -> None:
        self._text = text
        self._left = MAX_STEPS

    def ends(self, regex: Regex, starts: frozenset[int]) -> frozenset[int]:
        """Where matches that begin at one of `starts` end."""
        self._left -= 1 + len(starts)
        if self._left < 0:
            raise PatternProblem("a constant beside it takes too long to compare")
        if isinstance(regex, Chars):
            return frozenset(at + 1 for at in starts if at < len(self._text) and self._at(regex, at))
        if isinstance(regex, Sequence):
            for part in regex.parts:
                starts = self.ends(part, starts)
            return starts
        if isinstance(regex, Choice):
            return frozenset().union(*(self.ends(option, starts) for option in regex.options))
        return self._repeated(regex, starts) if isinstance(regex, Repeat) else starts

    def _at(self, chars: Chars, at: int) -> bool:
        code = ord(self._text[at])
        return any(low <= code <= high for low, high in chars.ranges)

    def _repeated(self, regex: Repeat, starts: frozenset[int]) -> frozenset[int]:
        for _ in range(regex.low):
            if not starts:
                return starts
            starts = self.ends(regex.part, starts)
        found = starts
        for _ in range(len(self._text) + 1 if regex.high is None else regex.high - regex.low):
            starts = self.ends(regex.part, starts) - found
            if not starts:
                break
            found |= starts
        return found


def write(regex: Regex) -> str:
    """The engine's pattern for a whole text; PatternProblem if no text in JSON matches, or it is too long."""
    written = _written(regex)
    if len(written) > MAX_WRITTEN:
        raise PatternProblem("it is too large")
    return f"^{written}$"


def _written(regex: Regex) -> str:
    if isinstance(regex, Chars):
        return _written_chars(regex.ranges)
    if isinstance(regex, Sequence):
        return "".join(map(_written, regex.parts))
    if isinstance(regex, Choice):
        options = [_written(option) for option in regex.options]
        filled = "|".join(option for option in options if option)
        return f"({filled}){'' if all(options) else '?'}" if filled else ""
    if not isinstance(regex, Repeat):
        ahead = isinstance(regex, Guarded)
        raise PatternProblem("it looks ahead" if ahead else "an anchor stands inside of it")
    return _written_repeat(regex)


def _written_repeat(regex: Repeat) -> str:
    inner = _written(regex.part)
    low, high = regex.low, regex.high
    if not inner or high == 0:
        return ""
    if (low, high) == (1, 1):
        return inner
    if low > MAX_REPEAT:
        rest = Repeat(regex.part, low - MAX_REPEAT, None if high is None else high - MAX_REPEAT)
        return f"({inner}){{{MAX_REPEAT}}}{_written_repeat(rest)}"
    if high is not None and high > MAX_REPEAT:
        # R(n) = a{2000} R(n - 2000) | a{0,1999}: at most two readings of one text at a time.
        more = _written_repeat(Repeat(regex.part, 0, high - MAX_REPEAT))
        return f"(({inner}){{{MAX_REPEAT}}}{more}|({inner}){{{low},{MAX_REPEAT - 1}}})"
    marks = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    mark = marks.get((low, high)) or (f"{{{low}}}" if low == high else f"{{{low},{'' if high is None else high}}}")
    return f"({inner}){mark}"


# Characters that JSON writes with a backslash and a letter.
_ESCAPES = {0x22: '"', 0x5C: "\\", 0x08: "b", 0x0C: "f", 0x0A: "n", 0x0D: "r", 0x09: "t"}
# What JSON text can hold as it is; surrogates are no characters, DEL the engine does not let through.
_RAW = _complement(_union(((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF))))


def _written_chars(ranges: Ranges) -> str:
    raw = _complement(_union((*_complement(ranges), *_complement(_RAW))))
    escaped = [code for code in _ESCAPES if any(low <= code <= high for low, high in ranges)]
    if not raw and not escaped:
        return _written_control(ranges)
    if not escaped and len(raw) == 1 and raw[0][0] == raw[0][1]:
        return _quoted(raw[0][0])
    options = []
    if raw:
        options.append("[" + "".join(_quoted(a) + (f"-{_quoted(b)}" if b > a else "") for a, b in raw) + "]")
    if escaped:
        letters = "".join(_quoted(ord(_ESCAPES[code])) for code in escaped)
        options.append(f"\\\\[{letters}]" if len(escaped) > 1 else f"\\\\{letters}")
    return options[0] if len(options) == 1 and raw else f"({'|'.join(options)})"


def _written_control(ranges: Ranges) -> str:
    """A set of control characters only, as `\\u001f`."""
    codes = [code for low, high in ranges for code in range(low, min(high, 0x1F) + 1)]
    if not codes:
        raise PatternProblem("a set of characters in it is empty")
    return f"({'|'.join(f'{chr(92) * 2}u{code:04x}' for code in codes)})"


def _quoted(code: int) -> str:
    char = chr(code)
    if code < 0x80 and char.isalnum():
        return char
    return f"\\x{code:02X}" if code <= 0xFF else f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"
