"""The exception tree. `InputError`: bad input; `EnvironmentFailure`: circumstances; `InternalError`: a defect.

Every error that a user can see is a `MeshError` with a message and advice; `web` and `cli` translate it once, at the
edge, to an HTTP error body or an exit code. Any other exception that reaches the edge is a defect. Exceptions outside
this tree are private to a module and caught in it.
"""

from __future__ import annotations

import errno
import os


class MeshError(Exception):
    """Base of all errors that a user may see.

    `message`: one sentence that says what happened. `advice`: what to do; `default_advice` of the class where the
    caller gives none. `code`: a stable identifier for programs. `str()` has no default advice, so that errors can be
    quoted in other messages.
    """

    code = "internal_error"
    default_advice = ""

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice or self.default_advice
        self._own_advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self._own_advice}".rstrip()


class InternalError(MeshError):
    """A defect or an unsupported case of this program."""

    default_advice = "This is a defect of mesh-llm; please report it."


class InputError(MeshError):
    """Bad input: a command line, an HTTP body, a model file, bytes from a peer."""

    code = "invalid_request_error"


class EnvironmentFailure(MeshError):
    """Circumstances outside this program: a full disk, no network, a killed process."""

    code = "unavailable_error"
    default_advice = "Run 'mesh-llm doctor' to check this machine."


# -- bad input


class UsageError(InputError):
    """A command line with invalid or contradicting arguments."""

    code = "usage_error"
    default_advice = "Run the command with --help to see its arguments."


class UnknownModel(InputError):
    """No known model has this name."""

    code = "model_not_found"
    default_advice = "Run 'mesh-llm models' to list the known models."


class AmbiguousModel(InputError):
    """Several models match a name; `candidates` are some unambiguous names for them."""

    code = "ambiguous_model"
    default_advice = "Use the full name of one model."

    def __init__(self, message: str, *, advice: str = "", candidates: tuple[str, ...] = ()) -> None:
        super().__init__(message, advice=advice)
        self.candidates = candidates


class InvalidModelFile(InputError):
    """A file that is damaged, hostile or not GGUF."""

    code = "invalid_model_file"
    default_advice = "Delete the file and download the model again."


class DamagedModelFile(InvalidModelFile):
    """A file that is no readable GGUF file: damaged, cut, or of another kind. `reason`: why, without its path."""

    code = "damaged_model_file"

    def __init__(self, message: str, *, advice: str = "", reason: str = "") -> None:
        super().__init__(message, advice=advice)
        self.reason = reason


class BadBackend(InputError):
    """An invalid `--backend` URL, or a server there that is not OpenAI-compatible."""

    code = "bad_backend"
    default_advice = "Check that an OpenAI-compatible server answers GET /v1/models at that URL."


class PeerRefused(InputError):
    """A peer refused this node, or is not the expected node; a retry does not help.

    `reason`: the code of the refusal ("wrong_secret", "expired_invite", "protocol", ...; docs/protocol.md).
    """

    code = "peer_refused"
    default_advice = "Check that both nodes run the same version of mesh-llm and belong to the same mesh."

    def __init__(self, message: str, *, advice: str = "", reason: str = "refused") -> None:
        super().__init__(message, advice=advice)
        self.reason = reason


class BadInvite(InputError):
    """An invite that is damaged, expired or of another version."""

    code = "bad_invite"
    default_advice = "Ask for a fresh invite: 'mesh-llm invite' prints one on a node of the mesh."


class BadMessage(InputError):
    """Bytes of a peer that are not a valid message: wrong format, bound or signature."""

    code = "bad_message"
    default_advice = "Update mesh-llm on both nodes."


class BoardRefused(InputError):
    """The blackboard refuses a message, a claim or a query; its message says why."""

    code = "blackboard_refused"
    default_advice = "Correct it and try again. The options: mesh-llm blackboard --help"


class BoardRate(EnvironmentFailure):
    """This node has posted as much on the blackboard as it may for now."""

    code = "blackboard_rate"
    default_advice = "Try again in a minute; post results rather than each step."


# -- circumstances


class EngineUnavailable(EnvironmentFailure):
    """The engine is not built, cannot be built here, or does not run."""

    code = "engine_unavailable"


class ToolMissing(EngineUnavailable):
    """A program that the build needs is not installed."""

    code = "tool_missing"


class DownloadFailed(EnvironmentFailure):
    """A model file could not be downloaded. The bytes that arrived are kept for the next attempt."""

    code = "download_failed"
    default_advice = "Check the network connection and retry: the download resumes where it stopped."


class NotEnoughSpace(EnvironmentFailure):
    """Not enough disk space or memory."""

    code = "not_enough_space"
    default_advice = "Free disk space or memory, or choose a smaller model."


class PortTaken(EnvironmentFailure):
    """A requested port is in use, or needs more rights. `port`, `option`: the port, and the flag that chooses another;
    0 and "" where another program holds nothing."""

    code = "port_taken"
    default_advice = "Choose another port."

    def __init__(self, message: str, *, advice: str = "", port: int = 0, option: str = "") -> None:
        super().__init__(message, advice=advice)
        self.port = port
        self.option = option


class NotRunning(EnvironmentFailure):
    """No daemon answers on the expected port."""

    code = "not_running"
    default_advice = "Start the node with 'mesh-llm', or name the port of its console."


class BoardOff(EnvironmentFailure):
    """This node has no blackboard."""

    code = "blackboard_off"
    default_advice = "Start a node of a private mesh without --no-blackboard."


class NodeRefused(EnvironmentFailure):
    """The running node refuses what its owner asks for; its message says why."""

    default_advice = "Correct the command and run it again. The lists: mesh-llm members, invite --list, models, ps."


class DamagedState(EnvironmentFailure):
    """A state file of this node (its key, its mesh) cannot be read; the file is left unchanged."""

    code = "damaged_state"
    default_advice = "Restore the file from a backup, or move it away to start with a new one."


class PeerUnreachable(EnvironmentFailure):
    """No address of a peer answers."""

    code = "peer_unreachable"
    default_advice = "Check that the node runs and that its UDP port is open."


class DialLimitReached(PeerUnreachable):
    """This node dials too many peers at the same time. It says nothing about the peer."""

    code = "dial_limit"


class LinkClosed(EnvironmentFailure):
    """The link to a peer, or this node's part in the mesh, has ended."""

    code = "link_closed"
    default_advice = "The node reconnects automatically; if it does not, check the network between the two nodes."


def port_taken(error: OSError, listener: str, port: int, option: str) -> PortTaken:
    """The error for a failed bind of `listener` ("127.0.0.1", "UDP") to `port`; `option`: the flag that chooses
    another."""
    # asyncio's own text repeats the address and is made for programmers.
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        advice = f"Ports below 1024 need more rights: choose another with {option}."
    elif error.errno == errno.EADDRINUSE:
        advice = f"Stop the program that uses it, or choose another with {option}."
        return PortTaken(f"Cannot listen on {listener} port {port}: {reason}.", advice=advice, port=port, option=option)
    else:
        advice = f"Choose another with {option}."
    return PortTaken(f"Cannot listen on {listener} port {port}: {reason}.", advice=advice)


def unusable_file(error: OSError) -> EnvironmentFailure:
    """The error for a file that cannot be read or written; `error` names it."""
    message = f"{error.filename} cannot be used: {error.strerror or error}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NotEnoughSpace(message, advice="Free space on its disk (or of the quota), then run mesh-llm again.")
    return EnvironmentFailure(message, advice="Check that it exists and that this user may read and write it.")
