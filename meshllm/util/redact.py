"""Removes secrets from text that is logged or shared: invites, API keys, tokens, private keys."""

from __future__ import annotations

import re
from collections.abc import Iterable

REDACTED = "[redacted]"
# Shorter values occur in ordinary text.
MIN_SECRET = 6

# Each pattern with lower-case strings of which every match holds at least one.
_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    # An invite: `mesh1-` and its base64url text.
    (("mesh",), re.compile(r"(?P<keep>mesh[0-9]+-)[A-Za-z0-9_-]{8,}")),
    (
        ("private key",),
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    ),
    # Tokens of Hugging Face and of OpenAI-like services.
    (("hf_", "sk-"), re.compile(r"\b(?P<keep>hf_|sk-)[A-Za-z0-9_-]{8,}")),
    # The token of a daemon's run, in the URL that opens the console and in a header.
    (("#token=", "x-mesh-llm-token"), re.compile(r"(?i)(?P<keep>#token=|x-mesh-llm-token[\"']?\s*:\s*)[^\s\"',;]+")),
    (("bearer",), re.compile(r"(?i)(?P<keep>\bbearer\s+)[^\s\"',;]+")),
    # key=..., "secret": "..." and their like, in JSON, headers, URLs and environments.
    (
        (
            "api_key",
            "api-key",
            "apikey",
            "secret",
            "passw",
            "authorization",
            "access_token",
            "access-token",
            "accesstoken",
        ),
        re.compile(
            # From the start of a word only: from each of its letters on it would take the square of the word's length.
            r"(?i)(?P<keep>(?<![a-z0-9_-])[a-z0-9_-]*(?:api[_-]?key|secret|password|passwd|authorization|access[_-]?token)[\"']?\s*[:=]\s*"
            r"[\"']?)(?!\[redacted\])[^\s\"',;&}]+"
        ),
    ),
    # A user and a password in a URL.
    (("@",), re.compile(r"(?P<keep>(?<![a-z0-9+.-])[a-z0-9+.-]+://)[^\s/@:]+:[^\s/@]+(?=@)")),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with each of `secrets` and everything that looks like one replaced by `[redacted]`."""
    for secret in secrets:
        if len(secret) >= MIN_SECRET:
            text = text.replace(secret, REDACTED)
    lowered = text.lower()
    for hints, pattern in _PATTERNS:
        # A line is logged for each request: a pattern runs only where one of its fixed parts occurs.
        for hint in hints:  # not any(): a generator costs more than the searches
            if hint in lowered:
                text = pattern.sub(_replacement, text)
                break
    return text


def _replacement(match: re.Match[str]) -> str:
    return f"{match.groupdict().get('keep') or ''}{REDACTED}"
