"""What a daemon tells the terminal it was started from."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshllm.core.snapshot import Snapshot

CLIENT_WITHOUT_MESH = (
    "this client knows no mesh, and finds none by itself. 'mesh-llm invite' at a node of the mesh prints an invite; "
    "stop this client and start it with --client --join INVITE."
)


@dataclass(frozen=True, slots=True)
class Listening:
    """URLs of this node. `key_place`: file or variable with the key other machines need; empty if they may not call.
    `lan_urls`: pairs of API and console URL for other machines; empty where none is known. `page`: opens the console as
    the owner; a secret, for a terminal only. `ollama`: URL for clients of Ollama, empty without `--ollama-port`."""

    api: str
    console: str
    key_place: str = ""
    lan_urls: tuple[tuple[str, str], ...] = ()
    page: str = field(default="", repr=False)
    ollama: str = ""


class Viewer:
    """Shows what happens on the terminal. Methods run on the event loop and must not block."""

    def listening(self, listening: Listening) -> None:
        """The API and the console answer."""

    def models_hint(self, *, rejoins: bool) -> None:
        """The time to say how to serve a model. `rejoins`: the node knows its mesh and connects to it."""

    @property
    def shows_secrets(self) -> bool:
        """Whether a person reads what is shown: elsewhere it ends in log files, and no invite is made for it."""
        return False

    def invite(self, token: str) -> None:
        """This node is the only one of its mesh; `token` admits others. A secret: show it, never log it."""

    def invite_hint(self) -> None:
        """The same where secrets are not shown: the time to say how to get an invite."""

    def no_mesh(self, reason: str) -> None:
        """This node runs without a mesh."""

    def stopping(self, answers: int, seconds: float) -> None:
        """The node was asked to stop; `answers` in progress get `seconds` to end."""

    def leaving_split(self, model: str, seconds: float) -> None:
        """The host of `model`, which this node computes for, gets `seconds` to end its answers."""

    def answers_cut(self, answers: int) -> None:
        """So many answers had not ended in that time."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """Something changed."""
