"""The audit log's lines about leases that this node holds as a worker, from the core's commands."""

from __future__ import annotations

from meshllm.core import commands as c
from meshllm.core.split.lease import Lease, LeasePhase, WorkerReport
from meshllm.daemon.audit_log import WriteAudit


class LeaseAudit:
    """Records each lease that is taken, refused or ended. Bounded: a node holds one lease at a time."""

    def __init__(self, audit: WriteAudit) -> None:
        self._audit = audit
        self._held: dict[tuple[bytes, int], Lease] = {}

    def command(self, command: c.Command) -> None:
        """Take a command of the core, in order."""
        match command:
            case c.StartWorker(lease):
                self._held[lease.session, lease.generation] = lease
                self._audit("lease_taken", host=lease.host.hex(), model=lease.model, lease=_name(lease))
            case c.StopWorker(session, generation, reason):
                self._ended((session, generation), reason)
            case c.Send(peer, WorkerReport(session, generation, LeasePhase.ENDED, detail)):
                if not self._ended((session, generation), detail):
                    self._audit("lease_refused", host=peer.hex(), reason=detail)
            case _:
                pass

    def _ended(self, key: tuple[bytes, int], reason: str) -> bool:
        lease = self._held.pop(key, None)
        if lease is None:
            return False
        self._audit("lease_ended", host=lease.host.hex(), model=lease.model, lease=_name(lease), reason=reason)
        return True


def _name(lease: Lease) -> str:
    return f"{lease.session.hex()[:10]}/{lease.generation}"
