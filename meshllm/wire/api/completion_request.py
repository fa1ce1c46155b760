"""Prepares bodies of `/v1/completions` and translates the answers into OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from meshllm.wire.api.engine_bounds import choices_of, keep_bounds, refuse_large, wants_no_tokens
from meshllm.wire.api.prepared import Draft, Prepared
from meshllm.wire.api.refusal import invalid, unsupported
from meshllm.wire.api.response_translation import MakeTranslator, chained
from meshllm.wire.api.structured_output import CHAT_FORMAT, only_schema

Event = dict[str, Any]

# OpenAI's limit is 5.
MAX_LOGPROBS = 20


def prepare_completion(body: Mapping[str, Any]) -> Prepared:
    """A completion request as the engine keeps it; RequestRefused if it cannot."""
    draft = Draft(body)
    nothing = _no_tokens if wants_no_tokens(draft) else None
    keep_bounds(draft)
    if body.get("suffix"):
        raise unsupported("suffix", "'suffix' is not supported: the models here continue a text at its end only.")
    prompt = body.get("prompt")
    if not isinstance(prompt, str | list | None) or prompt == []:  # the engine refuses none
        raise invalid("prompt", "'prompt' must be a text, a list of texts, or a list of tokens.")
    best, count = draft.get("best_of"), choices_of(draft)
    if best is not None and best != count:
        raise unsupported("best_of", "'best_of' is not supported: all 'n' completions are returned.")
    answer = only_schema(draft, body.get(CHAT_FORMAT), CHAT_FORMAT)
    if answer is not None:
        draft.set(CHAT_FORMAT, None)
        draft.set("json_schema", answer)
    logprobs = _keep_logprobs(draft)
    prompts = len(prompt) if isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt) else 1
    return draft.prepared(
        chained(logprobs, nothing, _keep_echo(draft, prompt, count)), choices=prompts * count, each=count
    )


def _keep_logprobs(draft: Draft) -> MakeTranslator | None:
    wanted = draft.get("logprobs")
    if wanted is None or wanted is False:
        if wanted is False:
            draft.set("logprobs", None)
        # The engine's own field asks for the same.
        return partial(_listed, probs) if (probs := draft.get("n_probs")) else None
    count = 1 if wanted is True else wanted
    refuse_large("logprobs", count)
    if not isinstance(count, int) or not 0 <= count <= MAX_LOGPROBS:
        raise invalid("logprobs", f"'logprobs' must be a whole number of 0 to {MAX_LOGPROBS}.")
    if count != wanted or not count:
        draft.set("logprobs", count or 1)  # the engine takes 0 for none at all
    return partial(_listed, count)


def _listed(count: int, _ident: str) -> ListedLogprobs:
    return ListedLogprobs(count)


def _no_tokens(_ident: str) -> NoCompletionTokens:
    return NoCompletionTokens()


def _keep_echo(draft: Draft, prompt: str | list[Any] | None, count: int) -> MakeTranslator | None:
    if not draft.get("echo"):
        return None
    if draft.get("logprobs") is not None:
        raise unsupported(
            "echo", "'echo' with 'logprobs' is not supported: the prompt's log-probabilities are not computed."
        )
    prompts = prompt if isinstance(prompt, list) else [prompt]
    texts = [text for text in prompts if isinstance(text, str)]
    if len(texts) != len(prompts):
        raise unsupported("echo", "'echo' is supported for prompts that are texts only.")
    draft.set("echo", None)
    return lambda _ident: Echo([text for text in texts for _ in range(count)])


class _ChoiceTranslator:
    """Changes each choice of a chunk or an answer."""

    def event(self, event: Event) -> Iterable[Event]:
        """A chunk."""
        return (self.whole(event),)

    def whole(self, body: Event) -> Event:
        """An answer."""
        choices = body.get("choices")
        if not isinstance(choices, list):
            return body
        return {**body, "choices": [self._choice(choice) if isinstance(choice, dict) else choice for choice in choices]}

    def _choice(self, choice: Event) -> Event:
        raise NotImplementedError


class ListedLogprobs(_ChoiceTranslator):
    """Log-probabilities as lists by kind, which `/v1/completions` has, instead of one list of tokens."""

    def __init__(self, count: int) -> None:
        """`count`: how many alternatives the caller wants."""
        self._count = count
        self._offsets: dict[object, int] = {}

    def _choice(self, choice: Event) -> Event:
        found = choice.get("logprobs")
        tokens = found.get("content") if isinstance(found, dict) else None
        if not isinstance(tokens, list):
            return choice
        offset, offsets = self._offsets.get(choice.get("index"), 0), []
        for token in tokens:
            offsets.append(offset)
            offset += len(token["token"])
        self._offsets[choice.get("index")] = offset
        listed = {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [self._alternatives(token) for token in tokens] if self._count else None,
            "text_offset": offsets,
        }
        return {**choice, "logprobs": listed}

    def _alternatives(self, token: Event) -> dict[str, float]:
        return {other["token"]: other["logprob"] for other in token.get("top_logprobs", ())[: self._count]}


class NoCompletionTokens(_ChoiceTranslator):
    """Takes away the one token that the engine writes although none was asked for."""

    def whole(self, body: Event) -> Event:
        """An answer, or a chunk."""
        usage = body.get("usage")
        if isinstance(usage, dict):
            body = {**body, "usage": {**usage, "completion_tokens": 0, "total_tokens": usage.get("prompt_tokens", 0)}}
        return super().whole(body)

    def _choice(self, choice: Event) -> Event:
        return {**choice, "text": "", "logprobs": None, "finish_reason": choice.get("finish_reason") and "length"}


class Echo(_ChoiceTranslator):
    """Puts its prompt before each text."""

    def __init__(self, prompts: list[str]) -> None:
        """`prompts`: by the index of the choice."""
        self._prompts: dict[object, str] = dict(enumerate(prompts))

    def _choice(self, choice: Event) -> Event:
        prompt = self._prompts.pop(choice.get("index"), "")
        return {**choice, "text": prompt + str(choice.get("text") or "")} if prompt else choice
