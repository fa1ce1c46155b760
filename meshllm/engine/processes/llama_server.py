"""One llama-server process: command line, environment, state lines, draft counters, and the cause of its end.

The engine listens on a Unix socket in a directory with mode 0700, so that other users of the machine cannot connect.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshllm.core.memory import speculation
from meshllm.core.memory.speculation import PLAIN, DraftCounts, DraftSource, Speculation
from meshllm.core.snapshot import Purpose
from meshllm.engine.processes import unix_http
from meshllm.engine.processes.child import ChildSpec, Ending
from meshllm.engine.sandbox import environment as sandbox_environment
from meshllm.engine.sandbox.policy import NO_SANDBOX, Sandboxing, SandboxPolicy

# Started as the router's child, llama-server prints its loading state on standard output, one JSON object a line.
STATE_PREFIX = "cmd_child_to_router:state:"
CHILD_MODE_VARIABLE = "LLAMA_SERVER_ROUTER_PORT"
# Such a child ends only after it has read this line; until then it waits, after SIGTERM too.
STOP_LINE = "cmd_router_to_child:exit"
NO_BACKTRACE_VARIABLE = "GGML_NO_BACKTRACE"
# sun_path holds 104 bytes on macOS and 108 on Linux, the final NUL included.
SOCKET_PATH_BYTES = 103
PRIVATE_PREFIX = "p-"
# OpenMP threads spin at every barrier, by default for billions of rounds: beside another busy program on two cores that
# costs 90 % of the speed. Tokens/s of a small model, idle machine and loaded machine: default 53 and 2, 2000 rounds 52
# and 16, no spinning 42 and 21. A value in the user's environment is kept.
SPIN_VARIABLE, SPIN_ROUNDS = "GOMP_SPINCOUNT", "2000"

# Names of the engine's metrics: draft tokens, and accepted draft tokens.
DRAFTED, ACCEPTED = "llamacpp:spec_decode_num_draft_tokens_total", "llamacpp:spec_decode_num_accepted_tokens_total"
# Generated tokens, and the seconds spent on them.
WRITTEN, SECONDS = "llamacpp:tokens_predicted_total", "llamacpp:tokens_predicted_seconds_total"
READ, READ_SECONDS = "llamacpp:prompt_tokens_total", "llamacpp:prompt_seconds_total"
MAX_COUNTER = 1e18
# Read by patches/11-ngram-draft-credit.patch: the cost of a draft token relative to a generated one.
PRICE_VARIABLE = "LLAMA_SPEC_NGRAM_MOD_PRICE"
# The engine answers between two batches; a batch of a long prompt takes seconds on a slow machine.
METRICS_SECONDS = 30.0
# What llama-server prints before it ends because of a template, its own or one of --chat-template-file; and the line
# with the cause, which a syntax error has not.
_TEMPLATE_REFUSED = re.compile(
    r"chat template parsing error|common_chat_verify_template|chat template is not supported"
)
_TEMPLATE_ERROR = re.compile(r"Error: (?:Jinja Exception: )?(.+)")


@dataclass(frozen=True, slots=True)
class Projector:
    """The file of a vision projector, and the accelerator that computes it (None: the CPU)."""

    path: Path
    device: str | None = None


# Tokens of prompts that a processor computes between two tokens of the streams beside them. The engine's default, 2048,
# makes these wait for 3 to 11 s each time; with 256 the prompt takes no longer. A plan may have fewer, by measurement.
# An image needs all its tokens in one batch. On accelerators a batch is a matter of milliseconds.
PROCESSOR_BATCH = 256


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """How to serve a model: `context_length` tokens for each of `slots` parallel requests.

    `pooling`: llama-server's `--pooling` (None: the file's own). `micro_batch`: tokens computed at once (None: the
    engine's default); a text that the engine cannot split must fit into it.

    `devices`: accelerators as the engine names them (empty: CPU only; None: let the engine choose). `layers`: how many
    of the model's last layers each device holds, in the same order; the output layer counts as one. `experts_aside`:
    keep the routed experts of that many first layers in the computer's memory (`--n-cpu-moe`). `checkpoints`: saved
    states per slot, for models with recurrent state or a sliding window (None: the engine's default).

    `speculation`: speculative decoding; `draft_path`: the draft model's file; `draft_device`: its accelerator (None: as
    the model).

    `workers`: Unix sockets of the workers' rpc-servers; their devices are called RPC0, RPC1, ... in `devices`.
    `environment`: further variables. `threads`: CPU threads (None: the engine's choice).

    `projector`: the vision projector, if the model has one. `files`: further files that the process reads, such as the
    other parts of the model. `memory`: the most private memory that it may take, in bytes (None: not known).

    `slot_folder`: where it writes and reads what its slots hold, on request (None: nowhere). `processor_batch`: tokens
    of prompts that a processor computes between two tokens of the streams beside them.
    """

    model_name: str
    model_path: Path
    context_length: int
    slots: int
    chat_template: Path | None = None
    prompt_cache_mib: int = 0
    purpose: Purpose = Purpose.GENERATE
    pooling: str | None = None
    micro_batch: int | None = None
    devices: tuple[str, ...] | None = None
    layers: tuple[int, ...] = ()
    experts_aside: int = 0
    checkpoints: int | None = None
    speculation: Speculation = PLAIN
    draft_path: Path | None = None
    draft_device: str | None = None
    workers: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    projector: Projector | None = None
    files: tuple[Path, ...] = ()
    memory: int | None = None
    slot_folder: Path | None = None
    processor_batch: int = PROCESSOR_BATCH


def socket_directory(home: Path) -> Path:
    """A directory with mode 0700 for Unix sockets: in `home`, or in the temporary folder if that path is too long."""
    wanted = home / "run"
    if len(os.fsencode(wanted)) + 32 > SOCKET_PATH_BYTES:
        return Path(tempfile.mkdtemp(prefix="mesh-llm-"))
    wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
    if wanted.stat().st_uid != os.getuid() or stat.S_IMODE(wanted.stat().st_mode) & 0o077:
        wanted.chmod(0o700)
    return wanted


@contextlib.contextmanager
def private_directory(directory: Path) -> Iterator[Path]:
    """A new directory in `directory`, for the sockets of one process; removed at the end, with all that is in it."""
    made = directory / (PRIVATE_PREFIX + secrets.token_hex(6))
    made.mkdir(mode=0o700)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def remove_private_directories(directory: Path) -> None:
    """Remove what processes of an earlier daemon had."""
    for left in directory.glob(f"{PRIVATE_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def socket_path(directory: Path) -> Path:
    """The path of the socket in the process's own `directory`. llama-server requires the suffix .sock."""
    return directory / "s.sock"


def arguments(program: Path, plan: ServerPlan, socket: Path) -> tuple[str, ...]:
    """The command line. `--ctx-size` is for all slots together: the engine divides it."""
    argv = [
        str(program),
        "--model", str(plan.model_path),
        "--alias", plan.model_name,
        "--host", str(socket),
        "--ctx-size", str(plan.context_length * plan.slots),
        "--parallel", str(plan.slots),
        "--no-kv-unified",
        "--cache-ram", str(plan.prompt_cache_mib),
        "--jinja",
        "--no-webui",
        "--metrics",
        "--offline",
        "--fit", "off",  # the daemon has already chosen a size that fits
    ]  # fmt: skip
    argv += _placement(plan) + _speculation(plan)
    if plan.chat_template is not None:
        argv += ["--chat-template-file", str(plan.chat_template)]
    if (projector := plan.projector) is not None:
        placement = ["--mmproj-device", projector.device] if projector.device is not None else ["--no-mmproj-offload"]
        argv += ["--mmproj", str(projector.path), *placement]
    if plan.purpose is Purpose.EMBED:
        argv += ["--embeddings"]
    elif plan.purpose is Purpose.RERANK:
        argv += ["--reranking"]  # implies --embeddings --pooling rank
    if plan.pooling is not None and plan.purpose is Purpose.EMBED:
        argv += ["--pooling", plan.pooling]
    if plan.slot_folder is not None:
        argv += ["--slot-save-path", str(plan.slot_folder)]
    if plan.threads is not None:
        argv += ["--threads", str(plan.threads)]
    if plan.micro_batch is not None:
        argv += ["--batch-size", str(plan.micro_batch), "--ubatch-size", str(plan.micro_batch)]
    elif plan.purpose is Purpose.GENERATE and not plan.devices and not plan.workers and plan.projector is None:
        argv += ["--batch-size", str(plan.processor_batch)]
    return tuple(argv)


def _placement(plan: ServerPlan) -> list[str]:
    """Options that place layers on workers, devices and the CPU."""
    argv: list[str] = []
    if plan.workers:
        argv += ["--rpc", ",".join(map(str, plan.workers))]  # before --device, which names them
        if plan.purpose is Purpose.GENERATE and plan.projector is None:
            # The engine computes two tokens anyway, to test whether its context can remove them. That run warms the
            # workers up; the warm-up run would cost another round trip.
            argv += ["--no-warmup"]
    if plan.devices is not None:
        argv += ["--device", ",".join(plan.devices) or "none", "--gpu-layers", str(sum(plan.layers))]
    if len(plan.layers) > 1:
        argv += ["--tensor-split", ",".join(map(str, plan.layers))]
    if plan.experts_aside:
        argv += ["--n-cpu-moe", str(plan.experts_aside)]
    if plan.checkpoints is not None:
        argv += ["--ctx-checkpoints", str(plan.checkpoints)]
    return argv


def _speculation(plan: ServerPlan) -> list[str]:
    """Options for speculative decoding. The engine asks n-grams before the draft model, because they cost nothing.

    ngram-mod drafts fewer tokens than it matched. ngram-simple drafts at least as many, and loses more when they are
    rejected; ngram-map-k misses most repetitions in a prompt that follows a different one.
    """
    if plan.speculation.source is DraftSource.NONE:
        return []
    kinds = ["ngram-mod"]
    argv = [
        "--spec-ngram-mod-n-match", str(speculation.MATCH_TOKENS),
        "--spec-ngram-mod-n-min", str(speculation.LEAST_COPIED_TOKENS),
        "--spec-ngram-mod-n-max", str(speculation.FAR_COPIED_TOKENS if plan.workers else speculation.COPIED_TOKENS),
    ]  # fmt: skip
    if plan.speculation.source is DraftSource.DRAFT:
        assert plan.draft_path is not None
        kinds.append("draft-simple")
        argv += [
            "--spec-draft-model", str(plan.draft_path),
            "--spec-draft-n-max", str(speculation.DRAFTED_TOKENS),
            "--spec-draft-p-min", str(speculation.SURE),
        ]  # fmt: skip
        if plan.draft_device is not None:
            argv += ["--spec-draft-device", plan.draft_device, "--spec-draft-ngl", "all"]
    return ["--spec-type", ",".join(kinds), *argv]


def environment(plan: ServerPlan) -> dict[str, str]:
    """Extra environment variables, without the inherited ones."""
    price = speculation.FAR_PRICE if plan.workers else speculation.PRICE
    # Without this, an engine that aborts starts a debugger for a backtrace, which delays its restart.
    return {NO_BACKTRACE_VARIABLE: "1", PRICE_VARIABLE: str(price), **plan.environment}


def child_spec(
    program: Path,
    plan: ServerPlan,
    socket: Path,
    log: Path,
    on_progress: Callable[[float | None], None],
    sandboxing: Sandboxing = NO_SANDBOX,
) -> ChildSpec:
    """A child that serves `plan` on `socket`. `on_progress` gets the loaded fraction (0 to 1, None: unknown)."""

    async def healthy() -> bool:
        status, _ = await unix_http.get(str(socket), "/health", deadline=4.0)
        return status == 200

    def on_line(line: str) -> bool:
        state = parse_state(line)
        if state is not None and state.name == "loading":
            on_progress(state.fraction)
        return state is not None and state.name == "ready"

    sandbox = sandboxing.apply(_policy(program, plan, socket, sandboxing))
    inherited = sandbox_environment.filtered() | sandbox.policy.variables
    inherited.setdefault(SPIN_VARIABLE, SPIN_ROUNDS)
    return ChildSpec(
        name=f"llama-server {plan.model_name}",
        argv=arguments(program, plan, socket),
        environment={**inherited, CHILD_MODE_VARIABLE: "0", **environment(plan)},
        log=log,
        probe=healthy,
        on_line=on_line,
        stop_line=STOP_LINE,
        sandbox=sandbox,
    )


def _policy(program: Path, plan: ServerPlan, socket: Path, sandboxing: Sandboxing) -> SandboxPolicy:
    """What the process needs: the model's files, its socket, those of its workers."""
    listed = plan.environment.get("GGML_RPC_FILES")
    optional = (plan.chat_template, plan.draft_path, plan.projector.path if plan.projector else None)
    # `devices` is None where the engine found no accelerator.
    encoder = plan.projector.device if plan.projector is not None else None
    named = (*(plan.devices or ()), plan.draft_device, encoder)
    accelerators = any(name != "none" and not name.startswith("RPC") for name in named if name)
    return sandboxing.policy(
        program,
        reads=(plan.model_path, *plan.files, *filter(None, optional), *([Path(listed)] if listed else [])),
        sockets=socket.parent,
        connects=plan.workers,
        accelerators=accelerators,
        memory=plan.memory,
        kind="llama-server",
        saves=plan.slot_folder,
    )


@dataclass(frozen=True, slots=True)
class EngineStateLine:
    """A state that the engine printed: `loading` (with the loaded fraction over all stages), `ready` or `sleeping`."""

    name: str
    fraction: float | None = None


def parse_state(line: str) -> EngineStateLine | None:
    """Parse a line of the engine's output; None if it is not a state line."""
    if not line.startswith(STATE_PREFIX):
        return None
    try:
        state = json.loads(line[len(STATE_PREFIX) :])
        name, payload = str(state["state"]), state.get("payload") or {}
        fraction = None
        if isinstance(payload.get("value"), int | float):
            stages = payload.get("stages") or [payload.get("current")]
            done = stages.index(payload["current"]) if payload.get("current") in stages else 0
            fraction = min(1.0, max(0.0, (done + float(payload["value"])) / len(stages)))
        return EngineStateLine(name, fraction)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


async def draft_counts(socket: str) -> DraftCounts:
    """Draft tokens of the engine at `socket` since its start; only finished requests count.

    Raises as `unix_http.get` does, and ValueError for a reply without these metrics.
    """
    status, text = await unix_http.get(socket, "/metrics", deadline=METRICS_SECONDS)
    if status != 200:
        raise ValueError(f"the engine's /metrics returned status {status}")
    return parse_draft_counts(text.decode("ascii", "replace"))


def parse_draft_counts(text: str) -> DraftCounts:
    """The counts in the text of /metrics. The engine prints six significant digits. Raises ValueError."""
    found = {
        name: _counter(value)
        for name, _, value in (line.partition(" ") for line in text.splitlines())
        if name in (DRAFTED, ACCEPTED, WRITTEN, SECONDS, READ, READ_SECONDS)
    }
    if not found.keys() >= {DRAFTED, ACCEPTED, WRITTEN, SECONDS}:
        raise ValueError("the engine's /metrics has no counters of draft tokens")
    drafted = int(found[DRAFTED])
    accepted, read = min(int(found[ACCEPTED]), drafted), int(found.get(READ, 0))
    return DraftCounts(drafted, accepted, int(found[WRITTEN]), found[SECONDS], read, found.get(READ_SECONDS, 0.0))


def _counter(text: str) -> float:
    number = float(text)
    if not 0 <= number < MAX_COUNTER:  # excludes inf and nan too
        raise ValueError(f"{text} is not a counter")
    return number


def template_problem(ending: Ending) -> str | None:
    """What is wrong with the model's chat template, if the process ended because of it; None if it did not."""
    begin = next((n for n, line in enumerate(ending.tail) if _TEMPLATE_REFUSED.search(line)), None)
    if begin is None:
        return None
    told = next((match for line in ending.tail if (match := _TEMPLATE_ERROR.match(line.strip()))), None)
    return told[1][:200] if told else "it is no valid Jinja template"


def reason_and_advice(ending: Ending, log: Path) -> tuple[str, str]:
    """Why an engine process ended, and what the user can do."""
    output = "\n".join(ending.tail).lower()
    if "failed to allocate" in output or "out of memory" in output or "alloc_tensor_range" in output:
        advice = "Not enough memory: use a smaller model or --ctx-size, or close other programs."
    elif ending.status == 128 + signal.SIGKILL and not ending.hung:
        advice = "The system probably ran out of memory: use a smaller model or --ctx-size."
    elif "no space left on device" in output:
        advice = "Free some disk space."
    else:
        advice = f"See the log: {log}."
    error = next((line for line in reversed(ending.tail) if " E " in line or "error" in line.lower()), "")
    return f"the engine process {ending.describe()}" + (f" ({error.strip()[:300]})" if error else ""), advice
