"""A model for the APIs' fuzzer: the test model with its first layers only, so that an answer costs milliseconds.

Vocabulary, output head and sampling stay those of the test model. Its words are close to random, which finds more:
calls that do not parse, half characters, special tokens. The chat template is the one with tools.
"""

from __future__ import annotations

from pathlib import Path

from scripts.benchmarks.cut import cut

NAME = "fuzz-model"
TEMPLATE = Path(__file__).resolve().parents[2] / "meshllm" / "models" / "catalog" / "templates" / "smollm2-tools.jinja"


def write_model(source: Path, folder: Path, layers: int) -> Path:
    """Write the first `layers` layers of `source` into `folder`, as `NAME`; returns the file."""
    return cut(source, folder / f"{NAME}.gguf", layers, template=TEMPLATE.read_text())
