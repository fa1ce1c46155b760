"""One exception tree. Every fault has a side: ours, theirs, or nobody's.

Law: an error that a person can meet says in `advice` what to do next, and is translated to a wire shape or an exit
code once, at the edge (`web`, `cli`). A `MeshError` is never swallowed; anything that is not a `MeshError` is a bug.
"""

from __future__ import annotations

import errno
import os


class MeshError(Exception):
    """Base of all errors that are meant to be seen.

    `message` says what happened, in one sentence; `advice` what to do about it; `code` is a stable word for programs.
    """

    code = "internal_error"

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".rstrip()


class InternalError(MeshError):
    """A defect or a limit of this program."""


class InputError(MeshError):
    """Bad input: from a command line, an HTTP body, a model file, a peer."""

    code = "invalid_request_error"


class EnvironmentFailure(MeshError):
    """Circumstances: a full disk, a network that is away, a process that was killed."""

    code = "unavailable_error"


# -- theirs


class UsageError(InputError):
    """A command line that does not make sense."""

    code = "usage_error"


class UnknownModel(InputError):
    """No model of that name is known here."""

    code = "model_not_found"


class AmbiguousModel(InputError):
    """A name that several models answer to; `candidates` are some of their names, each of which is understood."""

    code = "ambiguous_model"

    def __init__(self, message: str, *, advice: str = "", candidates: tuple[str, ...] = ()) -> None:
        super().__init__(message, advice=advice)
        self.candidates = candidates


class InvalidModelFile(InputError):
    """A GGUF file that is damaged, hostile or not GGUF at all."""

    code = "invalid_model_file"


class BadBackend(InputError):
    """A `--backend` URL that is not one, or behind which no OpenAI-compatible server answers as it should."""

    code = "bad_backend"


# -- nobody's


class EngineUnavailable(EnvironmentFailure):
    """The engine is not built, cannot be built here, or does not run."""

    code = "engine_unavailable"


class ToolMissing(EngineUnavailable):
    """A program that the build needs is not on this machine; `advice` says how to install it."""

    code = "tool_missing"


class DownloadFailed(EnvironmentFailure):
    """A model file could not be fetched; what has arrived is kept and the next try goes on from there."""

    code = "download_failed"


class NotEnoughSpace(EnvironmentFailure):
    """Not enough disk or memory."""

    code = "not_enough_space"


class PortTaken(EnvironmentFailure):
    """A port we were told to use cannot be listened on: another program does, or this user may not."""

    code = "port_taken"


def port_taken(error: OSError, where: str, option: str) -> PortTaken:
    """What to raise when the system does not let us listen `where` ("... port N"); `option` chooses another port."""
    # The words of asyncio are those of a program, and hold the address once more.
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        advice = f"Ports below 1024 need more rights: choose another with {option}."
    elif error.errno == errno.EADDRINUSE:
        advice = f"Stop what uses it, or choose another with {option}."
    else:
        advice = f"Choose another with {option}."
    return PortTaken(f"Cannot listen on {where}: {reason}.", advice=advice)


class NotRunning(EnvironmentFailure):
    """No daemon answers where one was expected."""

    code = "not_running"


class DamagedState(EnvironmentFailure):
    """A file of this node's own (its key, what it knows of its mesh) cannot be read; it is left as it is."""

    code = "damaged_state"


class PeerRefused(InputError):
    """A peer answered and will not have us, or is not who it should be: trying again will not help.

    `reason` is a word for programs: "wrong_secret", "expired_invite", "protocol", "too_many_clients", "itself"...
    """

    code = "peer_refused"

    def __init__(self, message: str, *, advice: str = "", reason: str = "refused") -> None:
        super().__init__(message, advice=advice)
        self.reason = reason


class BadInvite(InputError):
    """An invite that is damaged, expired or of another version."""

    code = "bad_invite"


class BadMessage(InputError):
    """Bytes from a peer that are no message, or one that breaks a bound or a signature."""

    code = "bad_message"


class PeerUnreachable(EnvironmentFailure):
    """No address of a peer answers."""

    code = "peer_unreachable"


class LinkClosed(EnvironmentFailure):
    """The connection to a peer is gone."""

    code = "link_closed"
