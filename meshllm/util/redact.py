"""Removes secrets from text that is logged or shared: invites, API keys, tokens, private keys."""

from __future__ import annotations

import re
from collections.abc import Iterable

REDACTED = "[redacted]"
# Shorter values occur in ordinary text.
MIN_SECRET = 6

_PATTERNS = (
    # An invite: `mesh1-` and its base64url text.
    re.compile(r"(?P<keep>mesh[0-9]+-)[A-Za-z0-9_-]{8,}"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    # Tokens of Hugging Face and of OpenAI-like services.
    re.compile(r"\b(?P<keep>hf_|sk-)[A-Za-z0-9_-]{8,}"),
    re.compile(r"(?i)(?P<keep>\bbearer\s+)[^\s\"',;]+"),
    # key=..., "secret": "..." and their like, in JSON, headers, URLs and environments.
    re.compile(
        r"(?i)(?P<keep>\b[a-z0-9_-]*(?:api[_-]?key|secret|password|passwd|authorization|access[_-]?token)[\"']?\s*[:=]\s*"
        r"[\"']?)(?!\[redacted\])[^\s\"',;&}]+"
    ),
    # A user and a password in a URL.
    re.compile(r"(?P<keep>\b[a-z][a-z0-9+.-]*://)[^\s/@:]+:[^\s/@]+(?=@)"),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with each of `secrets` and everything that looks like one replaced by `[redacted]`."""
    for secret in secrets:
        if len(secret) >= MIN_SECRET:
            text = text.replace(secret, REDACTED)
    for pattern in _PATTERNS:
        text = pattern.sub(_replacement, text)
    return text


def _replacement(match: re.Match[str]) -> str:
    return f"{match.groupdict().get('keep') or ''}{REDACTED}"
