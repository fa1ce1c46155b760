"""Whether an engine guesses ahead, and what is told of it."""

from __future__ import annotations

import pytest

from meshllm.core.memory import speculation
from meshllm.core.memory.speculation import DraftCounts, DraftSource, decide, obstacle


def test_decide_uses_a_draft_model_with_ngrams() -> None:
    found = decide(wanted=True, obstacle="", draft="small", why_no_draft="")
    assert (found.source, found.draft, found.reason) == (DraftSource.DRAFT, "small", "")
    assert found.max_draft_tokens == max(speculation.COPIED_TOKENS, speculation.DRAFTED_TOKENS)


def test_decide_without_a_draft_model_uses_ngrams_with_a_reason() -> None:
    found = decide(wanted=True, obstacle="", draft="", why_no_draft="there is none on this disk")
    assert (found.source, found.draft, found.reason) == (DraftSource.NGRAMS, "", "there is none on this disk")
    assert found.max_draft_tokens == speculation.COPIED_TOKENS


@pytest.mark.parametrize(
    ("wanted", "obstacle_text"),
    [(False, ""), (True, "not a text generation model"), (False, "not a text generation model")],
)
def test_decide_switches_off_with_a_reason(wanted: bool, obstacle_text: str) -> None:
    found = decide(wanted=wanted, obstacle=obstacle_text, draft="small", why_no_draft="")
    assert (found.source, found.draft, found.max_draft_tokens) == (DraftSource.NONE, "", 0)
    assert found.reason == ("not a text generation model" if wanted else "option --no-speculation")


@pytest.mark.parametrize(
    ("writes", "causal", "recurrent", "word"),
    [
        (False, True, False, "not a text generation"),
        (True, False, False, "autoregressive"),
        (True, True, True, "recurrent"),
        (True, True, False, ""),
    ],
)
def test_obstacle_of_each_kind_of_model(writes: bool, causal: bool, recurrent: bool, word: str) -> None:
    found = obstacle(writes=writes, causal=causal, recurrent=recurrent)
    assert word in found
    assert bool(found) == bool(word)


def test_ngram_draft_bounds_are_ordered() -> None:
    assert 0 < speculation.LEAST_COPIED_TOKENS <= speculation.COPIED_TOKENS <= speculation.MATCH_TOKENS


def test_draft_price_is_valid_for_the_engine() -> None:
    assert 0 < speculation.FAR_PRICE < speculation.PRICE <= 1


def test_draft_counts_add_up_over_processes() -> None:
    assert DraftCounts().acceptance is None
    both = DraftCounts(10, 5, 100, 2.0) + DraftCounts(30, 25, 100, 3.0)
    assert both == DraftCounts(40, 30, 200, 5.0)
    assert both.acceptance == 0.75
