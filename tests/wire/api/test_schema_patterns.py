"""Patterns of schemas, written over JSON text for the engine."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshllm.wire.api import schema_formats
from meshllm.wire.api.schema_inclusion import included
from meshllm.wire.api.schema_patterns import PatternProblem, matches, of_length, parse, span, within, write

ANY = r"([\x20-\x21\x23-\x5B\x5D-\x7E\x80-\uD7FF\uE000-\U0010FFFF]|\\[\x22\x5Cbfnrt])"


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        (r"^\d{3}-\d$", r"^([0-9]){3}\x2D[0-9]$"),
        ("^a.c$", r"^a([\x20-\x21\x23-\x5B\x5D-\x7E\x80-\u2027\u202A-\uD7FF\uE000-\U0010FFFF]|\\[\x22\x5Cbft])c$"),
        ("b", f"^({ANY})*b({ANY})*$"),
        ("^b", f"^b({ANY})*$"),
        ("^a|b$", f"^(a({ANY})*|({ANY})*b)$"),
        ('^"$', r"^(\\\x22)$"),
        ('^["a]$', r"^([a]|\\\x22)$"),
        ("^\\\\$", r"^(\\\x5C)$"),
        ("^\\u00e9\\u{1F600}\\ud83d\\ude00$", r"^\xE9\U0001F600\U0001F600$"),
        ("^(a|)$", "^(a)?$"),
        ("^(?<year>[0-9])(?:x)??$", "^[0-9](x)?$"),
        ("^a{2,}b{0}c{1}$", "^(a){2,}c$"),
        ("^a\\.*$", r"^a(\x2E)*$"),
        ("^[^a]$", r"^([\x20-\x21\x23-\x5B\x5D-\x60b-\x7E\x80-\uD7FF\uE000-\U0010FFFF]|\\[\x22\x5Cbfnrt])$"),
        ("^[\\w.-]$", r"^[\x2D-\x2E0-9A-Z\x5Fa-z]$"),
        ("^\\x01$", r"^(\\u0001)$"),
        ("^a{x$", r"^a\x7Bx$"),
        ("^$", "^$"),
    ],
)
def test_pattern_is_written_over_json_text(pattern: str, written: str) -> None:
    assert write(parse(pattern)) == written


@pytest.mark.parametrize(
    "pattern",
    [
        *("(?=a)", "(?!a)b", "(?<=a)b", "(a)\\1", "\\bword", "\\p{L}", "a^", "$a", "(^a)b", "*a", "a**", "a{2}{3}"),
        *("(", ")", "(a", "[a", "a\\", "[z-a]", "(?i)a", "a{3,2}", "\\xg1", "a{9999}", "[]", "(?<n", "[\\d-x"),
        "(" * 60 + ")" * 60,
    ],
)
def test_pattern_without_a_grammar_is_refused(pattern: str) -> None:
    with pytest.raises(PatternProblem):
        write(parse(pattern))


REGEXES = st.recursive(
    st.sampled_from(["a", "b", "\\d", "[a-c]", "[^a]", ".", "\\.", "\\w", "\\s", "é"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}"])).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(REGEXES, st.text("ab1.é \n", max_size=6), st.booleans(), st.booleans())
def test_matches_agrees_with_python(regex: str, text: str, starts: bool, ends: bool) -> None:
    pattern = ("^" if starts else "") + f"(?:{regex})" + ("$" if ends else "")
    expected = re.search(pattern.replace("$", "\\Z"), text, re.ASCII) is not None
    parsed = parse(pattern)
    assert matches(parsed, text) is expected
    low, high = span(parsed)
    assert not expected or low <= len(text) <= (len(text) if high is None else high)


@pytest.mark.parametrize(
    ("pattern", "least", "most", "written"),
    [
        ("^[a-z]+$", 3, 5, "^([a-z]){3,5}$"),
        ("^[a-z][0-9]*$", 0, 4, "^[a-z]([0-9]){0,3}$"),
        ("^[a-z]{2,40}x$", 5, None, "^([a-z]){4,40}x$"),
        ("^(ab|abc)$", 2, 3, "^(ab|abc)$"),
        ("^(a+|b)$", 1, 3, "^((a){1,3}|b)$"),
        ("^a+@b+$", 0, 9, "^(a){1,4}\\x40(b){1,4}$"),
        ("^[a-z]+$", 2500, None, "^([a-z]){2000}([a-z]){500,}$"),
        ("^(ab)+$", 3, None, None),
        ("^abc$", 0, 2, None),
    ],
)
def test_lengths_beside_a_pattern(pattern: str, least: int, most: int | None, written: str | None) -> None:
    fitted = within(parse(pattern), least, most)
    assert (None if fitted is None else write(fitted)) == written


def test_pattern_that_looks_ahead_is_matched() -> None:
    regex = parse("^(?!\\.)(?=.*x)[a-z.]+$")
    assert [matches(regex, text) for text in ("ax", ".x", "ab", "x.", "X")] == [True, False, False, True, False]


def test_long_texts_are_bounded_without_more_than_2000_repetitions_in_one_place() -> None:
    written = write(of_length(1, 5000))
    assert all(int(high) <= 2000 for high in re.findall(r"\{(?:\d+,)?(\d+)\}", written))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", "2024-02-29", "2023-02-29"),
        ("date", "1999-12-31", "1999-11-31"),
        ("time", "23:59:59Z", "24:00:00Z"),
        ("date-time", "2025-01-02T03:04:05.678+02:00", "2025-01-02 03:04:05Z"),
        ("duration", "P1Y2M3DT4H5M6S", "P"),
        ("uuid", "123e4567-e89b-42d3-a456-426614174000", "123e4567e89b42d3a456426614174000"),
        ("email", "first.last+tag@sub.example.org", "first..last@example.org"),
        ("hostname", "a-b.example.org", "-a.example.org"),
        ("ipv4", "255.0.10.1", "256.0.0.1"),
        ("ipv6", "2001:db8::1", "2001:db8"),
        ("uri", "https://example.org/a/b?c=d#e", "example.org/a"),
        ("uri-reference", "/a//b?c", "//:a"),
        ("json-pointer", "/a~1b/0", "a"),
    ],
)
def test_format_is_a_pattern(name: str, good: str, bad: str) -> None:
    regex = schema_formats.of_format(name)
    assert regex is not None
    assert matches(regex, good)
    assert not matches(regex, bad)
    assert schema_formats.of_format("int32") is None


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("^[a-z]+$", "^.+$", True),
        ("^.+$", "^[a-z]+$", False),
        ("^(ab)*$", "^[ab]*$", True),
        ("^a{2,3}$", "^a{1,4}$", True),
        ("^a{2,5}$", "^a{1,4}$", False),
        ("^x", "x", True),
        ("^(a|b)c$", "^(ac|bc)$", True),
        ("^[^a]$", "^[b-z]$", False),
        ("^(a?){90}$", "^a*$", True),
        ("^[a-z]+@[a-z]+$", "^(?!@)(?!.*@@)[a-z@]+$", True),
        ("^[a-z@]+$", "^(?!@)(?!.*@@)[a-z@]+$", False),
        ("^[a-z]+1$", "^(?=.*[0-9]).{2,}$", True),
        ("^[a-z]*1$", "^(?=.*[0-9]).{2,}$", False),
        ("^b$", "^(?!a$)[a-b]+$", True),
        ("^((a?){900}){900}$", "^a*$", False),  # too large to tell
    ],
)
def test_inclusion_of_patterns(inner: str, outer: str, expected: bool) -> None:
    assert included(parse(inner), parse(outer)) is expected
