"""The command line that llama-server is started with, for each purpose of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.core.types import Purpose
from meshllm.engine.llama_server import ServerPlan, arguments


def line(**more: object) -> str:
    plan = ServerPlan("m", Path("/m.gguf"), context_length=512, slots=4, **more)  # type: ignore[arg-type]
    return " ".join(arguments(Path("/llama-server"), plan, Path("/s.sock")))


def line_end(size: int) -> str:
    return f" --reranking --batch-size {size} --ubatch-size {size}"


def test_a_model_that_generates_is_not_restricted() -> None:
    told = line()
    assert "--ctx-size 2048 --parallel 4" in told
    for option in ("--embeddings", "--reranking", "--pooling", "--batch-size", "--ubatch-size"):
        assert option not in told


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"purpose": Purpose.EMBED}, " --embeddings"),
        ({"purpose": Purpose.EMBED, "pooling": "mean"}, " --embeddings --pooling mean"),
        ({"purpose": Purpose.EMBED, "micro_batch": 512}, " --embeddings --batch-size 512 --ubatch-size 512"),
        ({"purpose": Purpose.RERANK}, " --reranking"),
        ({"purpose": Purpose.RERANK, "pooling": "rank", "micro_batch": 9}, line_end(9)),
    ],
)  # fmt: skip
def test_other_purposes_are_told(plan: dict[str, object], expected: str) -> None:
    told = line(**plan)
    assert told.endswith(expected)
    assert told == line() + expected
