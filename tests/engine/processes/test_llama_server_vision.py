"""The real engine with a vision projector: it accepts images and stays within the planned memory."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from meshllm import paths
from meshllm.engine.build import builder
from meshllm.engine.processes.llama_server import Projector, ServerPlan
from meshllm.models.gguf.projector import projector_bytes
from scripts.benchmarks.speculation import Engine
from tests import engine_samples

pytestmark = [pytest.mark.engine, pytest.mark.slow]

QUESTION = {"type": "text", "text": "What is this?"}


@pytest.fixture(scope="module")
def model() -> Path:
    if builder.find() is None:
        pytest.skip("the engine is not built (mesh-llm engine build)")
    found = sorted(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    if not found:
        pytest.skip("the model is not here (mesh-llm download SmolLM2-135M-Instruct)")
    return found[0]


def memory(engine: Engine) -> int:
    """Private memory in bytes."""
    return int(psutil.Process(engine.child.process.pid).memory_info().rss)


def test_image_changes_the_reply(model: Path, tmp_path: Path) -> None:
    """A tiny projector with random weights for the real model."""
    sees = engine_samples.projector(tmp_path / "mmproj.gguf")
    with ExitStack() as stack:
        engine = Engine(stack, tmp_path, "sees", ServerPlan("m", model, 2048, 1, projector=Projector(sees)))
        blind = Engine(stack, tmp_path, "blind", ServerPlan("m", model, 2048, 1))
        engine.wait()
        blind.wait()
        without = memory(blind)
        asked = {"max_tokens": 2, "temperature": 0}
        spoken = engine.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": [QUESTION]}], **asked})
        shown = engine.ask(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [QUESTION, engine_samples.picture(200)]}], **asked},
        )
        # 16 patches are 4 tokens, and the engine puts two marks around them.
        assert shown["usage"]["prompt_tokens"] >= spoken["usage"]["prompt_tokens"] + 4
        assert memory(engine) - without < projector_bytes(sees) + (64 << 20)
