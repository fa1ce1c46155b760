"""Fuzzes the targets of `tests/fuzz/targets.py`, each for some minutes in a process of its own.

Atheris (coverage-guided, on libFuzzer) is used where pip can install it: Linux on x86-64 with Python 3.11 to 3.13.
Elsewhere the mutations are blind. An input that reaches new code is kept in `tests/fuzz/corpora`; one that fails is
printed and kept as well, so that the tests fail until the defect is fixed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from rich.progress import Progress

from tests.fuzz import corpus
from tests.fuzz.mutate import MAX_BYTES, mutate
from tests.fuzz.targets import TARGETS

# Its wheels for Python 3.11, 3.12 and 3.13.
ATHERIS = """atheris==3.0.0 \\
    --hash=sha256:8a5c8a781467c187da40fd29139784193e2647058831f837f675d0bb8cbd8746 \\
    --hash=sha256:510e502c57b6dc615fb174066407af620d4c7f73cf08a782c86e7761bf12c4eb \\
    --hash=sha256:a402cdca8a650d1371050b1f9552eb4cdc488d2db64950d603c4560318365eac
"""
# Longer inputs than this are rarely worth their time.
GUIDED_BYTES = 4096
# Inputs that a corpus keeps: the shortest.
MAX_KEPT = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--minutes", type=float, default=2.0, help="for each target (default: 2)")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; can be repeated")
    parser.add_argument("--blind", action="store_true", help="without Atheris")


def run(options: argparse.Namespace) -> int:
    """Fuzz each target. Returns 1 if one failed."""
    names = options.target or sorted(TARGETS)
    libraries = None if options.blind else _install_atheris()
    print("guided by coverage (Atheris)" if libraries else "blind: without Atheris, which cannot be installed here")
    failed = []
    with Progress() as progress:
        task = progress.add_task("fuzzing", total=len(names))
        for name in names:
            progress.update(task, description=name)
            seconds = options.minutes * 60
            found = _guided(name, seconds, libraries) if libraries else _blind(name, seconds)
            if found is not None:
                failed.append(name)
                corpus.write(name, [*corpus.read(name), found])
                progress.console.print(f"[red]{name} fails[/red] for {found!r}", soft_wrap=True)
            progress.advance(task)
    print(
        f"{len(names) - len(failed)} of {len(names)} targets held"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


def _install_atheris() -> Path | None:
    """The folder of Atheris in the user's cache; None if it cannot be installed on this machine."""
    from platformdirs import user_cache_path

    folder = user_cache_path("mesh-llm") / f"atheris-{sys.version_info.major}.{sys.version_info.minor}"
    if (folder / "atheris").is_dir():
        return folder
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lock:
        lock.write(ATHERIS)
        lock.flush()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--require-hashes", "--target", str(folder), "-r", lock.name]
        done = subprocess.run(command, capture_output=True, check=False)
    return folder if done.returncode == 0 else None


def _guided(name: str, seconds: float, libraries: Path) -> bytes | None:
    """Run libFuzzer on a target and keep the inputs that reached new code. Returns an input that fails, or None."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        seeds, found, artifacts = (folder / part for part in ("seeds", "found", "artifacts"))
        for part in (seeds, found, artifacts):
            part.mkdir()
        known = [*TARGETS[name].seeds(), *corpus.read(name)]
        for number, data in enumerate(known):
            (seeds / str(number)).write_bytes(data)
        command = [sys.executable, "-m", "scripts.fuzzing.guided", name, f"-max_len={GUIDED_BYTES}"]
        command += [f"-max_total_time={max(1, int(seconds))}", f"-artifact_prefix={artifacts}/"]
        command += ["-rss_limit_mb=2048", "-timeout=20", str(found), str(seeds)]
        environment = os.environ | {"PYTHONPATH": f"{Path.cwd()}:{libraries}"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        failing = sorted(artifacts.iterdir())
        if not failing and done.returncode != 0:
            raise SystemExit(f"the fuzzer of {name} did not run:\n{done.stdout.decode('utf-8', 'replace')[-2000:]}")
        new = [path.read_bytes() for path in found.iterdir()]
        corpus.write(name, sorted([*corpus.read(name), *new], key=len)[:MAX_KEPT])
        return failing[0].read_bytes() if failing else None


def _blind(name: str, seconds: float) -> bytes | None:
    """Run a target on mutations of its corpus. Returns an input that fails, or None."""
    target = TARGETS[name]
    inputs = [*target.seeds(), *corpus.read(name)]
    rng = Random()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(rng.choice(inputs), inputs, rng)[:MAX_BYTES]
        try:
            target.run(data)
        except Exception:  # noqa: BLE001 - whatever a target raises is a find
            return data
    return None
