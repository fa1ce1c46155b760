"""Tries each layer of the sandbox in a child process of its own: `python -I -S cage_probe.py PLANS`.

PLANS is a JSON object: layer -> plan (policy.py). The reply is one: layer -> "" if it works, otherwise the reason; and
`abi`, the version of Landlock. Imports only the standard library. Nothing is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from typing import Any

sys.path.append(os.path.abspath(f"{__file__}/../../../.."))  # noqa: PTH100 - the package, after the library

from meshllm.engine.sandbox import cage, connect_broker

SECONDS = 5


def main() -> None:
    """Reply to the request in the command line."""
    signal.alarm(SECONDS * 3)
    plans = json.loads(sys.argv[1])
    reply: dict[str, Any] = {"abi": 0}
    try:
        reply["abi"] = cage.landlock_abi()
        plans["landlock"]["landlock"] = plans["landlock"]["landlock"][: _members(reply["abi"])]
        reply["landlock"] = _in_child(lambda: _check_files(plans["landlock"]))
    except OSError as error:
        reply["landlock"] = f"{error.strerror or error}"
    reply["filter"] = _in_child(lambda: _check_network(plans["filter"])) if "filter" in plans else "unknown processor"
    reply["broker"] = _check_broker(plans["broker"]) if "broker" in plans and not reply["filter"] else reply["filter"]
    print(json.dumps(reply))  # noqa: T201


def _members(abi: int) -> int:
    """How many members of struct landlock_ruleset_attr a kernel with `abi` knows."""
    return 1 if abi < 4 else 2 if abi < 6 else 3


def _check_files(plan: dict[str, Any]) -> str:
    handled = plan["landlock"]
    # Only what every ABI knows: whether files are confined at all.
    plan["landlock"] = [(1 << 13) - 1, *(0 for _ in handled[1:])]
    cage.apply(plan)
    try:
        os.listdir("/")  # noqa: PTH208
    except PermissionError:
        return ""
    return "files outside of the rules stay readable"


def _check_network(plan: dict[str, Any]) -> str:
    cage.apply(plan)
    try:
        socket.socket(socket.AF_INET).close()
    except PermissionError:
        return ""
    return "sockets can still be made"


def _check_broker(plan: dict[str, Any]) -> str:
    """A child connects to a socket through the broker, and is refused another one."""
    folder = tempfile.mkdtemp(prefix="mesh-llm-")
    try:
        allowed, other = f"{folder}/a", f"{folder}/b"
        here, there = socket.socketpair()
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second, here, there:
            first.bind(allowed)
            second.bind(other)
            first.listen(1)
            second.listen(1)
            child = _fork(lambda: _connect_both(plan, there, allowed, other))
            there.close()
            _answer(here, allowed)
            return _result(*child)
    except OSError as error:
        return str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _connect_both(plan: dict[str, Any], there: socket.socket, allowed: str, other: str) -> str:
    listener = cage.apply(plan)
    socket.send_fds(there, [b"."], [listener])
    os.close(listener)
    there.close()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(allowed)
        connection.sendall(b".")
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(other)
    except PermissionError:
        return ""
    return "a socket outside of the list can be reached"


def _answer(here: socket.socket, allowed: str) -> None:
    """Answer the child's questions until it has ended."""
    here.settimeout(SECONDS)
    _, descriptors, _, _ = socket.recv_fds(here, 1, 1)
    for listener in descriptors:
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        while found := poller.poll(SECONDS * 1000):
            if found[0][1] & select.POLLIN == 0 or not connect_broker.answer(listener, [allowed]):
                break
        os.close(listener)


def _in_child(check: Any) -> str:
    return _result(*_fork(check))


def _fork(check: Any) -> tuple[int, int]:
    """Run `check` in a child. Returns its pid, and the pipe that its result comes from."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        try:
            found = check()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the layer does not work
            found = str(error) or repr(error)
        with contextlib.suppress(OSError):
            os.write(write_end, b"=" + found.encode())
        os._exit(0)
    os.close(write_end)
    return pid, read_end


def _result(pid: int, read_end: int) -> str:
    found = os.read(read_end, 4096).decode("utf-8", "replace")
    os.close(read_end)
    os.waitpid(pid, 0)
    return found[1:] if found.startswith("=") else "the check was killed"


if __name__ == "__main__":
    main()
