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


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"devices": ()}, " --device none --gpu-layers 0"),
        ({"devices": ("CUDA0",), "layers": (25,)}, " --device CUDA0 --gpu-layers 25"),
        (
            {"devices": ("CUDA0", "CUDA1"), "layers": (20, 17), "experts_aside": 4},
            " --device CUDA0,CUDA1 --gpu-layers 37 --tensor-split 20,17 --n-cpu-moe 4",
        ),
        ({"checkpoints": 3}, " --ctx-checkpoints 3"),
    ],
)
def test_where_the_layers_go_is_told(plan: dict[str, object], expected: str) -> None:
    assert line(**plan) == line() + expected
    assert "--fit off" in line()
