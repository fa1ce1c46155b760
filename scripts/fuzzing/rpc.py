"""Fuzzes the patched rpc-server: `llama.cpp/fuzz/rpc.cpp`, built with address and undefined-behaviour sanitizers.

clang's libFuzzer is guided by coverage; where there is no clang, a driver of our own mutates blindly. The build is
in the user's cache, by a key of the source, the patches and the compiler: minutes the first time, a minute after a
change of the fuzz target.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from meshllm import paths
from meshllm.engine.build import pin, source

ROOT = Path(__file__).resolve().parents[2] / "llama.cpp"
CORPUS = ROOT / "fuzz" / "corpus.b64"
TARGET = ("rpc.cpp", "driver.cpp")
# Of the fuzz target: bytes that its connection was granted, and that the server may hold above them.
LEASED_BYTES, MARGIN_BYTES = 1 << 20, 64 << 20
MAX_INPUT = 600
MAX_KEPT = 3000  # short ones: half a megabyte
SANITIZERS = ["-O1", "-g1", "-DNDEBUG", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
# Kernels read blocks of weights as words of other types; ggml's tables of functions differ in const.
SANITIZERS += ["-fno-sanitize=alignment", "-fno-sanitize-recover=all"]
OPTIONS = [
    "-DCMAKE_BUILD_TYPE=None", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=OFF", "-DGGML_RPC=ON", "-DGGML_OPENMP=OFF",
    "-DGGML_LLAMAFILE=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_COMMON=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_NUMBER=0", "-DLLAMA_BUILD_COMMIT=fuzz",
]  # fmt: skip
ENVIRONMENT = {"ASAN_OPTIONS": "quarantine_size_mb=8:allocator_release_to_os_interval_ms=500"}


class ToolMissing(Exception):
    """A compiler or a build tool is not installed; the message names it."""


class BuildFailed(Exception):
    """The tools are there and do not build it; the message has the end of their output."""


@dataclass(frozen=True)
class Compiler:
    """`guided`: it has libFuzzer."""

    c: str
    cxx: str
    guided: bool

    @property
    def flags(self) -> list[str]:
        return [*SANITIZERS, *(["-fno-sanitize=function", "-fsanitize=fuzzer-no-link"] if self.guided else [])]


@dataclass(frozen=True)
class Outcome:
    """What a run found. `failure`: the report of an input that failed, else "". `peak`: bytes above the start."""

    executions: int
    peak: int
    failure: str
    failing: bytes | None = None


def compiler(*, guided: bool = True) -> Compiler:
    """The best one of this machine, by its path. Raises ToolMissing."""
    if guided:
        for suffix in ("", *(f"-{number}" for number in range(21, 13, -1))):
            c, cxx = shutil.which(f"clang{suffix}"), shutil.which(f"clang++{suffix}")
            if c and cxx and _has_fuzzer(cxx):
                return Compiler(c, cxx, guided=True)
    c, cxx = shutil.which("gcc"), shutil.which("g++")
    if c and cxx:
        return Compiler(c, cxx, guided=False)
    raise ToolMissing("neither clang nor gcc is installed")


def _has_fuzzer(cxx: str) -> bool:
    """Whether that compiler has the sanitizers' libraries, which Debian has in a package of their own."""
    flags = ["-fsanitize=fuzzer,address,undefined", "-x", "c++", "-", "-o", os.devnull]
    text = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char *, unsigned long) { return 0; }'
    return subprocess.run([cxx, *flags], input=text, text=True, capture_output=True, check=False).returncode == 0


def read_corpus() -> list[bytes]:
    """The kept inputs, one in each line."""
    return [base64.b64decode(line) for line in CORPUS.read_text().split()] if CORPUS.exists() else []


def write_corpus(inputs: Sequence[bytes]) -> None:
    """Replace the kept inputs."""
    lines = sorted({base64.b64encode(data).decode() for data in inputs}, key=lambda line: (len(line), line))
    CORPUS.write_text("".join(f"{line}\n" for line in lines))


def build(chosen: Compiler, jobs: int) -> Path:
    """The fuzzer's program, built if needed. Raises ToolMissing, BuildFailed."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            raise ToolMissing(f"{tool} is not installed")
    found = pin.read_source(pin.directory())
    version = subprocess.run([chosen.cxx, "--version"], capture_output=True, check=True).stdout
    texts = [repr(found.pin).encode(), *(patch.text.encode("utf-8", "surrogateescape") for patch in found.patches)]
    key = hashlib.sha256(b"\0".join([*texts, version, repr([*chosen.flags, *OPTIONS]).encode()])).hexdigest()[:16]
    folder = paths.cache() / "fuzz" / f"rpc-{key}"
    if not (folder / "src").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        asyncio.run(_unpack(found, folder / "src"))
    if not (folder / "build" / "build.ninja").exists():
        _configure(chosen, folder)
    _run(["ninja", "-C", folder / "build", f"-j{jobs}", "ggml", "ggml-cpu", "ggml-base"])
    return _link(chosen, folder)


def _configure(chosen: Compiler, folder: Path) -> None:
    """Once in a folder, which is of these options alone: a second configuration loses them if it sees another path of
    the compiler."""
    shutil.rmtree(folder / "build", ignore_errors=True)
    flags = " ".join(chosen.flags)
    compilers: list[str] = [f"-DCMAKE_C_COMPILER={chosen.c}", f"-DCMAKE_CXX_COMPILER={chosen.cxx}"]
    launchers = [f"-DCMAKE_{name}_COMPILER_LAUNCHER=ccache" for name in ("C", "CXX") if shutil.which("ccache")]
    compilers += [f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}", *launchers]
    _run(["cmake", "-G", "Ninja", "-S", folder / "src", "-B", folder / "build", *OPTIONS, *compilers])


async def _unpack(found: pin.Source, target: Path) -> None:
    archive = await source.obtain(
        found.pin, paths.cache() / "engine" / "downloads", lambda _: None, source.fetch_with_pip
    )
    await source.prepare_tree(found, archive, target, lambda _: None)


def _link(chosen: Compiler, folder: Path) -> Path:
    names = TARGET[:1] if chosen.guided else TARGET
    files = [ROOT / "fuzz" / name for name in names]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    program = folder / f"fuzz-{digest}"
    if program.exists():
        return program
    ggml = folder / "src" / "ggml"
    includes = [ggml / "src" / "ggml-rpc", ggml / "include", ggml / "src", ggml / "src" / "ggml-cpu"]
    archives = [path for path in (folder / "build").rglob("libggml*.a") if path.name != "libggml-rpc.a"]
    flags = [
        *chosen.flags,
        *(["-fsanitize=fuzzer"] if chosen.guided else []),
        "-std=c++17",
        "-DGGML_USE_CPU",
        "-DGGML_USE_RPC",
    ]
    command: list[str | Path] = [chosen.cxx, *flags, *(f"-I{path}" for path in includes), *files]
    command += ["-o", folder / "linking"]
    _run([*command, "-Wl,--start-group", *archives, "-Wl,--end-group", "-lpthread", "-ldl"])
    (folder / "linking").replace(program)
    return program


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode != 0:
        raise BuildFailed(f"{command[0]} failed:\n{done.stdout.decode('utf-8', 'replace')[-3000:]}")


def fuzz(
    program: Path, chosen: Compiler, inputs: Sequence[bytes], *, executions: int, seconds: int, say: bool = False
) -> tuple[Outcome, list[bytes]]:
    """Run the program on `inputs` and on mutations. Returns what was found, and inputs that reached new code."""
    with tempfile.TemporaryDirectory(prefix="mesh-fuzz-") as name:
        work = Path(name)
        seeds, found = work / "seeds", work / "found"
        seeds.mkdir()
        found.mkdir()
        for number, data in enumerate(inputs):
            (seeds / str(number)).write_bytes(data)
        if chosen.guided:
            command = [
                str(program),
                f"-max_len={MAX_INPUT}",
                "-timeout=20",
                "-rss_limit_mb=0",
                f"-artifact_prefix={work}/failing-",
            ]
            command += [
                f"-runs={executions + len(inputs) if executions else -1}",
                f"-max_total_time={seconds}",
                "-print_final_stats=1",
            ]
            command += [str(found), str(seeds)]
        else:
            bound = executions if executions else 10**18
            command = [
                str(program),
                str(bound),
                str(seconds),
                str(int.from_bytes(os.urandom(4), "big")),
                str(work / "failing-input"),
            ]
            command += [str(path) for path in seeds.iterdir()]
        text, executed, peak, code = _watch(command, say)
        failing = next(iter(sorted(work.glob("failing-*"))), None)
        failure = "" if code == 0 else text[-4000:]
        outcome = Outcome(executed, peak, failure, failing.read_bytes() if failing else None)
        return outcome, [path.read_bytes() for path in found.iterdir()]


def _watch(command: list[str], say: bool) -> tuple[str, int, int, int]:
    """The end of a command's output, its executions, its peak of memory above that at the start, and its exit code."""
    lines: list[str] = []
    executed = first = peak = 0
    environment = os.environ | ENVIRONMENT
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, env=environment, errors="replace") as child:
        process = psutil.Process(child.pid)
        assert child.stdout is not None
        try:
            for line in child.stdout:
                lines = [*lines[-400:], line]
                if (count := re.match(r"#(\d+)", line)) is not None:
                    executed = max(executed, int(count[1]))
                    with contextlib.suppress(psutil.Error):
                        now = process.memory_info().rss
                        first, peak = first or now, max(peak, now)
                    if say:
                        print(line.rstrip()[:110], flush=True)
            code = child.wait()
        finally:
            child.kill()
    return "".join(lines), executed, max(0, peak - first), code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5; 0: until --executions)")
    parser.add_argument("--executions", type=int, default=0, help="how many (default: as many as the time allows)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="compiler processes (default: one a core)"
    )
    parser.add_argument("--blind", action="store_true", help="gcc and our own driver, without libFuzzer")


def run(options: argparse.Namespace) -> int:
    """Build, fuzz, keep new inputs. Returns 1 if an input failed."""
    if options.minutes <= 0 and options.executions <= 0:
        raise SystemExit("give --minutes or --executions")
    try:
        chosen = compiler(guided=not options.blind)
        print(f"building with {chosen.cxx} (minutes the first time) ...", flush=True)
        program = build(chosen, options.jobs)
    except (ToolMissing, BuildFailed) as error:
        raise SystemExit(f"the fuzzer cannot be built: {error}") from None
    kept = read_corpus()
    seconds = int(options.minutes * 60)
    outcome, new = fuzz(program, chosen, kept, executions=options.executions, seconds=seconds, say=True)
    if new:
        write_corpus(sorted({*kept, *new}, key=len)[:MAX_KEPT])
    over = outcome.peak > LEASED_BYTES + MARGIN_BYTES
    print(
        f"{outcome.executions} executions, {len(new)} new inputs, memory {outcome.peak >> 20} MB above the start "
        f"(allowed: {(LEASED_BYTES + MARGIN_BYTES) >> 20} MB)"
    )
    if outcome.failure:
        print(f"an input failed: {base64.b64encode(outcome.failing or b'').decode()}\n{outcome.failure}")
    return 1 if outcome.failure or over else 0
