"""Whether all texts of one pattern match another: for two patterns, or a pattern and a format, of one string. Pure."""

from __future__ import annotations

from meshllm.wire.api.schema_patterns import Chars, Choice, Guarded, Ranges, Regex, Repeat, Sequence

# Both patterns are run at once, as automata; where that takes more, the answer is no.
MAX_STATES = 3000
MAX_STEPS = 60_000

States = frozenset[int]


class _TooLarge(Exception):
    """An automaton, or the run of both, exceeds its bound."""


class _Automaton:
    """The states of a pattern (Thompson's construction): 0 begins, `end` accepts."""

    def __init__(self, regex: Regex) -> None:
        self._free: list[list[int]] = [[]]
        self._edges: list[tuple[Ranges, int] | None] = [None]
        self.end = self._add(regex, 0)

    def _state(self) -> int:
        if len(self._free) >= MAX_STATES:
            raise _TooLarge
        self._free.append([])
        self._edges.append(None)
        return len(self._free) - 1

    def _add(self, regex: Regex, start: int) -> int:
        """Add a pattern behind `start`; returns its last state."""
        if isinstance(regex, Chars):
            end = self._state()
            begin = self._state()
            self._free[start].append(begin)
            self._edges[begin] = (regex.ranges, end)
            return end
        if isinstance(regex, Sequence):
            for part in regex.parts:
                start = self._add(part, start)
            return start
        if isinstance(regex, Choice):
            end = self._state()
            for option in regex.options:
                begin = self._state()
                self._free[start].append(begin)
                self._free[self._add(option, begin)].append(end)
            return end
        return self._repeat(regex, start) if isinstance(regex, Repeat) else start

    def _repeat(self, regex: Repeat, start: int) -> int:
        for _ in range(regex.low):
            start = self._add(regex.part, start)
        end = self._state()
        if regex.high is None:
            again = self._state()
            self._free[start].append(again)
            self._free[again].append(end)
            self._free[self._add(regex.part, again)].append(again)
            return end
        for _ in range(regex.high - regex.low):
            self._free[start].append(end)
            start = self._add(regex.part, start)
        self._free[start].append(end)
        return end

    def closure(self, states: States) -> States:
        """The states that are reached without a character."""
        found, todo = set(states), list(states)
        while todo:
            new = [state for state in self._free[todo.pop()] if state not in found]
            found.update(new)
            todo += new
        return frozenset(found)

    def after(self, states: States, code: int) -> States:
        """The states behind one character."""
        targets = {
            edge[1]
            for state in states
            if (edge := self._edges[state]) is not None and any(low <= code <= high for low, high in edge[0])
        }
        return self.closure(frozenset(targets))

    def starts(self, states: States) -> set[int]:
        """The characters at which what a state does may change."""
        edges = (edge for state in states if (edge := self._edges[state]) is not None)
        return {code for ranges, _ in edges for low, high in ranges for code in (low, high + 1)}


def included(inner: Regex, outer: Regex) -> bool:
    """Whether surely every text of `inner` is one of `outer`."""
    if isinstance(inner, Guarded):
        return False
    try:
        if not isinstance(outer, Guarded):
            return _runs(inner, outer, both=False)
        return all(_runs(inner, one, both=False) for one in (outer.regex, *outer.needed)) and all(
            _runs(inner, one, both=True) for one in outer.denied
        )
    except (_TooLarge, RecursionError):
        return False


def _runs(first: Regex, second: Regex, *, both: bool) -> bool:
    """Whether no text of `first` is outside of `second`; with `both`, whether none is inside of it."""
    inner, outer = _Automaton(first), _Automaton(second)
    start = inner.closure(frozenset((0,))), outer.closure(frozenset((0,)))
    seen, todo = {start}, [start]
    steps = 0
    while todo:
        here, there = todo.pop()
        if inner.end in here and (outer.end in there) is both:
            return False
        for code in inner.starts(here) | outer.starts(there):
            steps += 1 + (len(here) + len(there)) // 8
            if steps > MAX_STEPS:
                raise _TooLarge
            if behind := inner.after(here, code):
                pair = behind, outer.after(there, code)
                if pair not in seen:
                    seen.add(pair)
                    todo.append(pair)
    return True
