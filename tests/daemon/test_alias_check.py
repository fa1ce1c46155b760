"""The owner hears of aliases whose models are nowhere."""

from __future__ import annotations

import asyncio
import logging

import pytest

from meshllm.daemon.alias_check import AliasCheck


@pytest.mark.parametrize("unknown", [{}, {"mine": "Big-Modle"}])
async def test_alias_check_names_aliases_without_a_model_once(
    unknown: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    looked = asyncio.Event()

    def look() -> dict[str, str]:
        asyncio.get_running_loop().call_soon(looked.set)
        return unknown

    check = AliasCheck(look, seconds=0.0)
    with caplog.at_level(logging.WARNING):
        await looked.wait()
    assert len(check.notices) == len(caplog.messages) == len(unknown)
    assert all("mine means Big-Modle" in notice for notice in check.notices)
    check.close()
