"""Formats of strings in JSON schemas, as patterns that match a part of what each format allows."""

from __future__ import annotations

from functools import cache

from meshllm.wire.api.schema_patterns import Regex, parse

_YEAR = "[12][0-9]{3}"
# 29 February in the years 1804 to 2396 that 4 divides, centuries left out.
_LEAP_YEAR = "(?:1[89]|2[0-3])(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = "[a-z0-9]{1,20}(?:-[a-z0-9]{1,20}){0,2}"
_HOST = f"(?:{_LABEL}\\.){{0,4}}[a-z]{{2,20}}"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9a-fA-F]"
_GROUP = "[0-9a-f]{1,4}"
_PATH = "(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]*)*"
_QUERY = "(?:\\?[A-Za-z0-9._~!$&'()*+,;=:@/-]*)?(?:#[A-Za-z0-9._~!$&'()*+,;=:@/-]*)?"
_URI = f"[a-z][a-z0-9+.-]{{1,15}}://{_HOST}(?::[0-9]{{1,4}})?{_PATH}{_QUERY}"
_DURATION_TIME = "T(?:[0-9]{1,9}H(?:[0-9]{1,9}M)?(?:[0-9]{1,9}S)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S)"
_DURATION_DATE = "(?:[0-9]{1,9}Y(?:[0-9]{1,9}M)?(?:[0-9]{1,9}D)?|[0-9]{1,9}M(?:[0-9]{1,9}D)?|[0-9]{1,9}D)"

_PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:{_DURATION_DATE}(?:{_DURATION_TIME})?|{_DURATION_TIME}|[0-9]{{1,9}}W)",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-[1-8]{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}",
    "email": (
        "[A-Za-z0-9_+-]{1,24}(?:\\.[A-Za-z0-9_+-]{1,24})?@"
        "(?:[a-z0-9]{1,20}\\.)?[a-z0-9]{1,20}(?:-[a-z0-9]{1,20})?\\.[a-z]{2,10}"
    ),
    "hostname": _HOST,
    "ipv4": f"(?:{_BYTE}\\.){{3}}{_BYTE}",
    "ipv6": f"(?:{_GROUP}:){{7}}{_GROUP}|(?:{_GROUP}:){{1,4}}:(?:{_GROUP}:){{0,1}}{_GROUP}|::1?",
    "uri": _URI,
    "uri-reference": f"(?:{_URI}|/?[A-Za-z0-9._~-]+{_PATH}{_QUERY})",
    "json-pointer": "(?:/(?:[^/~\\x00-\\x1f]|~[01])*)*",
    "relative-json-pointer": "[0-9](?:#|(?:/(?:[^/~\\x00-\\x1f]|~[01])*)*)",
}
_PATTERNS |= {
    "idn-email": _PATTERNS["email"],
    "idn-hostname": _PATTERNS["hostname"],
    "iri": _PATTERNS["uri"],
    "iri-reference": _PATTERNS["uri-reference"],
    "uri-template": _PATTERNS["uri"],
}
# Formats of the specification that no pattern expresses. Other unknown names are annotations, as it says.
UNSUPPORTED = frozenset(("regex",))


@cache
def of_format(name: str) -> Regex | None:
    """The texts of a format; None if the name is an annotation only."""
    pattern = _PATTERNS.get(name)
    return None if pattern is None else parse(f"^(?:{pattern})$")


@cache
def utc() -> Regex:
    """The part of `date-time` that clients ask for by a pattern beside it."""
    return parse(f"^{_DATE}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$")
