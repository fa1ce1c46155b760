"""A draft model is accepted by the check of the two files exactly if the engine accepts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy
import pytest

from meshllm.core.memory.speculation import DraftSource, Speculation
from meshllm.engine.build import builder
from meshllm.engine.build.builder import Engine
from meshllm.engine.probe import bindings
from meshllm.engine.processes.llama_server import ServerPlan, arguments
from meshllm.models.gguf.vocabulary import read_vocabulary
from scripts.benchmarks.allocations import measure
from tests.engine_samples import HEADS, HIDDEN, LETTERS, WIDTH

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOKENS = ["<s>", "</s>", "\u0120", "\u010a", ".", *LETTERS, *(f"<{number}>" for number in range(300))]
NORMAL = gguf.TokenType.NORMAL


def write(
    path: Path, tokens: list[str] = TOKENS, change: Callable[[gguf.GGUFWriter], object] = lambda writer: None
) -> Path:
    """A llama model of one layer with these tokens; `change` sets further header fields."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(["\u0120 \u0120"])
    change(writer)
    random = numpy.random.default_rng(3)
    square = {f"attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
    inner = {"ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN)}
    writer.add_tensor("token_embd.weight", random.normal(0, 0.5, (len(tokens), WIDTH)).astype(numpy.float32))
    for name, shape in {**square, **inner}.items():
        writer.add_tensor(f"blk.0.{name}.weight", random.normal(0, 0.5, shape).astype(numpy.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", numpy.ones(WIDTH, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pre(name: str) -> Callable[[gguf.GGUFWriter], object]:
    return lambda writer: writer.add_tokenizer_pre(name)


def begins(token: int) -> Callable[[gguf.GGUFWriter], object]:
    return lambda writer: (writer.add_add_bos_token(True), writer.add_bos_token_id(token))


CASES: dict[str, tuple[list[str], Callable[[gguf.GGUFWriter], object], bool]] = {
    "the same": (TOKENS, pre("default"), True),
    "another pre-tokenizer": (TOKENS, pre("qwen2"), True),
    "other first tokens": (["a1", "a2", "a3", "a4", "a5", *TOKENS[5:]], pre("default"), True),
    "128 tokens fewer": (TOKENS[:-128], pre("default"), True),
    "129 tokens fewer": (TOKENS[:-129], pre("default"), False),
    "one token differs": ([*TOKENS[:-1], "other"], pre("default"), False),
    "one token differs in the shorter": ([*TOKENS[:-20], "other"], pre("default"), False),
    "a pre-tokenizer that puts a token first": (TOKENS, pre("llama-bpe"), False),
    "a token is put first": (TOKENS, begins(0), False),
    "an id that is not used": (TOKENS, lambda writer: writer.add_bos_token_id(7), True),
    "a token is put last": (TOKENS, lambda writer: writer.add_add_eos_token(True), False),
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    found = builder.find()
    if found is None:
        pytest.skip("the engine is not built (mesh-llm engine build)")
    return found


@pytest.mark.parametrize("case", CASES)
async def test_vocabularies_pair_as_in_the_engine(engine: Engine, tmp_path: Path, case: str) -> None:
    tokens, change, expected = CASES[case]
    target, draft = write(tmp_path / "t.gguf", change=pre("default")), write(tmp_path / "d.gguf", tokens, change)
    speculation = Speculation(DraftSource.DRAFT, "d")
    plan = ServerPlan("t", target, 256, 1, speculation=speculation, draft_path=draft)
    log = measure(arguments(engine.server, plan, tmp_path / "s.sock"), tmp_path).log
    paired = "vocabs are not compatible" not in log
    assert paired is ("speculative decoding context initialized" in log)
    ours, theirs = read_vocabulary(target), read_vocabulary(draft)
    assert (ours.incompatibility(theirs) == "") is paired is expected
    told = [await bindings.vocabulary(engine, path) for path in (target, draft)]
    assert [one.size for one in told] == [ours.size, theirs.size]
    assert [one.type for one in told] == [ours.kind, theirs.kind]
