"""The measured targets: the fake upstream itself, mesh-llm in front of it, and other proxies as baselines."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .children import Child, free_port, get_json
from .native import BenchError, compiled

MESH_LLM = Path(sys.executable).parent / "mesh-llm"

_NGINX = """
daemon off;
master_process off;
pid {scratch}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_max_body_size 64m;
    client_body_buffer_size 1m;
    client_body_temp_path {scratch}/nginx-body;
    proxy_temp_path {scratch}/nginx-proxy;
    fastcgi_temp_path {scratch}/nginx-fastcgi;
    uwsgi_temp_path {scratch}/nginx-uwsgi;
    scgi_temp_path {scratch}/nginx-scgi;
    keepalive_requests 1000000000;
    tcp_nodelay on;
    upstream fake {{
        server 127.0.0.1:{upstream};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://fake;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Target:
    """A server that answers for the model "fake" on a loopback port."""

    name: str
    port: int
    child: Child


def _models_listed(port: int) -> bool:
    return any(model.get("id") == "fake" for model in get_json(port, "/v1/models")["data"])


def start_upstream(stack: ExitStack, scratch: Path) -> Target:
    """The fake upstream, which is also the target "direct"."""
    child = stack.enter_context(Child("direct", [str(compiled("upstream"))], scratch))
    line = child.wait_for("port", lambda: child.log.read_text().strip())
    return Target("direct", int(line.removeprefix("port ")), child)


def _start(
    stack: ExitStack, scratch: Path, name: str, command: list[str], port: int, env: dict[str, str] | None = None
) -> Target:
    child = stack.enter_context(Child(name, command, scratch, env))
    child.wait_for('answer from /v1/models that lists "fake"', lambda: _models_listed(port))
    return Target(name, port, child)


def start_ours(stack: ExitStack, scratch: Path, upstream: int) -> Target:
    """mesh-llm with the upstream as its backend and a home of its own."""
    return _start_mesh_llm(stack, scratch, "ours", [str(MESH_LLM)], {}, upstream)


def start_baseline(stack: ExitStack, scratch: Path, upstream: int, checkout: Path) -> Target:
    """mesh-llm of another checkout, run by this interpreter with the packages installed here."""
    return _start_mesh_llm(stack, scratch, "baseline", program_of(checkout), {"PYTHONPATH": str(checkout)}, upstream)


def program_of(checkout: Path) -> list[str]:
    """The command that runs mesh-llm of `checkout` with this interpreter, if PYTHONPATH names that. Raises
    BenchError."""
    entry = next((name for name in ("cli/entry.py", "cli/main.py") if (checkout / "meshllm" / name).exists()), None)
    if entry is None:
        raise BenchError(f"{checkout} is not a checkout of mesh-llm")
    module = f"meshllm.{entry.removesuffix('.py').replace('/', '.')}"
    program = f"import sys; sys.argv[0] = 'mesh-llm'; from {module} import main; sys.exit(main())"
    # -P: the folder that the benchmark runs in would come before PYTHONPATH.
    return [sys.executable, "-P", "-c", program]


def _start_mesh_llm(
    stack: ExitStack, scratch: Path, name: str, program: list[str], env: dict[str, str], upstream: int
) -> Target:
    port, console = free_port(), free_port()
    command = [*program, "--backend", f"http://127.0.0.1:{upstream}", "--port", str(port), "--console", str(console)]
    return _start(stack, scratch, name, command, port, {"MESH_LLM_HOME": str(scratch / f"home-{name}"), **env})


def start_nginx(stack: ExitStack, scratch: Path, upstream: int) -> Target | None:
    """nginx as one process, or None where it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"])
    program = shutil.which("nginx", path=path)
    if program is None:
        return None
    port = free_port()
    config = scratch / "nginx.conf"
    config.write_text(_NGINX.format(scratch=scratch, upstream=upstream, port=port))
    return _start(stack, scratch, "nginx", [program, "-e", "stderr", "-p", str(scratch), "-c", str(config)], port)


def start_aiohttp(stack: ExitStack, scratch: Path, upstream: int) -> Target:
    """What a plain aiohttp program over uvloop does."""
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("passthrough.py")), str(port), str(upstream)]
    return _start(stack, scratch, "aiohttp", command, port)


def start_other(stack: ExitStack, scratch: Path, upstream: int, wish: str) -> Target:
    """Any other proxy: NAME=COMMAND, where {port} and {upstream} stand for the two port numbers."""
    name, sign, command = wish.partition("=")
    if not (name and sign and command):
        raise BenchError(f"--other wants NAME=COMMAND, not {wish!r}")
    port = free_port()
    words = [word.replace("{port}", str(port)).replace("{upstream}", str(upstream)) for word in shlex.split(command)]
    return _start(stack, scratch, name, words, port)
