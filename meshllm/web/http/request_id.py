"""Request ids: the header `x-request-id`, taken over from the caller or made.

The id is forwarded to peers and engines, and stands in the response, in error bodies and in all log lines.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Mapping

REQUEST_ID_HEADER = b"x-request-id"
# Unique among all nodes by the prefix, within this process by the number: cheaper than new randomness for each.
_PREFIX = secrets.token_hex(6)
_numbers = itertools.count(secrets.randbits(32))
_VALID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The caller's `x-request-id` if it is well-formed, else a new id: "req_" and 24 hexadecimal digits.

    `headers` have lower-case names. A malformed id is replaced, because it would be copied into logs and headers.
    """
    sent = headers.get(REQUEST_ID_HEADER)
    if sent is not None and _VALID.fullmatch(sent):
        return sent.decode("ascii")
    return f"req_{_PREFIX}{next(_numbers):012x}"
