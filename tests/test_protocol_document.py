"""docs/protocol.md agrees with the code: constants, kinds, codes and the number of fields."""

from __future__ import annotations

import ast
import importlib
import re
from enum import IntEnum
from pathlib import Path

import msgpack
import pytest

from meshllm.core.board import messages as w
from meshllm.core.membership import messages as m
from meshllm.core.membership.certificates import Right
from meshllm.core.records import MeshId, NodeId, NodeRecord, RecordVersion, Role
from meshllm.core.split import lease as n
from meshllm.core.split.planner import WorkerShare
from meshllm.net import connection_protocol
from meshllm.net.base import StreamKind
from meshllm.net.tunnels.pipe import HEADER
from meshllm.wire.api.routes import ROUTES, Api
from meshllm.wire.mesh import codec, hello, leases
from meshllm.wire.mesh.files import FileFrameKind, FileRefusalReason
from meshllm.wire.mesh.records import PURPOSES, encode_record

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of all table rows in the section with that heading, without markup."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|") and not line.startswith("|--")]
    return [[cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]


def table(heading: str, first: str) -> list[list[str]]:
    """The rows of the section's table whose head begins with `first`."""
    found = rows(heading)
    begin = next(number for number, row in enumerate(found) if row[0] == first)
    heads = {"kind", "reset code", "refusal code", "reason", "place", "purpose", "limit", "what", "path", "header"}
    end = next((at for at in range(begin + 1, len(found)) if found[at][0] in heads), len(found))
    return found[begin + 1 : end]


def fields_of(cell: str) -> int:
    """The number of fields that a cell lists: commas outside brackets and code separate them."""
    if cell == "none":
        return 0
    depth, count = 0, 1
    for letter in cell:
        depth += letter in "([" or -(letter in ")]")
        count += letter == "," and depth == 0
    return count


@pytest.mark.parametrize(("value", "constant"), re.findall(r"\| ([^|\n]+) \| `([\w.]+\.[A-Z_]+)` \|", DOCUMENT))
def test_protocol_document_states_the_constants_of_the_code(value: str, constant: str) -> None:
    module, _, name = constant.rpartition(".")
    actual = getattr(importlib.import_module(f"meshllm.{module}"), name)
    if isinstance(actual, str):
        assert value.strip("`") == actual
    else:
        assert float(value.split()[0]) == float(actual)


def test_protocol_document_lists_the_stream_kinds_and_reset_codes() -> None:
    assert {int(row[0]): row[1] for row in table("Streams", "kind")} == {int(kind): kind.name for kind in StreamKind}
    codes = {name: getattr(connection_protocol, name) for name in ("ENDED", "ABORTED", "REFUSED")}
    assert {row[1]: int(row[0]) for row in table("Streams", "reset code")} == codes


def test_protocol_document_lists_the_hello_messages_with_their_fields() -> None:
    nonce, ids = bytes(32), (NodeId(bytes(32)), MeshId(bytes(16)))
    samples: tuple[hello.HelloMessage, ...] = (
        hello.Hello((2, 2), ids[0], Role.NODE, ids[1], hello.Credential.CERTIFICATE, nonce, bytes(8)),
        hello.Challenge((1, 1), 1, ids[0], Role.NODE, nonce, bytes(8)),
        hello.HelloProof(bytes(64)),
        hello.Welcome(ids[1], None, b""),
        hello.HelloRefusal("protocol", "message"),
    )
    packed = {type(sample).__name__: msgpack.unpackb(hello.encode_hello(sample)) for sample in samples}
    documented = {row[1]: (int(row[0]), fields_of(row[3])) for row in table("Hello", "kind")}
    assert documented == {name: (fields[0], len(fields) - 1) for name, fields in packed.items()}


def test_protocol_document_lists_the_refusal_codes() -> None:
    codes = set()
    for path in (*(ROOT / "meshllm/net").rglob("*.py"), *(ROOT / "meshllm/daemon").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name == "HelloRefusal" and isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant):
                codes.add(str(node.args[0].value))
    assert {row[0] for row in table("Hello", "refusal code")} == codes


def test_protocol_document_lists_every_message_with_its_fields() -> None:
    node, session = NodeId(bytes(32)), bytes(16)
    shares = (WorkerShare(node, 0, 1, 1), WorkerShare(NodeId(bytes(31) + b"\1"), 1, 1, 1))
    samples: tuple[m.Message, ...] = (
        m.Ping(1),
        m.Pong(1),
        m.Digest(0, bytes(4)),
        m.Difference(0, (), ()),
        m.Wanted(()),
        m.Records(()),
        m.Subscribe(),
        m.TableUpdate(()),
        m.Adopted(MeshId(bytes(16))),
        n.Propose(n.Lease(session, 1, "m", (n.LeasedFile("m.gguf", 1, "0" * 64),), shares)),
        n.WorkerReport(session, 1, n.LeasePhase.READY),
        n.Commit(session, 1),
        n.Release(session, 1),
        n.Renew(session, 1, True),
        m.Statements((), bytes(8)),
        m.RenewCertificate(bytes(158)),
        m.RenewedCertificate(bytes(158), bytes(32)),
        m.AskInvite(Right.USE, 1, 1),
        m.GrantedInvite(bytes(8), Right.USE, 1, 1, bytes(16)),
        m.ReplaceKey(node, bytes(64), bytes(64)),
        m.ReplaceRefused("reason"),
        m.ReportDemand(()),
        w.BoardDigest(0, bytes(4)),
        w.BoardDifference(0, (0,), ()),
        w.BoardWant(()),
        w.BoardEntries(()),
    )
    packed = {type(sample).__name__: msgpack.unpackb(codec.encode_message(sample)) for sample in samples}
    documented = {row[1]: (int(row[0]), fields_of(row[2])) for row in table("Messages", "kind")}
    assert documented == {name: (fields[0], len(fields) - 1) for name, fields in packed.items()}
    assert sorted(kind for kind, _ in documented.values()) == sorted(codec._READERS)


def test_protocol_document_lists_the_fields_of_a_record() -> None:
    record = NodeRecord(NodeId(bytes(32)), RecordVersion(1, 1), MeshId(bytes(16)))
    assert [int(row[0]) for row in table("Records", "place")] == list(
        range(len(msgpack.unpackb(encode_record(record))))
    )
    purposes = {purpose.value if purpose else "unknown": number for purpose, number in PURPOSES.items()}
    assert {row[0]: int(row[1]) for row in table("Records", "purpose")} == purposes


def test_protocol_document_lists_the_phases_of_a_report() -> None:
    report = next(row[2] for row in table("Messages", "kind") if row[1] == "WorkerReport")
    documented = {name: int(number) for number, name in re.findall(r"(\d) (\w+)", report)}
    assert documented == {phase.value: number for phase, number in leases.PHASES.items()}


@pytest.mark.parametrize(("head", "kinds"), [("kind", FileFrameKind), ("reason", FileRefusalReason)])
def test_protocol_document_lists_the_file_frames(head: str, kinds: type[IntEnum]) -> None:
    assert {int(row[0]): row[1] for row in table("Files", head)} == {int(kind): kind.name for kind in kinds}


def test_protocol_document_lists_the_paths_of_http_tunnels() -> None:
    served = {route.path: route.api for route in ROUTES.values() if route.api is not Api.MODELS}
    documented = {row[0]: row[1] for row in table("HTTP tunnels", "path")}
    assert documented == {path: "Anthropic" if api.anthropic else "OpenAI" for path, api in served.items()}


def test_protocol_document_states_the_size_of_an_rpc_header() -> None:
    assert f"begins with {HEADER.size} bytes" in DOCUMENT
