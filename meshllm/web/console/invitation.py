"""An invite as the console gives it to a caller, and what the caller asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InviteWish:
    """`seconds` that the invite is valid (0: a day), its `rights` (names, or none: all), `once`: for one node only,
    `days` that the membership lasts (0: as usual for the rights), and a `label` for the list."""

    seconds: float = 0
    rights: tuple[str, ...] = ()
    once: bool = False
    days: int = 0
    label: str = ""


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invite token; `expires` in seconds since the epoch, `rights` by name. The repr does not show the token."""

    text: str
    expires: int
    serial: str = ""
    rights: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Invitation {self.serial} until {self.expires}>"
