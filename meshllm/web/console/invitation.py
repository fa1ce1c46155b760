"""An invite as the console gives it to a caller."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invite token; `expires` in seconds since the epoch (0: never). The repr does not show the token."""

    text: str
    expires: int

    def __repr__(self) -> str:
        return f"<Invitation until {self.expires or 'cancelled'}>"
