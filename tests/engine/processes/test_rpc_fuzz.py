"""The kept inputs of the rpc-server's fuzzer, and some mutations of them: `scripts/fuzz rpc` at its smallest."""

from __future__ import annotations

import os

import pytest

from scripts.fuzzing import rpc

pytestmark = pytest.mark.engine

EXECUTIONS = 2000


def test_kept_inputs_and_mutations() -> None:
    try:
        chosen = rpc.compiler()
        program = rpc.build(chosen, os.cpu_count() or 1)
    except rpc.ToolMissing as error:
        pytest.skip(f"the fuzzer cannot be built: {error}")
    kept = rpc.read_corpus()
    assert kept
    outcome, _ = rpc.fuzz(program, chosen, kept, executions=EXECUTIONS, seconds=300)
    assert outcome.failure == ""
    assert outcome.executions >= len(kept)
    assert outcome.peak < rpc.LEASED_BYTES + rpc.MARGIN_BYTES
