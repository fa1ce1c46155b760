"""What the owner is told when another machine runs with this node's identity."""

from __future__ import annotations

import logging

from meshllm.core.membership.views import JoinPhase, MeshView
from meshllm.core.records import NodeRecord
from meshllm.daemon.audit_log import WriteAudit

log = logging.getLogger(__name__)

MAX_ADDRESSES = 3


class DuplicateNotice:
    """`text`: what the owner should know and do; "" as long as there is no such machine."""

    def __init__(self, audit: WriteAudit) -> None:
        self.text = ""
        self._audit = audit

    def publish(self, view: MeshView | None) -> None:
        """Take the newest view of the mesh; the log and the audit log have the first that names another machine."""
        if view is None or view.duplicate is None:
            return
        before, self.text = self.text, text_of(view, view.duplicate)
        if not before:
            log.warning("%s", self.text)
            self._audit("duplicate_identity", addresses=_addresses(view.duplicate), name=view.duplicate.name)


def text_of(view: MeshView, other: NodeRecord) -> str:
    """What the owner should know of `other`, a record that this node has not written, and do."""
    where = f"as {other.name or 'a node without a name'}, at {_addresses(other) or 'an unknown address'}"
    if view.phase is JoinPhase.DUPLICATE:
        return (
            f"Two machines have one identity: this home was copied, and the node that it was copied from runs {where}. "
            "This node has left the mesh and goes on alone. To give it an identity of its own: stop it, move node-key "
            "and mesh.json out of its home, and start it with --join INVITE."
        )
    return (
        f"Two machines have one identity: a node with the key of this one runs {where}. If that is a copy of this "
        "node's home, stop it, and start it with a new MESH_LLM_HOME. If you do not know it, the key was stolen: "
        "'mesh-llm rotate-key' gives this node a new one and makes the old one void everywhere."
    )


def _addresses(record: NodeRecord) -> str:
    return ", ".join(str(address) for address in record.addresses[:MAX_ADDRESSES])
