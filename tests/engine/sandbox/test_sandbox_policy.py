"""What a policy allows: real paths, no wide folders, the environment, the limits, and when a cage counts as one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from meshllm.engine.probe import bindings
from meshllm.engine.processes import llama_server, rpc_server
from meshllm.engine.processes.llama_server import Projector, ServerPlan
from meshllm.engine.processes.rpc_server import WorkerPlan
from meshllm.engine.sandbox import environment, landlock, policy
from meshllm.engine.sandbox.policy import Caging, Sandboxing, SandboxLayers, SandboxPolicy, memory_limit, rules

FULL = SandboxLayers(landlock=7, filter=True, broker=True)
WRITES = landlock.WRITE_FILE | landlock.TRUNCATE | landlock.MAKE_REG | landlock.REMOVE_FILE | landlock.MAKE_SYM


def plan(folder: Path, **more: object) -> ServerPlan:
    """A plan with a model of two files in `folder`."""
    files = (folder / "m-1.gguf", folder / "m-2.gguf")
    for file in files:
        file.touch()
    return replace(ServerPlan("m", files[0], 2048, 1, files=files, devices=(), memory=1 << 30), **more)  # type: ignore[arg-type]


def server_policy(folder: Path, made: ServerPlan, layers: SandboxLayers = FULL) -> SandboxPolicy:
    """The policy of a llama-server."""
    spec = llama_server.child_spec(
        folder / "bin" / "llama-server", made, folder / "own" / "s.sock", folder / "log", lambda x: None,
        Sandboxing(layers),
    )  # fmt: skip
    assert spec.sandbox is not None
    return spec.sandbox.policy


def test_engine_reads_the_files_that_it_is_started_with(tmp_path: Path) -> None:
    for name in ("draft.gguf", "mmproj.gguf", "template.jinja", "list", "w.sock"):
        (tmp_path / name).touch()
    made = plan(
        tmp_path,
        draft_path=tmp_path / "draft.gguf",
        projector=Projector(tmp_path / "mmproj.gguf"),
        chat_template=tmp_path / "template.jinja",
        workers=(tmp_path / "w.sock",),
        environment={rpc_server.FILES_VARIABLE: str(tmp_path / "list")},
    )
    found = server_policy(tmp_path, made)
    names = {path.name for path in found.reads}
    assert names == {"m-1.gguf", "m-2.gguf", "draft.gguf", "mmproj.gguf", "template.jinja", "list"}
    assert found.connects == (tmp_path / "w.sock",)
    assert found.memory == 1 << 30
    given = dict(rules(found))
    assert all(given[str(path)] == landlock.READ for path in found.reads)


def test_nothing_outside_of_the_private_folder_is_written(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    given = dict(rules(server_policy(tmp_path, plan(tmp_path))))
    writable = {path for path, rights in given.items() if rights & WRITES and not path.startswith("/dev/")}
    assert writable == {str(tmp_path / "own")}
    assert given[str(tmp_path / "own")] == landlock.SOCKETS
    assert not {"/", "/etc", "/home", "/root", "/var", "/tmp", "/run", "/dev", str(Path.home())} & set(given)


def test_links_to_a_model_are_followed(tmp_path: Path) -> None:
    """As in the cache of the hub: snapshots/x/m.gguf -> ../../blobs/digest."""
    blob, link = tmp_path / "blobs" / "ab12", tmp_path / "snapshots" / "x" / "m.gguf"
    blob.parent.mkdir()
    link.parent.mkdir(parents=True)
    blob.touch()
    link.symlink_to("../../blobs/ab12")
    given = dict(rules(SandboxPolicy(Path("/usr/bin/true"), reads=(link,))))
    assert given[str(blob)] == landlock.READ
    assert str(link) not in given


def test_worker_reads_its_files_and_reaches_the_next_worker(tmp_path: Path) -> None:
    own = tmp_path / "own"
    made = WorkerPlan(
        "m", own / "c.sock", own / "p.sock", tmp_path / "list", {"n": tmp_path / "o.sock"}, (), 1,
        models=(tmp_path / "m.gguf",), memory=5,
    )  # fmt: skip
    spec = rpc_server.child_spec(tmp_path / "rpc", made, tmp_path / "log", Sandboxing(FULL))
    assert spec.sandbox is not None
    found = spec.sandbox.policy
    assert found == SandboxPolicy(
        tmp_path / "rpc", (tmp_path / "list", tmp_path / "m.gguf"), own, (tmp_path / "o.sock",), memory=5
    )
    assert spec.environment["TMPDIR"] == str(own)


def test_accelerators_bring_devices_and_no_limit_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "nvidia0"
    node.touch()
    monkeypatch.setattr(policy, "accelerator_nodes", lambda: (node,))
    box = Sandboxing(FULL, cache=tmp_path / "cache")
    for devices, used in (((), False), (("RPC0",), False), (("CUDA0",), True), (None, True)):
        made = plan(tmp_path, devices=devices)
        spec = llama_server.child_spec(
            tmp_path / "s", made, tmp_path / "o" / "s.sock", tmp_path / "l", lambda x: None, box
        )
        assert spec.sandbox is not None
        found = spec.sandbox.policy
        assert (found.accelerators, found.memory is None, found.scratch is not None) == (used, used, used)
        assert (dict(rules(found)).get(str(node), 0) & landlock.IOCTL_DEV != 0) == used
    assert (tmp_path / "cache" / "llama-server").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("layers", "cage"),
    [
        (FULL, True),
        (SandboxLayers(landlock=1, filter=True), True),
        (SandboxLayers(landlock=7), False),
        (SandboxLayers(filter=True, broker=True), False),
        (SandboxLayers(profile=True), True),
        (SandboxLayers(), False),
    ],
)
def test_cage_is_confined_files_and_a_confined_network(layers: SandboxLayers, cage: bool) -> None:
    box = Sandboxing(layers)
    assert box.caging is (Caging.YES if cage else Caging.NO)
    assert bool(box.refusal) is not cage
    forced = Sandboxing(layers, wanted=False)
    assert (forced.caging, forced.refusal) == (Caging.FORCED, "")


@pytest.mark.skipif(sys.platform != "linux", reason="the plan of Linux")
def test_plan_holds_only_what_the_system_has(tmp_path: Path) -> None:
    made = SandboxPolicy(Path("/usr/bin/true"), connects=(tmp_path / "w.sock",), memory=123)
    full = Sandboxing(FULL).apply(made).plan()
    assert len(full["landlock"]) == 3
    assert full["asks"]
    assert full["limits"]["RLIMIT_DATA"] == 123
    assert [len(Sandboxing(replace(FULL, landlock=abi)).apply(made).plan()["landlock"]) for abi in (0, 1, 4, 6)] == [
        0, 1, 2, 3,
    ]  # fmt: skip
    off = Sandboxing(FULL, wanted=False).apply(made).plan()
    assert (off["landlock"], off["rules"], off["filter"], off["asks"]) == ([], [], "", False)
    assert off["limits"]["RLIMIT_DATA"] == 123
    assert not Sandboxing(replace(FULL, broker=False)).apply(made).plan()["asks"]


def test_variables_that_name_wide_folders_open_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/:{Path.home()}:/tmp:/var:{tmp_path}:relative")
    found = policy.library_folders()
    assert tmp_path in found
    assert not {Path("/"), Path.home(), Path("/tmp"), Path("/var")} & set(found)


def test_environment_is_an_allow_list() -> None:
    kept = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "1",
        "GGML_VK_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "2",
    }
    dropped = {
        "HF_TOKEN": "x", "MESH_LLM_API_KEY": "x", "AWS_SECRET_ACCESS_KEY": "x", "SSH_AUTH_SOCK": "x", "LD_PRELOAD": "x",
        "LLAMA_ARG_HOST": "x", "GGML_RPC_FILES": "x", "CUDA_API_KEY": "x", "DBUS_SESSION_BUS_ADDRESS": "x",
    }  # fmt: skip
    assert environment.filtered({**kept, **dropped}) == kept


def test_memory_limit_is_above_the_plan() -> None:
    assert memory_limit(0) > policy.SERVER_MARGIN_BYTES
    assert memory_limit(100 << 30) > 125 << 30


def test_probe_reads_all_parts_of_a_model() -> None:
    parts = bindings._parts(Path("/m/big-00001-of-00003.gguf"))
    assert [path.name for path in parts] == [f"big-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    assert bindings._parts(Path("/m/small.gguf")) == [Path("/m/small.gguf")]
    assert len(bindings._parts(Path("/m/x-00001-of-99999.gguf"))) == bindings.MAX_PARTS
