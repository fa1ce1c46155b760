"""The fuzz targets. `run` takes any bytes and returns; whatever it raises is a defect.

A decoder may refuse bytes only by the error that its contract names; the target also checks what must hold for what
was accepted: encoded again and decoded, a message is the same; a value is within its bound.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import logging
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshllm.core.board.chain import ChainId
from meshllm.core.board.entries import (
    NO_ENTRY,
    EntryDraft,
    EntryHeader,
    EntryId,
    SignedEntry,
    body_hash,
    entry_id,
)
from meshllm.core.board.messages import (
    BoardDifference,
    BoardDigest,
    BoardEntries,
    BoardMessage,
    BoardWant,
    ChainRange,
    ChainState,
)
from meshllm.core.board.replica import BoardReplica
from meshllm.core.commands import Command, Send
from meshllm.core.demand.levels import DemandLevel, keyed
from meshllm.core.events import BoardOpened, PostSaved, PostWanted
from meshllm.core.membership import messages as m
from meshllm.core.membership.certificates import (
    ALL_RIGHTS,
    Certificate,
    MeshKey,
    Statement,
    StatementKind,
)
from meshllm.core.membership.links import LinkState, LinkTable
from meshllm.core.membership.timers import Timers
from meshllm.core.records import BootstrapAddress, MeshId, ModelLoad, NodeId, PeerAddress, RecordVersion, Role
from meshllm.core.split.lease import Commit, Release
from meshllm.errors import BadInvite, BadMessage, DamagedState, InvalidModelFile
from meshllm.models.gguf.header import read_header_from
from meshllm.models.gguf.vocabulary import read_vocabulary_from
from meshllm.models.transfer.resume_table import read_tables
from meshllm.web.http.access_control import PEER_VERDICT
from meshllm.web.http.parser import MAX_BODY_BYTES, MAX_HEAD_BYTES, BodyBudget, RequestReader, RequestRejected
from meshllm.wire.api import strict_json
from meshllm.wire.api.conversation import ANY_TEMPLATE, TemplateTraits, shape_body
from meshllm.wire.api.engine_request import prepare
from meshllm.wire.api.ollama_answer import Moment, OllamaAnswer
from meshllm.wire.api.ollama_request import AnswerForm, model_of, translate_request
from meshllm.wire.api.ollama_routes import OllamaApi
from meshllm.wire.api.refusal import RequestRefused
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import EventBuffer, parse_event, split_events
from meshllm.wire.api.stream_repair import repair_response, stream_repair
from meshllm.wire.mesh import board, files
from meshllm.wire.mesh.certificates import (
    CERTIFICATE_BYTES,
    STATEMENT_BYTES,
    read_certificate,
    read_statement,
    sign_certificate,
    sign_statement,
)
from meshllm.wire.mesh.codec import decode_message, encode_message
from meshllm.wire.mesh.hello import decode_hello, encode_hello
from meshllm.wire.mesh.invite import Invite, InviteTerms
from meshllm.wire.mesh.invite import decode as decode_invite
from meshllm.wire.mesh.invite import encode as encode_invite
from meshllm.wire.mesh.records import decode_record, encode_record
from tests.fuzz.mcp_target import mcp, mcp_messages

_MESH = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_KEY = MeshKey(_MESH.public_key().public_bytes_raw())
_TERMS = InviteTerms(b"serial 8", ALL_RIGHTS, 2_000_000_000, 86_400, once=True)
_NODE, _OTHER = NodeId(b"n" * 32), NodeId(b"o" * 32)


@dataclass(frozen=True, slots=True)
class FuzzTarget:
    """`seeds`: valid inputs, from which mutations reach deeper than random bytes do."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


def _accept(node: NodeId, data: bytes, signature: bytes) -> bool:
    """Takes every signature: the fuzzer is to get behind it."""
    return True


# -- between nodes


def _message(data: bytes) -> None:
    with contextlib.suppress(BadMessage):
        message = decode_message(data, _accept)
        if message is not None:
            assert decode_message(encode_message(message), _accept) == message


def _messages() -> Iterator[bytes]:
    yield encode_message(m.Ping(7))
    yield encode_message(m.Pong(7, (ModelLoad("Qwen3-8B", 1, 2),)))
    yield encode_message(m.Digest(2, bytes(range(16))))
    yield encode_message(m.Difference(1, (0, 1), ((_NODE, RecordVersion(3, 4)),)))
    yield encode_message(m.Wanted((_NODE, _OTHER)))
    yield encode_message(m.Adopted(MeshId(b"m" * 16)))
    yield encode_message(m.ReportDemand((DemandLevel("Qwen3-8B", 3),)))
    yield encode_message(Commit(b"s" * 16, 1))
    yield encode_message(Release(b"s" * 16, 1, "done"))
    for frames in _boards():
        yield frames[2 : 2 + int.from_bytes(frames[:2])]


_MOMENT = 1_800_000_000
_MESH_ID = MeshId(b"m" * 16)


class _AllShare:
    """Every node is a member."""

    def may_share(self, node: NodeId, certificate: bytes, unix: float) -> bool:
        return True

    def holder(self, certificate: bytes, unix: float) -> NodeId | None:
        return NodeId(certificate[:32])

    def own_certificate(self) -> bytes:
        return b"c" * CERTIFICATE_BYTES


def _board(data: bytes) -> None:
    """Messages about the blackboard, each with its length before it, of one peer to a node that answers them."""
    out: list[Command] = []
    links = LinkTable(_NODE, out, lambda pin: True)
    links.up(_OTHER, LinkState(Role.NODE, _MESH_ID, PeerAddress("192.0.2.1", 1), 0.01, False, 0.0))
    replica = BoardReplica(board.board_signer(_MESH.sign), _NODE, lambda: _MESH_ID, _AllShare(), links, Timers(), out)
    replica.handle(BoardOpened(1, 0, 0, (), (), _MOMENT), 0.0)
    replica.handle(PostWanted(1, EntryDraft("own")), 0.1)
    replica.handle(PostSaved(1), 0.1)
    now, at = 1.0, 0
    while at + 2 <= len(data):
        length = int.from_bytes(data[at : at + 2])
        payload, at = data[at + 2 : at + 2 + length], at + 2 + length
        now += 0.5
        with contextlib.suppress(BadMessage):
            message = decode_message(payload, _accept)
            if isinstance(message, BoardMessage):
                replica.message(_OTHER, message, now)
            elif isinstance(message, m.Digest):
                replica.hash_seen(_OTHER, message.board, now)
    replica.expire(now)
    held = [entry for entry in replica.log if entry.header.author == _NODE and entry.body == "own"]
    assert held or replica.log.flagged  # by an own signature that this fuzzer forged
    for command in out:
        if isinstance(command, Send):
            encode_message(command.message)


def _boards() -> Iterator[bytes]:
    def framed(*messages: m.Message) -> bytes:
        packed = [encode_message(message) for message in messages]
        return b"".join([len(each).to_bytes(2) + each for each in packed])

    def entry(seq: int, body: str, kind: int = 0, target: EntryId = NO_ENTRY, moment: int = 0) -> SignedEntry:
        text = body.encode()
        header = EntryHeader(
            _MESH_ID, _OTHER, 7, seq, _MOMENT * 1000 + moment, kind, "owner/name", "ada", "codex", NO_ENTRY, ("ben",),
            "issue-1" if kind == 16 else "", 60 if kind == 16 else 0, target, len(text), body_hash(text),
        )  # fmt: skip
        data, signature = board.board_signer(_MESH.sign)(header)
        return SignedEntry(header, data, signature, entry_id(data), body)

    one, chain = entry(1, "STATUS: begun"), ChainId(_OTHER, 7)
    certificate = (_OTHER + bytes(CERTIFICATE_BYTES - 32),)
    yield framed(BoardEntries((one, entry(2, "", 19, one.id)), certificate, push=True))
    yield framed(BoardEntries((one,)), BoardEntries((entry(1, "another text"),), end=True))
    yield framed(
        BoardEntries((entry(3, "claimed", 16), entry(9, "", 17, one.id, 1000)), push=True), BoardDigest(0, bytes(4))
    )
    yield framed(BoardDifference(0, (0,), (ChainState(chain, 5, 1),)), BoardEntries((one, entry(5, "x")), end=True))
    yield framed(m.Digest(0, bytes(4), b"", b"h" * 8), BoardWant((ChainRange(ChainId(_NODE, 1), 1, 9),)))
    yield framed(
        BoardDifference(1, (1,), (ChainState(chain, 5, 1, True),), reply=True), BoardWant((ChainRange(chain, 0, 0),))
    )


def _record(data: bytes) -> None:
    try:
        record = decode_record(data)
    except BadMessage:
        return
    assert decode_record(encode_record(record)) == record


def _records() -> Iterator[bytes]:
    from meshllm.core.records import FailureReport, NodeRecord, ServedModel, SplitCandidate

    yield encode_record(NodeRecord(_NODE, RecordVersion(1, 1), MeshId(b"m" * 16)))
    yield encode_record(
        NodeRecord(
            _NODE,
            RecordVersion(5, 6),
            MeshId(b"m" * 16),
            name="attic",
            addresses=(PeerAddress("192.0.2.1", 4000), PeerAddress("2001:db8::1", 4001)),
            serves=(ServedModel("Qwen3-8B", None, 32768, 4, 5 << 30, True),),
            wants=("Qwen3-32B",),
            demand=keyed([DemandLevel("Qwen3-8B", 3), DemandLevel("Qwen3-32B", 1)]),
            on_disk=("a", "b"),
            disk_sizes=(700, 0),
            loading=("a",),
            aliases=(("a", "b"),),
            failure_reports=(FailureReport(_OTHER, 3),),
            splits=(SplitCandidate("Qwen3-32B", 8 << 30, True),),
            memory=16 << 30,
            devices=(8 << 30, 8 << 30),
        )
    )


def _hello(data: bytes) -> None:
    with contextlib.suppress(BadMessage):
        message = decode_hello(data)
        assert decode_hello(encode_hello(message)) == message


def _hellos() -> Iterator[bytes]:
    from meshllm.wire.mesh.hello import Credential, Hello, HelloProof, HelloRefusal, Welcome

    yield encode_hello(HelloRefusal("protocol", "too old", "update"))
    mesh, nonce, instance = MeshId(b"m" * 16), b"n" * 32, b"i" * 8
    yield encode_hello(Hello((2, 2), _NODE, Role.NODE, mesh, Credential.CERTIFICATE, nonce, instance))
    yield encode_hello(Hello((2, 3), _NODE, Role.CLIENT, mesh, Credential.INVITE, nonce, instance, nonce, _TERMS))
    yield encode_hello(HelloProof(b"s" * 64, b"c" * CERTIFICATE_BYTES))
    yield encode_hello(HelloProof(b"s" * 64, proof=b"p" * 32))
    yield encode_hello(
        Welcome(mesh, PeerAddress("192.0.2.1", 4000), b"c" * CERTIFICATE_BYTES, (b"k" * STATEMENT_BYTES,))
    )


def _invite(data: bytes) -> None:
    with contextlib.suppress(BadInvite):
        invite = decode_invite(data.decode("utf-8", "replace"))
        assert decode_invite(encode_invite(invite)) == invite
    body = data[:600]
    packed = urlsafe_b64encode(body + hashlib.sha256(body).digest()[:4]).rstrip(b"=").decode()
    with contextlib.suppress(BadInvite):
        invite = decode_invite(f"mesh2-{packed}")
        assert decode_invite(encode_invite(invite)) == invite


def _invites() -> Iterator[bytes]:
    way = BootstrapAddress(_NODE[:16], (PeerAddress("192.0.2.1", 4000), PeerAddress("2001:db8::1", 4001)))
    text = encode_invite(Invite(MeshId(b"m" * 16), b"k" * 16, _TERMS, (way,)))
    yield text.encode()
    body = text.partition("-")[2]
    yield urlsafe_b64decode(body + "=" * (-len(body) % 4))[:-4]


def _certificate(data: bytes) -> None:
    for read in (read_certificate, read_statement):
        with contextlib.suppress(BadMessage):
            read(data, [_KEY, MeshKey(data[:32])], _accept)


def _certificates() -> Iterator[bytes]:
    yield sign_certificate(Certificate(_NODE, ALL_RIGHTS, 1, 2, b"s" * 8, _OTHER), _KEY, _MESH.sign).data
    yield sign_statement(Statement(StatementKind.EXPEL, _NODE, 1, _OTHER), _KEY, _MESH.sign).data


def _file_frames(data: bytes) -> None:
    def place(kind: int, number: int, length: int) -> memoryview:
        if length > files.MAX_FOUND_BYTES:
            raise BadMessage("too long")
        return memoryview(bytearray(length))

    for reader, decode in (
        (files.FrameReader(files.place_request), files.decode_request),
        (files.FrameReader(place), files.decode_answer),
    ):
        with contextlib.suppress(BadMessage):
            for frame in reader.feed(data):
                decode(frame)


def _frames() -> Iterator[bytes]:
    yield files.encode_request(files.HaveRequest("ab" * 32)) + files.encode_request(files.ChunkRequest(3))
    yield files.encode_request(files.FindRequest("Qwen3-8B"))
    yield files.encode_answer(files.ChunkListing(10, 5, bytes(64)))
    yield files.encode_answer(files.FileRefusal(files.FileRefusalReason.BUSY, 50, 3))


# -- HTTP

_CHUNKED = b"transfer-encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\nx-trailer: 1\r\n\r\n"


def _http_request(data: bytes) -> None:
    """Feeds the bytes in one piece and in small ones: both ways read the same requests."""
    whole, pieces = _read_requests([data]), _read_requests([data[at : at + 7] for at in range(0, len(data), 7)])
    # Once bytes are refused, how much was read before may differ.
    if whole[1] and pieces[1]:
        assert whole == pieces


def _read_requests(pieces: list[bytes]) -> tuple[list[Any], bool]:
    budget = BodyBudget()
    reader = RequestReader(lambda _: (PEER_VERDICT, budget))
    found: list[Any] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while reader.queue:
                found.append(reader.queue.popleft())
    except RequestRejected:
        return found, False
    for request in found:
        assert len(request.body) <= MAX_BODY_BYTES
        assert sum(len(name) + len(value) for name, value in request.headers.items()) <= MAX_HEAD_BYTES
    return found, True


def _http_requests() -> Iterator[bytes]:
    yield b"GET /v1/models HTTP/1.1\r\nhost: localhost:9337\r\n\r\n"
    yield b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}GET / HTTP/1.0\r\n\r\n"
    yield b"POST /v1/x HTTP/1.1\r\nhost: a\r\n" + _CHUNKED
    packed = gzip.compress(b"{}", mtime=0)
    yield b"POST http://a/x HTTP/1.1\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed) + packed
    yield b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 1\r\n\r\nx"


class _Listener:
    """Counts what an upstream connection reports: exactly one end."""

    def __init__(self) -> None:
        self.ends = 0
        self.heads = 0

    def upstream_head(self, status: int, content_type: str, headers: dict[bytes, bytes]) -> None:
        self.heads += 1

    def upstream_alive(self) -> None:
        assert not self.ends

    def upstream_data(self, data: bytes) -> None:
        assert self.heads == 1
        assert not self.ends

    def upstream_end(self, data: bytes) -> None:
        self.ends += 1

    def upstream_excessive(self, reason: str) -> None:
        self.ends += 1

    def upstream_lost(self, reason: str, *, stale: bool) -> None:
        self.ends += 1


def _http_response(data: bytes) -> None:
    from meshllm.web.http.client import UpstreamConnection

    transport = SimpleNamespace(
        write=lambda data: None, abort=lambda: None, is_closing=lambda: False, pause_reading=lambda: None,
        resume_reading=lambda: None,
    )  # fmt: skip
    pool = SimpleNamespace(closes_after_stream=True, give_back=lambda it: None, forget=lambda it: None)
    connection, listener = UpstreamConnection(pool), _Listener()  # type: ignore[arg-type]
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.send(b"POST / HTTP/1.1\r\n\r\n", listener)
    for at in range(0, len(data), 100):
        connection.data_received(data[at : at + 100])
    connection.connection_lost(None)
    assert listener.ends == 1


def _http_responses() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    yield b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n" + _CHUNKED
    yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n"


# -- APIs


def _events(data: bytes) -> None:
    buffer = EventBuffer(limit=1 << 16)
    with contextlib.suppress(ValueError):
        block = buffer.take(data)
        for event in split_events(block):
            parse_event(event)


def _streams(data: bytes) -> None:
    """Repairs never raise; a stream that has ended passes nothing on; the output does not depend on the cuts."""
    for api in (Api.CHAT, Api.COMPLETIONS, Api.MESSAGES, Api.RESPONSES):
        outputs = []
        for size in (len(data) or 1, 11):
            repair = stream_repair(api, model="m", ident="abc", created=1, request={"model": "m", "stream": True})
            output = b"".join([repair.feed(data[at : at + size]) for at in range(0, len(data), size)])
            outputs.append(output + repair.finish())
            assert repair.complete
        assert outputs[0] == outputs[1], api
        if api in (Api.CHAT, Api.COMPLETIONS):
            for form in AnswerForm:
                _ollama_lines(form, outputs[0])


def _ollama_lines(form: AnswerForm, stream: bytes) -> None:
    """The lines of any repaired stream are JSON, and the last one alone ends it."""
    answer, at = OllamaAnswer(form, "m"), Moment("now", 1.0)
    lines = [json.loads(line) for line in (answer.feed(stream, at) + answer.finish(at)).splitlines()]
    ends = [line.get("done") is True or set(line) == {"error"} for line in lines]
    assert ends == [False] * (len(lines) - 1) + [True], form


def _event_streams() -> Iterator[bytes]:
    chunk = {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a"}}]}
    yield b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n"
    yield b'event: message_start\ndata: {"type":"message_start","message":{"role":"assistant","usage":{}}}\n\n'
    yield b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}\n\n'
    yield b'data: {"type":"response.output_text.delta","output_index":0,"delta":"a"}\n\n'
    yield b'data: {"error":{"code":500,"message":"lost"}}\n\n: comment\r\n\r\n'


def _json(data: bytes) -> None:
    found = strict_json.loads_object(data)
    if found is None:
        return
    with contextlib.suppress(ValueError):
        assert strict_json.loads(strict_json.dumps(found)) == found
    for api, traits in itertools.product(Api, (ANY_TEMPLATE, STRICTEST_TEMPLATE)):
        prepare(api, found, traits)
        with contextlib.suppress(RequestRefused):
            shape_body(api, found, traits)
    for ollama in (OllamaApi.CHAT, OllamaApi.GENERATE, OllamaApi.EMBED, OllamaApi.EMBEDDINGS):
        with contextlib.suppress(RequestRefused):
            call = translate_request(ollama, found, model_of({**found, "model": "m"}))
            prepare(call.api, call.body)
    for form in AnswerForm:
        status, answer = OllamaAnswer(form, "m").whole(data, Moment("now", 1.0))
        assert (status == 200) != ("error" in json.loads(answer)), form
    for api in (Api.CHAT, Api.MESSAGES, Api.RESPONSES):
        repair_response(api, found, model="m", ident="abc", created=1, request=found)


STRICTEST_TEMPLATE = TemplateTraits(**dict.fromkeys((field.name for field in fields(TemplateTraits)), False))


def _jsons() -> Iterator[bytes]:
    yield b'{"messages":[{"role":"system","content":"a"},{"role":"tool","content":[{"type":"text"}]}]}'
    yield b'{"system":[{"type":"text","text":"a"}],"messages":[{"role":"user","content":[{"type":"tool_result"}]}]}'
    yield b'{"instructions":"a","input":[{"role":"developer","content":"b"},{"type":"function_call","name":"c"}]}'
    yield (
        b'{"model":"m","messages":[{"role":"user","content":"a","images":["aa"]},{"role":"assistant","tool_calls":'
        b'[{"function":{"name":"f","arguments":{"a":1}}}]},{"role":"tool","tool_name":"f","content":"b"}],'
        b'"tools":[{"function":{"name":"f"}}],"options":{"num_predict":1,"stop":["x"]},"think":true,"keep_alive":"5m"}'
    )
    yield b'{"model":"m","prompt":"a","system":"b","raw":true,"format":{"type":"object"},"input":["a"],"dimensions":8}'
    yield b'{"choices":[{"message":{"content":"a","tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}}]}'
    yield b'{"model":"m","input":[{"role":"assistant","content":"a"},{"type":"reasoning","summary":[]}]}'
    yield b'{"id":"r","object":"response","output":[{"type":"message","content":[{"type":"output_text","text":"a"}]}]}'
    yield b'{"type":"message","content":[{"type":"text","text":"a"}],"usage":{"input_tokens":1}}'


# -- files


def _gguf(data: bytes) -> None:
    for read in (read_header_from, read_vocabulary_from):
        with contextlib.suppress(InvalidModelFile):
            read(io.BytesIO(data), len(data), "fuzz.gguf")


def _ggufs() -> Iterator[bytes]:
    import struct

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def number(key: bytes, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    keys = [
        text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"),
        number(b"llama.block_count", 2),
        number(b"llama.embedding_length", 64),
        number(b"llama.attention.head_count", 4),
        number(b"llama.context_length", 512),
        text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text(b"a") + text(b"b") + text(b"<s>"),
        text(b"tokenizer.ggml.pre") + struct.pack("<I", 8) + text(b"default"),
    ]
    tensor = text(b"blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 64, 64, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + tensor
    yield head + bytes(-len(head) % 32) + bytes(64 * 64 * 4)


def _mesh_state(data: bytes) -> None:
    from meshllm.daemon.mesh_state import MeshState

    logging.getLogger("meshllm.daemon.mesh_state").setLevel(logging.CRITICAL)
    with TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "mesh.json").write_bytes(data)
        (home / "mesh.json").chmod(0o600)
        with contextlib.suppress(DamagedState):
            MeshState.open(home, lambda: 1000.0)
            assert (home / "mesh.json").stat().st_mode & 0o077 == 0


def _mesh_states() -> Iterator[bytes]:
    from meshllm.daemon.mesh_state import MeshState

    with TemporaryDirectory() as folder:
        MeshState.open(Path(folder), lambda: 1000.0)
        yield (Path(folder) / "mesh.json").read_bytes()


def _resume_table(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        path.write_bytes(data)
        found = read_tables(path, "ab" * 32, 1000, 100, 500)
        if found is not None:
            assert all(len(table) == 10 and max(table) <= 100 for table in found)
            assert sum(found[0]) <= 500


def _resume_tables() -> Iterator[bytes]:
    from meshllm.models.transfer.resume_table import ResumeTable

    with TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        table = ResumeTable(path, "ab" * 32, 1000, 100, 500)
        table[0] = 100
        table.sync()
        table.close()
        yield path.read_bytes()


TARGETS = {
    target.name: target
    for target in (
        FuzzTarget("message", _message, _messages),
        FuzzTarget("board", _board, _boards),
        FuzzTarget("record", _record, _records),
        FuzzTarget("hello", _hello, _hellos),
        FuzzTarget("invite", _invite, _invites),
        FuzzTarget("certificate", _certificate, _certificates),
        FuzzTarget("file-frames", _file_frames, _frames),
        FuzzTarget("http-request", _http_request, _http_requests),
        FuzzTarget("http-response", _http_response, _http_responses),
        FuzzTarget("events", _events, _event_streams),
        FuzzTarget("streams", _streams, _event_streams),
        FuzzTarget("json", _json, _jsons),
        FuzzTarget("gguf", _gguf, _ggufs),
        FuzzTarget("mcp", mcp, mcp_messages),
        FuzzTarget("mesh-state", _mesh_state, _mesh_states),
        FuzzTarget("resume-table", _resume_table, _resume_tables),
    )
}
