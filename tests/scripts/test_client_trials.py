"""`scripts/clients`: the clients are pinned, a failed installation is told from a missing network, a run is resumed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from meshllm.agents.description import known_agents
from scripts.client_trials import __main__ as program
from scripts.client_trials.place import Outcome, run_client
from scripts.client_trials.trial import PROGRAMS, NotInstalled, Trial, all_trials

ROOT = Path(__file__).parents[2]
PINNED = {"pip": re.compile(r"[\w.\[\]-]+==[\d.]+(a\d+)?"), "npm": re.compile(r"@?[\w./-]+@[\d.]+")}
VALUES = {"base": "http://127.0.0.1:1", "model": "m"}


@pytest.mark.parametrize("name", sorted(all_trials()))
def test_each_client_is_pinned_and_has_its_program(name: str) -> None:
    trial = all_trials()[name]
    assert all(PINNED[trial.kind].fullmatch(package) for package in trial.packages)
    assert bool(trial.run) != bool(trial.launch)
    assert all((PROGRAMS / file).exists() for file in trial.copy)
    command = trial.command(Path("/mesh-llm"), VALUES)
    assert all(Path(word).exists() for word in command if word.startswith(f"{PROGRAMS}/"))
    assert not trial.launch or trial.launch[0] in known_agents()


def test_every_agent_of_a_registry_is_tried() -> None:
    launched = {trial.launch[0] for trial in all_trials().values() if trial.launch}
    assert set(known_agents()) - launched == {"goose"}  # in no registry; its SDK is
    assert len(all_trials()) >= 18


def test_other_versions_have_another_folder() -> None:
    one, other = (Trial("x", "pip", packages) for packages in (("a==1",), ("a==2",)))
    assert one.folder != other.folder
    assert one.folder == Trial("x", "pip", ("a==1",)).folder


def test_missing_network_is_told_from_other_failures() -> None:
    assert NotInstalled("npm error code ENOTFOUND").away
    assert NotInstalled("Failed to establish a new connection: [Errno -2]").away
    assert not NotInstalled("No matching distribution found for x==9").away


def test_outcomes_of_the_same_state_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.paths, "cache", lambda: tmp_path)
    trial = Trial("x", "pip", ("a==1",))
    program._Results().keep(trial, "one", Outcome("", 1.5, (200,), 7))
    kept = program._Results()
    found = kept.of(trial, "one")
    assert found is not None
    assert (found.works, found.seconds, found.tokens) == (True, 1.5, 7)
    assert kept.of(trial, "two") is None
    assert kept.of(trial, "") is None
    assert kept.of(Trial("x", "pip", ("a==2",)), "one") is None
    (tmp_path / "clients" / program.RESULTS).write_text("{")
    assert program._Results().of(trial, "one") is None


def test_unknown_client_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["clients", "nobody"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert "no client is called nobody" in capsys.readouterr().err


def test_list_names_each_client(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["clients", "--list"])
    assert program.main() == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(all_trials())


@pytest.mark.skipif(sys.platform != "linux", reason="the command setsid and the environment of processes are Linux's")
def test_what_a_client_leaves_in_another_session_is_ended(tmp_path: Path) -> None:
    words = ["/bin/sh", "-c", "setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $!; sleep 0.2"]
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    status, said = run_client(words, env, tmp_path, tmp_path / "log", 30.0)
    assert status == 0
    assert said.strip().isdigit()
    left = [process for process in psutil.process_iter() if _home(process) == str(tmp_path)]
    _, alive = psutil.wait_procs(left, 10.0)
    assert not alive


@pytest.mark.skipif(sys.platform != "linux", reason="the command setsid and the environment of processes are Linux's")
def test_run_that_is_ended_in_the_middle_of_a_trial_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from pathlib import Path; from scripts.client_trials.place import run_client\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))\n"
        "words = ['/bin/sh', '-c', 'setsid sleep 600 >/dev/null 2>&1 & sleep 600 & echo begun; wait']\n"
        "home = Path(sys.argv[1])\n"
        "run_client(words, {'HOME': str(home), 'PATH': '/usr/bin:/bin'}, home, home / 'log', 600.0)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "log").exists() or not (tmp_path / "log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        begun = [process for process in psutil.process_iter() if _home(process) == str(tmp_path)]
        assert len(begun) >= 3
        run.terminate()
        assert run.wait(60) == 128 + signal.SIGTERM
        assert not psutil.wait_procs(begun, 10.0)[1]
    finally:
        run.kill()
        for process in psutil.process_iter():
            if _home(process) == str(tmp_path):
                process.kill()


def _home(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("HOME")
    except psutil.Error:
        return None
