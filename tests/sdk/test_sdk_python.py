"""The Python SDKs of OpenAI and Anthropic accept every stream of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.daemons import Daemon

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SMILE = "🙂"
GRAMMAR = f'root ::= "{SMILE}" [a-z ]{{1,6}}'
AT_ONCE = 4
OPEN_WAIT_SECONDS = 600.0


async def failures(one: Callable[[], Awaitable[None]], count: int) -> list[str]:
    """The errors of `count` runs of `one`, a few at a time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def attempt() -> str:
        async with gate:
            try:
                await one()
            except Exception as error:  # noqa: BLE001 - whatever an SDK raises is a finding
                return f"{type(error).__name__}: {error}"[:300]
            return ""

    return [said for said in await asyncio.gather(*(attempt() for _ in range(count))) if said]


def openai(address: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=OPEN_WAIT_SECONDS)


async def test_chat_streams_with_a_split_first_character(served: Daemon, address: str, streams: int) -> None:
    async with openai(address) as client:

        async def one() -> None:
            first: Any = None
            async with client.chat.completions.stream(
                model=served.model,
                max_tokens=12,
                temperature=0,
                messages=[{"role": "user", "content": "Say something nice."}],
                extra_body={"grammar": GRAMMAR},
            ) as stream:
                async for event in stream:
                    if event.type == "chunk":
                        first = first or event.chunk
                completion = await stream.get_final_completion()
            assert first.choices[0].delta.role == "assistant"
            assert completion.choices[0].message.role == "assistant"
            assert (completion.choices[0].message.content or "").startswith(SMILE)
            assert completion.choices[0].finish_reason

        assert await failures(one, streams) == []


async def test_message_streams_with_a_split_first_character(served: Daemon, address: str, streams: int) -> None:
    async with AsyncAnthropic(base_url=address, api_key="none", max_retries=0, timeout=OPEN_WAIT_SECONDS) as client:

        async def one() -> None:
            kinds: list[str] = []
            async with client.messages.stream(
                model=served.model,
                max_tokens=12,
                messages=[{"role": "user", "content": "Smile."}, {"role": "assistant", "content": SMILE * 8}],
                extra_body={"temperature": 0},
            ) as stream:
                async for event in stream:
                    kinds.append(event.type)
                message = await stream.get_final_message()
            assert kinds[0] == "message_start"
            assert kinds[-1] == "message_stop"
            assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1
            assert message.content[0].type == "text"
            assert message.content[0].text.startswith(SMILE)
            assert message.stop_reason

        assert await failures(one, streams) == []


async def test_response_streams_with_a_split_first_character(served: Daemon, address: str, streams: int) -> None:
    async with openai(address) as client:

        async def one() -> None:
            numbers: list[int] = []
            async with client.responses.stream(
                model=served.model,
                max_output_tokens=12,
                temperature=0,
                input="Say something nice.",
                extra_body={"grammar": GRAMMAR},
            ) as stream:
                async for event in stream:
                    numbers.append(event.sequence_number)
                response = await stream.get_final_response()
            assert numbers == list(range(len(numbers)))
            assert response.output_text.startswith(SMILE)

        assert await failures(one, streams) == []


async def test_short_streams_back_to_back(served: Daemon, address: str, short_streams: int) -> None:
    async with openai(address) as client:

        async def one() -> None:
            text, finish = "", None
            async for chunk in await client.chat.completions.create(
                model=served.model,
                max_tokens=4,
                temperature=0,
                messages=[{"role": "user", "content": "Hi"}],
                stream=True,
            ):
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    finish = choice.finish_reason or finish
            assert text
            assert finish

        assert await failures(one, short_streams) == []
