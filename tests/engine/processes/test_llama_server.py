"""Command line and environment of llama-server, its draft counters, and the cause of its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.core.memory.speculation import DraftCounts, DraftSource, Speculation
from meshllm.core.snapshot import Purpose
from meshllm.engine.processes.llama_server import (
    PRICE_VARIABLE,
    PROCESSOR_BATCH,
    Projector,
    ServerPlan,
    arguments,
    environment,
    parse_draft_counts,
)


def served(**more: object) -> ServerPlan:
    return ServerPlan("m", Path("/m.gguf"), context_length=512, slots=4, **more)  # type: ignore[arg-type]


def whole_line(**more: object) -> str:
    return " ".join(arguments(Path("/llama-server"), served(**more), Path("/s.sock")))


def line(**more: object) -> str:
    """Without the batches of a processor."""
    return whole_line(**more).replace(f" --batch-size {PROCESSOR_BATCH}", "")


def line_end(size: int) -> str:
    return f" --reranking --batch-size {size} --ubatch-size {size}"


def test_arguments_of_a_chat_model() -> None:
    told = line()
    assert "--ctx-size 2048 --parallel 4" in told
    for option in ("--embeddings", "--reranking", "--pooling", "--batch-size", "--ubatch-size"):
        assert option not in told


def test_only_a_processor_computes_prompts_in_small_batches() -> None:
    """Streams beside a long prompt stand still for a whole batch."""
    processor: list[dict[str, object]] = [{}, {"devices": ()}]
    for plan in processor:
        assert f"--batch-size {PROCESSOR_BATCH}" in whole_line(**plan)
    others: list[dict[str, object]] = [{"devices": ("CUDA0",)}, {"workers": (Path("/w"),)}, {"purpose": Purpose.EMBED}]
    for plan in [*others, {"projector": Projector(Path("/p.gguf"))}]:
        assert "--batch-size" not in whole_line(**plan)


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
def test_arguments_of_embedding_and_rerank_models(plan: dict[str, object], expected: str) -> None:
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
def test_arguments_place_layers(plan: dict[str, object], expected: str) -> None:
    assert line(**plan) == line() + expected
    assert "--fit off" in line()


def test_arguments_of_a_split_skip_the_warmup() -> None:
    workers = {"workers": (Path("/w.sock"),)}
    assert line(**workers) == line() + " --rpc /w.sock --no-warmup"
    projector = Projector(Path("/p.gguf"))
    for plan in ({}, {**workers, "purpose": Purpose.EMBED}, {**workers, "projector": projector}):
        assert "--no-warmup" not in line(**plan)


@pytest.mark.parametrize(
    ("projector", "expected"),
    [
        (Projector(Path("/p.gguf")), " --mmproj /p.gguf --no-mmproj-offload"),
        (Projector(Path("/p.gguf"), "CUDA1"), " --mmproj /p.gguf --mmproj-device CUDA1"),
    ],
)
def test_arguments_include_the_projector(projector: Projector, expected: str) -> None:
    assert line(projector=projector) == line() + expected
    assert "mmproj" not in line()


def test_arguments_without_speculation() -> None:
    assert "--spec" not in line()
    assert "--spec" not in line(speculation=Speculation(reason="it was switched off"))


def test_arguments_of_ngram_speculation() -> None:
    told = line(speculation=Speculation(DraftSource.NGRAMS))
    assert (
        "--spec-type ngram-mod --spec-ngram-mod-n-match 12 --spec-ngram-mod-n-min 4 --spec-ngram-mod-n-max 12" in told
    )
    assert "draft" not in told


def test_arguments_of_a_draft_model() -> None:
    how = Speculation(DraftSource.DRAFT, "small")
    told = line(speculation=how, draft_path=Path("/d.gguf"))
    assert "--spec-type ngram-mod,draft-simple" in told
    assert "--spec-draft-model /d.gguf --spec-draft-n-max 8 --spec-draft-p-min 0.75" in told
    assert "--spec-draft-device" not in told
    told = line(speculation=how, draft_path=Path("/d.gguf"), draft_device="CUDA0")
    assert "--spec-draft-device CUDA0 --spec-draft-ngl all" in told


def metrics(drafted: str, accepted: str) -> str:
    return (
        "# HELP llamacpp:spec_decode_num_draft_tokens_total Speculative: Total draft tokens generated\n"
        "# TYPE llamacpp:spec_decode_num_draft_tokens_total counter\n"
        f"llamacpp:spec_decode_num_draft_tokens_total {drafted}\n"
        f"llamacpp:spec_decode_num_accepted_tokens_total {accepted}\n"
        "llamacpp:spec_decode_num_drafts_total 7\n"
        "llamacpp:tokens_predicted_total 200\n"
        "llamacpp:tokens_predicted_seconds_total 2.5\n"
    )


def test_draft_counts_are_parsed_from_metrics() -> None:
    assert parse_draft_counts(metrics("109", "86")) == DraftCounts(109, 86, 200, 2.5)
    assert parse_draft_counts(metrics("1.23457e+07", "1e+06")) == DraftCounts(12_345_700, 1_000_000, 200, 2.5)
    assert parse_draft_counts(metrics("5", "6")) == DraftCounts(5, 5, 200, 2.5)  # of a moment between the two
    prompts = "llamacpp:prompt_tokens_total 8000\nllamacpp:prompt_seconds_total 67.5\n"
    assert parse_draft_counts(prompts + metrics("9", "8")) == DraftCounts(9, 8, 200, 2.5, 8000, 67.5)


@pytest.mark.parametrize(
    "text",
    ["", "llamacpp:n_decode_total 4\n", *(metrics("9", odd) for odd in ("", "many", "nan", "inf", "-1", "1e300"))],
)
def test_metrics_without_draft_counters_raise_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_draft_counts(text)


def test_measured_batch_is_for_processors_alone() -> None:
    assert whole_line(processor_batch=96).endswith(" --batch-size 96")
    for more in ({"devices": ("CUDA0",), "layers": (9,)}, {"workers": (Path("/w.sock"),)}, {"purpose": Purpose.EMBED}):
        assert "--batch-size" not in whole_line(processor_batch=96, **more)
    assert "--batch-size 512 --ubatch-size 512" in whole_line(processor_batch=96, micro_batch=512)


def test_arguments_of_a_split_allow_longer_drafts() -> None:
    ngrams = Speculation(DraftSource.NGRAMS)
    told = [line(speculation=ngrams, **more).split() for more in ({}, {"workers": (Path("/w.sock"),)})]
    near, far = (int(words[words.index("--spec-ngram-mod-n-max") + 1]) for words in told)
    assert far > near


def test_environment_sets_the_draft_price() -> None:
    def price(**more: object) -> float:
        return float(environment(served(**more))[PRICE_VARIABLE])

    assert 0 < price(workers=(Path("/w.sock"),)) < price() <= 1
    assert environment(served(environment={"GGML_RPC_FILES": "/f"}))["GGML_RPC_FILES"] == "/f"
