"""The text of the macOS profile. Not run on a Mac: only its form and what it names are checked here."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.engine.sandbox import macos
from meshllm.engine.sandbox.policy import SandboxPolicy


def test_profile_denies_by_default_and_names_what_is_needed(tmp_path: Path) -> None:
    policy = SandboxPolicy(
        tmp_path / "bin" / "llama-server", (tmp_path / "m.gguf",), tmp_path / "own", (tmp_path / "w.sock",)
    )
    text = macos.profile(policy)
    assert text.startswith("(version 1)\n(deny default)\n")
    assert "(allow default)" not in text
    assert text.count("(") == text.count(")")
    assert all(line.startswith("(") and line.endswith(")") for line in text.splitlines())
    real = tmp_path.resolve()
    assert f'(subpath "{real}/m.gguf")' in text
    assert f'(remote unix-socket (path-literal "{real}/w.sock"))' in text
    assert f'(local unix-socket (subpath "{real}/own"))' in text
    assert "iokit" not in text
    assert "remote ip" not in text
    writes = [line for line in text.splitlines() if "file-write" in line]
    assert all("/dev/" in line or f"{real}/own" in line for line in writes)


def test_profile_opens_the_gpu_only_if_it_is_used() -> None:
    text = macos.profile(SandboxPolicy(Path("/x/llama-server"), accelerators=True, scratch=Path("/x/cache")))
    assert 'iokit-user-client-class "AGXDeviceUserClient"' in text
    assert "MTLCompilerService" in text
    assert '(allow file-read* file-write* (subpath "/x/cache"))' in text
    assert "network" not in text


def test_profile_quotes_paths() -> None:
    text = macos.profile(SandboxPolicy(Path("/x/s"), reads=(Path('/x/a") (allow default) ("\\'),)))
    assert '(subpath "/x/a\\") (allow default) (\\"\\\\")' in text
    with pytest.raises(ValueError, match="control characters"):
        macos.profile(SandboxPolicy(Path("/x/s"), reads=(Path("/x/a\n(allow default)"),)))


def test_command_runs_the_program_under_the_profile() -> None:
    policy = SandboxPolicy(Path("/x/s"))
    assert macos.command(policy, ("/x/s", "--a")) == (macos.PROGRAM, "-p", macos.profile(policy), "/x/s", "--a")
