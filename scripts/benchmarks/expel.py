"""`scripts/bench expel`: how fast an expelled member is out of every table and link of a mesh of real daemons.

Each node's table and links are read from its event stream, so that no polling is part of the figure. The baseline of
the same run is the time of one status request to each of the nodes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

from . import report
from .children import owner_headers
from .mesh_nodes import TIMEOUT_S, Node, Nodes
from .native import BenchError

MOST_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--nodes", type=int, default=5, help="nodes of the mesh (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="meshes, one member expelled in each (default 3)")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 if the bar is not met."""
    out: list[float] = []
    status: list[float] = []
    for number in range(options.rounds):
        report.progress(f"expelling, round {number + 1} of {options.rounds}")
        with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch, ExitStack() as stack:
            nodes = Nodes(stack, Path(scratch))
            members = _mesh(nodes, options.nodes)
            status.append(_statuses(members))
            out.append(_expel(members))
    report.progress("")
    bars = [report.bar("expelled member out of every table and link, s (worst)", max(out), MOST_S, at_most=True)]
    if options.json:
        print(report.as_json("expel", bars, measured={"expelled_s": out, "statuses_s": status}, notes=[]))
    else:
        rows = [
            ["expelled member out of every table and link", f"{median(out):.3f}", f"{max(out):.3f}"],
            [f"a status of each of {options.nodes} nodes", f"{median(status):.3f}", f"{max(status):.3f}"],
        ]
        report.show("expel", ["", "median, s", "worst, s"], rows, bars, [])
    return int(not all(bar.met for bar in bars))


def _mesh(nodes: Nodes, count: int) -> list[Node]:
    """Daemons without models that all know each other."""
    first = nodes.start("n0")
    invite = nodes.invite(first)
    members = [first, *(nodes.start(f"n{number}", "--join", f"@{invite}") for number in range(1, count))]
    for node in members:
        node.child.wait_for("all members", lambda node=node: len(_alive(node)) == count - 1, TIMEOUT_S)
    return members


def _alive(node: Node) -> list[str]:
    return [peer["name"] for peer in node.peers() if peer["status"] == "alive"]


def _statuses(members: list[Node]) -> float:
    began = time.monotonic()
    for node in members:
        node.status()
    return time.monotonic() - began


def _expel(members: list[Node]) -> float:
    """Expel the last member at the first; seconds until no other node has it in its table or holds a link to it."""
    *others, last = members
    with ThreadPoolExecutor(len(others)) as pool, ExitStack() as stack:
        streams = [stack.enter_context(closing(_events(node))) for node in others]
        waiting = [pool.submit(_until_gone, stream, last.name) for stream in streams]
        began = time.monotonic()
        body = json.dumps({"node": last.name}).encode()
        headers = {**owner_headers(members[0].home), "content-type": "application/json"}
        url = f"http://127.0.0.1:{members[0].console}/api/members/expel"
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=TIMEOUT_S) as answer:
            json.load(answer)
        return max(future.result() for future in waiting) - began


def _events(node: Node) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", node.console, timeout=TIMEOUT_S)
    connection.request("GET", "/api/events", headers=owner_headers(node.home))
    return connection


def _until_gone(connection: http.client.HTTPConnection, name: str) -> float:
    """When the node's status has the member neither alive nor linked (monotonic)."""
    with connection.getresponse() as response:
        event = b""
        for line in response:
            if line.startswith(b"event: "):
                event = line[7:].strip()
            elif line.startswith(b"data: ") and event == b"status":
                peers = (json.loads(line[6:])["mesh"] or {"peers": []})["peers"]
                if not any(peer["name"] == name and (peer["linked"] or peer["status"] == "alive") for peer in peers):
                    return time.monotonic()
    raise BenchError("the event stream ended before the expelled member was out")
