"""A real engine replies alike with and without speculative decoding: text, stops, grammars, probabilities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from meshllm import paths
from meshllm.core.memory import speculation
from meshllm.core.memory.speculation import PLAIN, DraftSource, Speculation
from meshllm.engine.build import builder
from meshllm.engine.processes import llama_server
from meshllm.engine.processes.llama_server import ServerPlan
from meshllm.models.gguf.header import read_header
from meshllm.models.gguf.vocabulary import read_vocabulary
from scripts.benchmarks.cut import cut
from scripts.benchmarks.speculation import Engine

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# A text that this model goes on repeating, greedily.
LINES = "".join(
    f"{number}. The quick brown fox jumps over the lazy dog near the old river bank.\n" for number in range(1, 9)
)
REPEAT = f"Copy this list.\n\n{LINES}"


@pytest.fixture(scope="module")
def model() -> Path:
    if builder.find() is None:
        pytest.skip("the engine is not built (mesh-llm engine build)")
    found = sorted(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    if not found:
        pytest.skip("the model is not here (mesh-llm download SmolLM2-135M-Instruct)")
    return found[0]


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """Engines without speculation, with n-grams, and with the model itself as draft model."""
    folder, how = tmp_path_factory.mktemp("s"), Speculation(DraftSource.DRAFT, "d")
    plans = {
        "none": ServerPlan("m", model, 2048, 2, speculation=PLAIN),
        "n-grams": ServerPlan("m", model, 2048, 2, speculation=Speculation(DraftSource.NGRAMS)),
        "self": ServerPlan("m", model, 2048, 2, speculation=how, draft_path=model),
    }
    with ExitStack() as stack:
        engines = {name: Engine(stack, folder, name, plan) for name, plan in plans.items()}
        for engine in engines.values():
            engine.wait()
        yield engines


def chat(engine: Engine, text: str, **more: Any) -> Any:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 120, **more}
    return engine.ask("/v1/chat/completions", body)


def completion(engine: Engine, **more: Any) -> Any:
    """A prompt of a list with two lines given."""
    begun = REPEAT + "\n" + "".join(LINES.splitlines(keepends=True)[:2])
    return engine.ask("/completion", {"prompt": begun, "n_predict": 60, "temperature": 0, **more})


GUESSING = ["n-grams", "self"]


def test_cut_model_keeps_the_vocabulary(model: Path, tmp_path: Path) -> None:
    small = cut(model, tmp_path / "cut.gguf", 4)
    assert read_vocabulary(small).digest == read_vocabulary(model).digest
    assert read_header(small).layers == 4
    assert read_header(small).parameters < read_header(model).parameters


@pytest.mark.parametrize("way", GUESSING)
def test_speculation_gives_the_same_text(running: dict[str, Engine], way: str) -> None:
    plain, told = completion(running["none"]), completion(running[way])
    assert "draft_n" not in plain["timings"]
    assert 0 < told["timings"]["draft_n_accepted"] <= told["timings"]["draft_n"]
    # Beyond some point, rounding may decide between two words that are equally good.
    assert told["content"][:100] == plain["content"][:100]


def test_rejected_drafts_are_bounded_by_the_credit(running: dict[str, Engine]) -> None:
    """Lines that begin alike: their ends are guessed to be as in a line before, and are not (without our patch, 233
    tokens are guessed of which 66 are right; a quarter of all the time is lost)."""
    ends = ["seven red apples", "a hat of green felt", "two pounds of salt", "nothing at all", "an old grey horse"]
    begin = "So she went down to the old market by the wide river and bought"
    lines = [f"{begin} {end}.\n" for end in [*ends, *reversed(ends)]]
    grammar = f"root ::= {json.dumps(''.join(lines[2:]))}"
    told = completion(running["n-grams"], prompt="".join(lines[:2]), n_predict=200, grammar=grammar)
    assert told["content"] == "".join(lines[2:])
    times = told["timings"]
    lost = speculation.PRICE * times["draft_n"] - times["draft_n_accepted"]
    assert 0 < lost <= 1 + times["predicted_n"] / 50


def test_draft_by_the_same_model_is_accepted(running: dict[str, Engine]) -> None:
    told = completion(running["self"], prompt="Once upon a time, in a small village by the sea,", n_predict=60)
    times = told["timings"]
    assert times["draft_n_accepted"] >= 0.8 * times["draft_n"] > 0


@pytest.mark.parametrize("way", GUESSING)
def test_speculation_respects_stop_and_length(running: dict[str, Engine], way: str) -> None:
    for most in (1, 2, 17):
        told = completion(running[way], n_predict=most)
        assert (told["tokens_predicted"], told["stop_type"]) == (most, "limit")
    told = completion(running[way], stop=["lazy dog"])
    assert told["stop_type"] == "word"
    assert told["content"].endswith("over the ")
    assert "lazy" not in told["content"]


@pytest.mark.parametrize("way", GUESSING)
def test_speculation_respects_the_grammar(running: dict[str, Engine], way: str) -> None:
    schema = {
        "type": "object",
        "properties": {name: {"enum": ["over the lazy dog near the old river bank", "no"]} for name in "ab"},
        "required": list("ab"),
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    told = chat(running[way], REPEAT, response_format=form, max_tokens=100)
    assert set(json.loads(told["choices"][0]["message"]["content"])) == set("ab")


@pytest.mark.parametrize("way", GUESSING)
def test_logprobs_equal_those_without_speculation(running: dict[str, Engine], way: str) -> None:
    """The stock engine gives no probabilities of draft tokens; our patch turns speculation off for such a request."""
    plain, told = (completion(running[name], n_probs=3) for name in ("none", way))
    assert "draft_n" not in told["timings"]
    for one, other in zip(plain["completion_probabilities"], told["completion_probabilities"], strict=True):
        assert len(other["top_logprobs"]) == 3
        assert other["logprob"] == pytest.approx(one["logprob"], abs=0.2)
    assert completion(running[way])["timings"]["draft_n"] > 0


@pytest.mark.parametrize("way", GUESSING)
async def test_engine_counts_draft_tokens(running: dict[str, Engine], way: str) -> None:
    socket = str(running[way].socket)
    before = await llama_server.draft_counts(socket)
    times = completion(running[way])["timings"]
    after = await llama_server.draft_counts(socket)
    assert after.drafted - before.drafted == times["draft_n"]
    assert after.accepted - before.accepted == times["draft_n_accepted"]


async def test_engine_without_speculation_counts_no_draft_tokens(running: dict[str, Engine]) -> None:
    completion(running["none"])
    found = await llama_server.draft_counts(str(running["none"].socket))
    assert (found.drafted, found.accepted) == (0, 0)
