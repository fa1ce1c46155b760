"""The purpose of a model, from its header."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from gguf_samples import header, pair, text, write_sample

from meshllm.core.snapshot import Purpose
from meshllm.errors import InvalidModelFile
from meshllm.models.gguf.header import POOLING_LAST, POOLING_MEAN, POOLING_NONE, POOLING_RANK, read_header
from meshllm.models.gguf.purpose import DIFFUSION, ENCODERS, ModelUsage, usage
from tests.engine_samples import causal_embedder, embedder, reranker

U32, BOOL = 4, 7
GENERATES = ModelUsage(Purpose.GENERATE)


def written(path: Path, architecture: str, pooling: int | None = None, causal: bool | None = None) -> Path:
    pairs = [pair("general.architecture", 8, text(architecture))]
    if pooling is not None:
        pairs.append(pair(f"{architecture}.pooling_type", U32, pooling.to_bytes(4, "little")))
    if causal is not None:
        pairs.append(pair(f"{architecture}.attention.causal", BOOL, bytes([causal])))
    path.write_bytes(header(pairs))
    return path


@pytest.mark.parametrize(
    ("architecture", "pooling", "causal", "expected"),
    [
        ("llama", None, None, GENERATES),
        ("llama", POOLING_NONE, True, GENERATES),
        *((name, None, False, GENERATES) for name in sorted(DIFFUSION)),
        ("pangu-embedded", None, None, GENERATES),  # a chat model, whatever its name
        ("qwen3", POOLING_LAST, None, ModelUsage(Purpose.EMBED)),
        ("qwen3", POOLING_MEAN, None, ModelUsage(Purpose.EMBED, at_once=True)),
        ("qwen3", POOLING_RANK, None, ModelUsage(Purpose.RERANK)),
        ("qwen2", POOLING_LAST, False, ModelUsage(Purpose.EMBED, at_once=True)),
        ("lfm2", None, False, ModelUsage(Purpose.EMBED, "mean", at_once=True)),
        *((name, POOLING_MEAN, False, ModelUsage(Purpose.EMBED, at_once=True)) for name in sorted(ENCODERS)),
        ("bert", None, None, ModelUsage(Purpose.EMBED, "mean", at_once=True)),
        ("bert", POOLING_RANK, False, ModelUsage(Purpose.RERANK, at_once=True)),
    ],
)
def test_usage_of_each_kind_of_model(
    tmp_path: Path, architecture: str, pooling: int | None, causal: bool | None, expected: ModelUsage
) -> None:
    assert usage(read_header(written(tmp_path / "m.gguf", architecture, pooling, causal))) == expected


def test_usage_of_a_classifier(tmp_path: Path) -> None:
    assert usage(read_header(reranker(tmp_path / "a.gguf"))) == ModelUsage(Purpose.RERANK, at_once=True)
    old = read_header(reranker(tmp_path / "b.gguf", pooling=None))
    assert (old.pooling, old.causal, old.classifier) == (POOLING_NONE, False, True)
    assert usage(old) == ModelUsage(Purpose.RERANK, "rank", at_once=True)
    # An embedding model may keep the head of the classifier it was made from: what its file says comes first.
    mixed = read_header(reranker(tmp_path / "c.gguf", pooling=gguf.PoolingType.CLS))
    assert usage(mixed) == ModelUsage(Purpose.EMBED, at_once=True)


def test_sample_headers_match_their_names(tmp_path: Path) -> None:
    assert usage(read_header(embedder(tmp_path / "a.gguf"))) == ModelUsage(Purpose.EMBED, at_once=True)
    assert usage(read_header(causal_embedder(tmp_path / "b.gguf"))) == ModelUsage(Purpose.EMBED)
    assert usage(read_header(write_sample(tmp_path / "c.gguf"))) == GENERATES
    assert embedder(tmp_path / "d.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_usage_rejects_an_unknown_pooling_type(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFile, match="pooling type 5"):
        read_header(written(tmp_path / "m.gguf", "bert", 5))


@pytest.mark.parametrize("kind", [U32, 10])
def test_usage_ignores_a_causal_flag_of_another_type(tmp_path: Path, kind: int) -> None:
    zero = bytes(4 if kind == U32 else 8)
    pairs = [pair("general.architecture", 8, text("llama")), pair("llama.attention.causal", kind, zero)]
    (tmp_path / "m.gguf").write_bytes(header(pairs))
    assert read_header(tmp_path / "m.gguf").causal
