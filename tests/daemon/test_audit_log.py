"""The audit log: its lines, its bounds, floods, and a disk that does not take it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from meshllm.cli import entry
from meshllm.core import commands as c
from meshllm.core.records import NodeId
from meshllm.core.split.lease import Lease, LeasePhase, WorkerReport
from meshllm.core.split.planner import WorkerShare
from meshllm.daemon.audit_log import KIND_BURST, REPEAT_SECONDS, AuditLog, audit_path, parse_audit
from meshllm.daemon.lease_audit import LeaseAudit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def entries(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in audit_path(home).read_text(encoding="ascii").splitlines()]


def test_audit_log_has_one_escaped_private_json_line_for_each_event(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, Clock())
    audit.start()
    audit.write("link_refused", peer="ab", reason="\x1b]0;owned\x07\n\u202emesh1-abcdefghijkl", count=3, dialled=False)
    audit.write("lease_taken", model="x" * 5000)
    audit.close()
    text = audit_path(tmp_path).read_bytes()
    assert all(byte == 10 or 32 <= byte < 127 for byte in text)
    assert audit_path(tmp_path).stat().st_mode & 0o777 == 0o600
    first, second = entries(tmp_path)
    assert first.pop("time").endswith("Z")
    assert first["event"] == "link_refused"
    assert (first["count"], first["dialled"]) == (3, False)
    assert "mesh1-[redacted]" in first["reason"]
    assert len(second["model"]) < 400


def test_audit_log_counts_a_flood_instead_of_writing_it(tmp_path: Path) -> None:
    clock = Clock()
    audit = AuditLog(tmp_path, clock)
    audit.start()
    for number in range(10_000):
        audit.write("link_refused", peer=f"{number:064x}", reason="wrong_secret")
    for _ in range(500):
        audit.write("lease_refused", host="aa", reason="no right")
    audit.write("member_expelled", node="bb")
    clock.now = REPEAT_SECONDS + 1
    audit.write("lease_refused", host="aa", reason="no right")
    audit.close()
    found = entries(tmp_path)
    refused = [entry for entry in found if entry["event"] == "link_refused"]
    assert len(refused) == KIND_BURST + 1
    assert refused[-1]["not_written"] == 10_000 - KIND_BURST
    leases = [entry for entry in found if entry["event"] == "lease_refused"]
    assert [entry.get("not_written") for entry in leases] == [None, 499]
    assert [entry["event"] for entry in found].count("member_expelled") == 1


def test_audit_log_survives_a_home_that_takes_no_file(tmp_path: Path) -> None:
    audit_path(tmp_path).mkdir()
    audit = AuditLog(tmp_path, Clock())
    audit.start()
    audit.write("link_admitted", peer="ab")
    audit.close()


def test_audit_log_remembers_a_bounded_number_of_events(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, Clock())
    for number in range(5000):
        audit.write(f"kind_{number}", peer=str(number))
    assert len(audit._kinds) < 100
    assert len(audit._last) < 1000


def test_logs_prints_the_audit_log_for_people(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MESH_LLM_HOME", str(tmp_path))
    audit = AuditLog(tmp_path, Clock())
    audit.start()
    audit.write("link_admitted", peer="ab", address="192.0.2.1", role="node")
    audit.close()
    done = CliRunner().invoke(entry.app, ["logs", "--audit"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip().split("Z ", 1)[1] == "link_admitted peer=ab address=192.0.2.1 role=node"


def test_parse_audit_reads_rights_times_and_ids_as_people_do() -> None:
    fields = {"rights": 33, "expires": 1_800_000_000, "node": "ab" * 32, "invite": "ab" * 8, "once": True}
    line = json.dumps({"time": "2026-01-31T12:00:00.000Z", "event": "member_admitted", **fields})
    shown = parse_audit(line).text.partition("Z ")[2]
    assert shown == (
        'member_admitted rights=use,admit expires="2027-01-15 08:00 UTC" node=ababababab '
        "invite=abababababababab once=True"
    )
    assert parse_audit(line.replace("1800000000", "9" * 40)).time is None


def test_parse_audit_keeps_a_line_that_is_none() -> None:
    assert parse_audit("not json").text == "not json"
    assert parse_audit("[1]").text == "[1]"
    assert parse_audit('{"time": 5}').text == '{"time": 5}'


def test_lease_audit_records_taken_ended_and_refused_leases() -> None:
    shares = (WorkerShare(NodeId(b"h" * 32), 0, 1, 1), WorkerShare(NodeId(b"w" * 32), 1, 1, 1))
    lease = Lease(b"s" * 16, 1, "m", (), shares)
    found: list[tuple[str, dict[str, Any]]] = []
    leases = LeaseAudit(lambda event, /, **fields: found.append((event, fields)))
    ended = WorkerReport(lease.session, lease.generation, LeasePhase.ENDED, "not renewed")
    leases.command(c.Send(lease.host, ended))
    leases.command(c.StartWorker(lease))
    leases.command(c.Send(lease.host, ended))
    leases.command(c.StopWorker(lease.session, lease.generation, "not renewed"))
    assert [event for event, _ in found] == ["lease_refused", "lease_taken", "lease_ended"]
    assert found[0][1] == {"host": lease.host.hex(), "reason": "not renewed"}
    assert found[2][1]["reason"] == "not renewed"
