"""One llama-server: its command line, its output, and what its end means.

The engine listens on a Unix socket in a directory only we can enter, so nobody reaches it but through our gateway.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshllm.core.memory import speculation
from meshllm.core.memory.speculation import PLAIN, DraftCounts, DraftSource, Speculation
from meshllm.core.snapshot import Purpose
from meshllm.engine.processes import unix_http
from meshllm.engine.processes.child import ChildSpec, Ending

# Started as the router's child, llama-server prints its loading state on standard output, one JSON object a line.
STATE_PREFIX = "cmd_child_to_router:state:"
CHILD_MODE_VARIABLE = "LLAMA_SERVER_ROUTER_PORT"
# As such it does not end before its router has said this: until then it waits for another line (after SIGTERM too).
FAREWELL = "cmd_router_to_child:exit"
NO_BACKTRACE_VARIABLE = "GGML_NO_BACKTRACE"
# sun_path holds 104 bytes on macOS and 108 on Linux, the final NUL included.
SOCKET_PATH_BYTES = 103
# What a child may inherit of our environment: no secrets, and nothing that would change its command line (LLAMA_ARG_*).
INHERITED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)  # fmt: skip
# OpenMP's threads spin at every barrier, for billions of rounds by default: next to another busy program on two cores
# that costs nine tenths of the speed. Measured, tokens/s of a small model, alone and beside load: default 53 and 2, two
# thousand rounds 52 and 16, sleeping at once 42 and 21. Whoever wants another sets the variable.
SPIN_VARIABLE, SPIN_ROUNDS = "GOMP_SPINCOUNT", "2000"

# Among the engine's metrics: tokens guessed, and of those the right ones.
DRAFTED, ACCEPTED = "llamacpp:spec_decode_num_draft_tokens_total", "llamacpp:spec_decode_num_accepted_tokens_total"
# And tokens written, with the seconds that took.
WRITTEN, SECONDS = "llamacpp:tokens_predicted_total", "llamacpp:tokens_predicted_seconds_total"
MOST_TOKENS = 1e18
# What a copied token costs, for a patch of ours: a request copies no more than it can afford to be wrong.
PRICE_VARIABLE = "LLAMA_SPEC_NGRAM_MOD_PRICE"
# It answers between two steps of its work, which for a long prompt on a slow machine take some seconds.
GUESSES_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Projector:
    """The file that turns pictures into tokens, and the accelerator that holds it (None: the processor computes it)."""

    path: Path
    device: str | None = None


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """How a model is to be served: `context_length` tokens for each of `slots` requests at a time.

    `pooling`: the name of llama-server's `--pooling`, where the file's own will not do. `micro_batch`: tokens computed
    in one go (None: the engine's default); a text that the engine cannot take in pieces must fit in it.

    `devices`: the accelerators to use, as the engine names them (none: the processor alone; None: there are none to
    choose from), and `layers` how many of the model's last layers each holds, in the same order, the output counted as
    one. `experts_aside`: the routed experts of so many of the first layers stay in the computer's memory all the same.
    `checkpoints`: how many states of each slot are kept to go back to, for models that forget (None: the engine's).

    `speculation`: how it guesses ahead; `draft_path` is the smaller model's file, `draft_device` the accelerator that
    holds it (None: as the model itself).

    `workers`: the sockets behind which other nodes hold layers; the engine calls the devices there RPC0, RPC1 and so on
    among its `devices`, those of the first worker first. `environment` is what it must be told beside, `threads` how
    many of the processor it uses (None: the engine's choice).

    `projector`: what lets the model see pictures, if it does.
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


def socket_directory(home: Path) -> Path:
    """A directory for Unix sockets that only this user can enter: in `home`, or where paths are short enough."""
    wanted = home / "run"
    if len(os.fsencode(wanted)) + 32 > SOCKET_PATH_BYTES:
        return Path(tempfile.mkdtemp(prefix="mesh-llm-"))
    wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
    if wanted.stat().st_uid != os.getuid() or stat.S_IMODE(wanted.stat().st_mode) & 0o077:
        wanted.chmod(0o700)
    return wanted


def socket_path(directory: Path) -> Path:
    """A fresh socket path; llama-server takes names that end in .sock for Unix sockets."""
    return directory / f"{secrets.token_hex(6)}.sock"


def arguments(program: Path, plan: ServerPlan, socket: Path) -> tuple[str, ...]:
    """The command line. The engine divides `--ctx-size` between its slots, so that each gets the whole context."""
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
        "--fit", "off",  # what fits has been decided, with the engine's own arithmetic, and said
    ]  # fmt: skip
    argv += _placement(plan) + _speculation(plan)
    if plan.chat_template is not None:
        argv += ["--chat-template-file", str(plan.chat_template)]
    if (projector := plan.projector) is not None:
        where = ["--mmproj-device", projector.device] if projector.device is not None else ["--no-mmproj-offload"]
        argv += ["--mmproj", str(projector.path), *where]
    if plan.purpose is Purpose.EMBED:
        argv += ["--embeddings"]
    elif plan.purpose is Purpose.RERANK:
        argv += ["--reranking"]  # which is --embeddings --pooling rank
    if plan.pooling is not None and plan.purpose is Purpose.EMBED:
        argv += ["--pooling", plan.pooling]
    if plan.threads is not None:
        argv += ["--threads", str(plan.threads)]
    if plan.micro_batch is not None:
        argv += ["--batch-size", str(plan.micro_batch), "--ubatch-size", str(plan.micro_batch)]
    return tuple(argv)


def _placement(plan: ServerPlan) -> list[str]:
    """Where the layers go."""
    argv: list[str] = []
    if plan.workers:
        argv += ["--rpc", ",".join(map(str, plan.workers))]  # before --device, which names them
        if plan.purpose is Purpose.GENERATE and plan.projector is None:
            # Before it serves it computes two tokens anyway, to see whether its memory can forget them: over a wire a
            # second such run costs a round trip, and with what it is to warm up is warm then.
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
    """How it guesses ahead. The kinds are asked in an order of the engine's own: n-grams cost nothing, so they are
    before a draft. Of those, the kind that copies less than it matched: another (ngram-simple) copies as much at least,
    and loses more when it is wrong; the third (ngram-map-k) overlooks most of a prompt that follows a different one."""
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
    """What the engine is told beside its command line, without what it inherits."""
    price = speculation.FAR_PRICE if plan.workers else speculation.PRICE
    # When it aborts, the engine would start a debugger for a backtrace, and only then be started again.
    return {NO_BACKTRACE_VARIABLE: "1", PRICE_VARIABLE: str(price), **plan.environment}


def child_spec(
    program: Path,
    plan: ServerPlan,
    socket: Path,
    log: Path,
    on_progress: Callable[[float | None], None],
) -> ChildSpec:
    """A child that serves `plan` on `socket`. `on_progress` hears the loaded fraction."""

    async def healthy() -> bool:
        status, _ = await unix_http.get(str(socket), "/health", deadline=4.0)
        return status == 200

    def on_line(line: str) -> bool:
        state = parse_state(line)
        if state is not None and state.name == "loading":
            on_progress(state.fraction)
        return state is not None and state.name == "ready"

    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    inherited.setdefault(SPIN_VARIABLE, SPIN_ROUNDS)
    return ChildSpec(
        name=f"llama-server {plan.model_name}",
        argv=arguments(program, plan, socket),
        environment={**inherited, CHILD_MODE_VARIABLE: "0", **environment(plan)},
        log=log,
        probe=healthy,
        on_line=on_line,
        farewell=FAREWELL,
    )


@dataclass(frozen=True, slots=True)
class EngineStateLine:
    """What the engine said of itself: `loading` (with the fraction loaded, over all stages), `ready`, `sleeping`."""

    name: str
    fraction: float | None = None


def parse_state(line: str) -> EngineStateLine | None:
    """Read one line of the engine's output; None if it is not about its state."""
    if not line.startswith(STATE_PREFIX):
        return None
    try:
        told = json.loads(line[len(STATE_PREFIX) :])
        name, payload = str(told["state"]), told.get("payload") or {}
        fraction = None
        if isinstance(payload.get("value"), int | float):
            stages = payload.get("stages") or [payload.get("current")]
            done = stages.index(payload["current"]) if payload.get("current") in stages else 0
            fraction = min(1.0, max(0.0, (done + float(payload["value"])) / len(stages)))
        return EngineStateLine(name, fraction)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


async def guesses(socket: str) -> DraftCounts:
    """What became of the guesses of the engine at `socket` since it started, finished requests only. Raises as
    `unix_http.get` does, and ValueError for an answer that says nothing of it."""
    status, text = await unix_http.get(socket, "/metrics", deadline=GUESSES_SECONDS)
    if status != 200:
        raise ValueError(f"the engine's metrics answer {status}")
    return parse_guesses(text.decode("ascii", "replace"))


def parse_guesses(text: str) -> DraftCounts:
    """The same, from the text. The engine writes six digits of each number. Raises ValueError."""
    found = {
        name: _number(value)
        for name, _, value in (line.partition(" ") for line in text.splitlines())
        if name in (DRAFTED, ACCEPTED, WRITTEN, SECONDS)
    }
    if len(found) < 4:
        raise ValueError("the engine's metrics say nothing of guesses")
    drafted = int(found[DRAFTED])
    return DraftCounts(drafted, min(int(found[ACCEPTED]), drafted), int(found[WRITTEN]), found[SECONDS])


def _number(text: str) -> float:
    number = float(text)
    if not 0 <= number < MOST_TOKENS:  # nor is it infinite, or no number
        raise ValueError(f"{text} is no number of tokens")
    return number


def reason_and_advice(ending: Ending, log: Path) -> tuple[str, str]:
    """Why an engine process ended, for people, and what to do."""
    words = ending.words()
    complaint = next((line for line in reversed(ending.tail) if " E " in line or "error" in line.lower()), "")
    told = "\n".join(ending.tail).lower()
    if "failed to allocate" in told or "out of memory" in told or "alloc_tensor_range" in told:
        advice = "There is not enough memory: choose a smaller --ctx-size or model, or close other programs."
    elif "sigkill" in words.lower():
        advice = "If nobody killed it, the system ran out of memory: choose a smaller --ctx-size or model."
    else:
        advice = f"Its last words are in {log}."
    return (f"the engine process ended: {words}" + (f" ({complaint.strip()[:300]})" if complaint else "")), advice
