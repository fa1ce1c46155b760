"""`mesh-llm doctor`: the result of each check, deadlines, and the output."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pwd
import re
import resource
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from meshllm import paths
from meshllm.cli import doctor as command
from meshllm.cli import doctor_checks as checks
from meshllm.cli.doctor import Check, run_checks, show
from meshllm.cli.doctor_checks import CheckResult, CheckState, ok
from meshllm.core.records import short
from meshllm.daemon import home_place
from meshllm.engine.probe.bindings import EngineDevice
from meshllm.engine.sandbox.policy import SandboxLayers
from meshllm.errors import UsageError
from meshllm.machine.accelerators import AcceleratorInfo
from meshllm.machine.ports import PortFact
from meshllm.machine.resources import Disk, Memory, Processors
from meshllm.models.library import other_apps
from meshllm.net.identity import Identity

GB = 10**9


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    for name in ("HOME", "MODELS", "CACHE"):
        monkeypatch.setenv(f"MESH_LLM_{name}", str(tmp_path / name.lower()))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused_tcp_port}")


def returning(finding: CheckResult) -> Callable[[], Awaitable[CheckResult]]:
    async def ask() -> CheckResult:
        return finding

    return ask


# -- checks


def test_check_python_requires_3_11() -> None:
    assert checks.check_python().state == CheckState.OK
    assert checks.check_python((3, 10, 1)).state == CheckState.ERROR


def test_check_home_warns_of_open_permissions(tmp_path: Path) -> None:
    home = tmp_path / "state"
    assert checks.check_home(home).state == CheckState.OK
    home.mkdir(mode=0o700)
    assert checks.check_home(home).state == CheckState.OK
    home.chmod(0o755)
    found = checks.check_home(home)
    assert found.state == CheckState.WARNING
    assert "chmod 700" in found.advice
    home.rmdir()
    home.write_text("")
    assert checks.check_home(home).state == CheckState.ERROR


@contextmanager
def no_file_bytes() -> Iterator[None]:
    """No write to a file succeeds, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_check_home_reports_a_home_that_takes_no_file(tmp_path: Path) -> None:
    home = tmp_path / "state"
    home.mkdir(mode=0o700)
    with no_file_bytes():
        found = checks.check_home(home)
    assert found.state == CheckState.ERROR
    assert f"{home} takes no file" in found.found
    assert "MESH_LLM_HOME" in found.advice
    assert "free)" in checks.check_home(home).found
    assert list(home.iterdir()) == []


def test_check_sandbox_says_what_is_missing_and_what_to_do() -> None:
    full = checks.check_sandbox(SandboxLayers(landlock=4, filter=True, broker=True))
    assert (full.state, full.found) == (
        CheckState.OK,
        "Landlock ABI 4, seccomp, connect broker: engine processes run in it",
    )
    partly = checks.check_sandbox(SandboxLayers(filter=True, problems=("Files cannot be confined: no Landlock.",)))
    assert partly.state is CheckState.WARNING
    assert partly.found == "incomplete (seccomp): Files cannot be confined: no Landlock."
    assert "--no-sandbox" in partly.advice
    assert checks.check_sandbox().name == "sandbox"


def test_check_memory_names_the_limit() -> None:
    processors = Processors(8, 4)
    enough = checks.check_memory(Memory(16 * GB, 8 * GB, limited=False), processors)
    assert enough == ok("memory", "8.0 GB of 16.0 GB free; 4 of 8 CPUs")
    little = checks.check_memory(Memory(2 * GB, GB, limited=True), processors)
    assert little.state == CheckState.WARNING
    assert "cgroup" in little.found


def test_check_port_names_the_program_that_uses_it() -> None:
    assert checks.check_port(PortFact(9337, free=True), "--port").state == CheckState.OK
    ours = PortFact(9337, False, holder_pid=5, holder="python", ours=True)
    assert checks.check_port(ours, "--port", own=5).state == CheckState.OK
    # The node of another home: a start of this one fails.
    for own in (None, 6):
        other = checks.check_port(ours, "--console", own=own)
        assert other.state == CheckState.ERROR
        assert other.found == "in use by the mesh-llm of another home (process 5)"
        assert re.fullmatch(r"Start with --console \d+, or stop that program\.", other.advice)
    in_use = checks.check_port(PortFact(9337, False, holder_pid=5, holder="nginx"), "--port")
    assert in_use.state == CheckState.ERROR
    assert "nginx (process 5)" in in_use.found
    assert "--port" in in_use.advice
    assert checks.check_port(PortFact(80, False, permitted=False), "--port").state == CheckState.ERROR


def test_check_disk_compares_free_space(tmp_path: Path) -> None:
    def judge(free: int) -> CheckState:
        path = tmp_path / "models"
        return checks.check_disk("models", Disk(path, 100 * GB, free), path, 5 * GB, "MESH_LLM_MODELS").state

    assert [judge(free) for free in (6 * GB, 4 * GB, 1 << 20)] == [CheckState.OK, CheckState.WARNING, CheckState.ERROR]
    assert checks.check_disk("models", None, tmp_path, 1, "MESH_LLM_MODELS").state == CheckState.ERROR


def test_check_devices_lists_accelerators_by_engine_name() -> None:
    processor = EngineDevice("CPU", "EPYC", "CPU", False, False, "", 0, 0)
    card = EngineDevice("CUDA0", "H200", "CUDA", True, False, "0:1", 100 * GB, 140 * GB)
    own = EngineDevice("MTL0", "M4", "Metal", True, True, "", 10 * GB, 16 * GB)
    assert "EPYC" in checks.check_devices([processor]).found
    found = checks.check_devices([processor, card, own]).found
    assert "CUDA0 (H200, 100.0 GB of 140.0 GB free)" in found
    assert "MTL0 (M4, 10.0 GB of 16.0 GB free, shared with the computer)" in found
    assert "EPYC" not in found
    assert checks.check_devices(None).state == CheckState.OK


def test_check_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_LLM_ENGINE_ACCELERATORS", "none")
    assert checks.check_accelerators([]).state == CheckState.OK
    unused = checks.check_accelerators([AcceleratorInfo("cuda", "H200", 140 * GB, 100 * GB)])
    assert unused.state == CheckState.WARNING
    assert "100.0 GB of 140.0 GB free" in unused.found
    monkeypatch.setenv("MESH_LLM_ENGINE_ACCELERATORS", "cuda")
    assert checks.check_accelerators([AcceleratorInfo("cuda", "H200")]).state == CheckState.OK
    monkeypatch.setenv("MESH_LLM_ENGINE_ACCELERATORS", "abacus")
    assert checks.check_accelerators([]).state == CheckState.ERROR


def test_check_compiler_and_build_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    missing = checks.check_compiler(built=False)
    assert missing.state == CheckState.ERROR
    assert missing.advice
    assert checks.check_compiler(built=True).state == CheckState.WARNING
    assert checks.check_build_tools(built=False).state == CheckState.OK, "cmake and ninja come with our own environment"


def test_check_engine_warns_if_it_is_not_built() -> None:
    found = checks.check_engine()
    assert found.state == CheckState.WARNING
    assert "mesh-llm engine build" in found.advice


def test_check_models_lists_files(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert "mesh-llm download" in checks.check_models(folder).advice
    folder.mkdir()
    (folder / "other.gguf").write_bytes(b"GGUF")
    assert checks.check_models(folder) == ok("models", "1 other GGUF files")


async def test_check_hub_warns_if_the_hub_does_not_respond() -> None:
    found = await checks.check_hub(within=20)
    assert found.state == CheckState.WARNING
    assert "HF_ENDPOINT" in found.advice


# -- the command


async def test_run_checks_keeps_the_order_and_isolates_checks_that_hang_or_fail() -> None:
    async def hang() -> CheckResult:
        await asyncio.Event().wait()
        raise AssertionError

    async def fail() -> CheckResult:
        raise ValueError("oh")

    wanted = [
        Check("hangs", hang),
        Check("fails", fail),
        Check("fine", returning(ok("fine", "yes"))),
    ]
    found = await run_checks(wanted, within=0.1)
    assert [(finding.name, finding.state) for finding in found] == [
        ("hangs", CheckState.WARNING),
        ("fails", CheckState.WARNING),
        ("fine", CheckState.OK),
    ]
    assert "no result" in found[0].found
    assert "oh" in found[1].found


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command.doctor)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


def test_doctor_prints_one_line_per_check(unused_tcp_port_factory: Callable[[], int]) -> None:
    ports = [unused_tcp_port_factory(), unused_tcp_port_factory()]
    _, output = run("--port", str(ports[0]), "--console", str(ports[1]))
    names = [line.split(":")[0].split(maxsplit=1)[1] for line in output.splitlines()]
    assert names == [
        "python", "engine", "compiler", "build tools", "accelerators", "devices",
        "sandbox", "memory", f"port {ports[0]}",
        f"port {ports[1]}", "disk", "disk", "models", "hub", "home", "identity",
    ]  # fmt: skip


def test_doctor_fails_if_a_port_is_in_use(unused_tcp_port: int) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        code, output = run("--json", "--port", str(holder.getsockname()[1]), "--console", str(unused_tcp_port))
    report = json.loads(output)
    assert code == 1
    assert report["ok"] is False
    assert [finding["state"] for finding in report["checks"] if finding["name"].startswith("port")] == ["error", "ok"]
    assert {key for finding in report["checks"] for key in finding} == {"name", "state", "found", "advice"}


def test_doctor_succeeds_without_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [ok("a", "b"), CheckResult("c", CheckState.WARNING, "d", "do e")]
    monkeypatch.setattr(command, "checks", lambda port, console: [Check("x", returning(f)) for f in findings])
    code, output = run()
    assert code == 0
    assert output == "ok       a: b\nwarning  c: d -> do e\n"
    findings.append(CheckResult("f", CheckState.ERROR, "g", "h"))
    assert run()[0] == 1


@pytest.mark.parametrize("width", [40, 80, 200])
def test_doctor_table(width: int) -> None:
    text = io.StringIO()
    findings = [ok("a", "fine [red]not markup[/red]"), CheckResult("c", CheckState.ERROR, "broken", "fix it")]
    show(findings, True, Console(file=text, force_terminal=True, width=width, color_system=None))
    printed = " ".join(text.getvalue().split())
    assert "→ fix it" in printed
    assert "[red]" in printed
    assert "1 ok, 0 warnings, 1 error." in printed


def test_check_home_looks_at_what_a_start_does_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "state"
    home.mkdir(mode=0o700)
    home.chmod(0o777)
    found = checks.check_home(home)
    assert (found.state, "Every user of this machine" in found.found) == (CheckState.ERROR, True)
    # As for a user without an account in a container, whose HOME is /.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    missing = checks.check_home(tmp_path / "new" / "home")
    assert missing.state == CheckState.ERROR
    assert f"cannot make it in {tmp_path}" in missing.found


def test_check_identity_reads_what_a_start_reads(tmp_path: Path) -> None:
    assert checks.check_identity(tmp_path).found == "made at the first start"
    assert list(tmp_path.iterdir()) == []
    node = Identity.load_or_create(tmp_path).node
    assert checks.check_identity(tmp_path) == ok("identity", f"node {short(node)}")
    (tmp_path / "mesh.json").write_text("{")
    assert checks.check_identity(tmp_path).state == CheckState.WARNING
    (tmp_path / "mesh.json").write_text(json.dumps({"format": 10**6}))
    assert checks.check_identity(tmp_path).state != CheckState.OK
    (tmp_path / "node-key").write_text("no key")
    damaged = checks.check_identity(tmp_path)
    assert (damaged.state, "is damaged" in damaged.found) == (CheckState.ERROR, True)


@pytest.mark.parametrize("variable", ["MESH_LLM_HOME", "MESH_LLM_MODELS", "MESH_LLM_CACHE"])
def test_user_without_a_home_folder_is_told_what_to_set(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that runs as a number: no account, and often no HOME."""
    for name in ("HOME", "XDG_CACHE_HOME", "MESH_LLM_HOME", "MESH_LLM_MODELS", "MESH_LLM_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def no_account(number: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", no_account)
    folder = {"MESH_LLM_HOME": paths.home, "MESH_LLM_MODELS": paths.models, "MESH_LLM_CACHE": paths.cache}[variable]
    with pytest.raises(UsageError) as refused:
        folder()
    assert variable in refused.value.advice
    monkeypatch.setenv(variable, "/srv/there")
    assert folder() == Path("/srv/there")
    # `~` of other programs' folders, which this user does not have.
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")
    paths.name_missing_home()
    assert other_apps.app_folders() is not None
    monkeypatch.delenv(variable)
    with pytest.raises(UsageError):
        folder()


def test_check_identity_says_that_two_machines_have_one(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path)
    home_place.settle(tmp_path)
    told = "Two machines have one identity: a node with the key of this one runs as b. Stop it."
    found = checks.check_identity(tmp_path, ["Something else.", told])
    assert (found.state, found.advice) == (CheckState.ERROR, "Stop it.")
    copy = tmp_path.with_name("copy of the home")
    shutil.copytree(tmp_path, copy)
    copied = checks.check_identity(copy)
    assert copied.state == CheckState.WARNING
    assert "comes from another machine or folder" in copied.found
