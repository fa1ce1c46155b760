"""A model for the APIs' fuzzer: the test model with its first layers only, so that an answer costs milliseconds.

Vocabulary, output head and sampling stay those of the test model. Its words are close to random, which finds more:
calls that do not parse, half characters, special tokens. The chat template is the one with tools.
"""

from __future__ import annotations

from pathlib import Path

import gguf

NAME = "fuzz-model"
TEMPLATES = Path(__file__).resolve().parents[2] / "meshllm" / "models" / "catalog" / "templates"
TEMPLATE_KEY = "tokenizer.chat_template"


def cut(source: Path, folder: Path, layers: int) -> Path:
    """Write the first `layers` layers of a llama model into `folder`, as `NAME`; returns the file."""
    target = folder / f"{NAME}.gguf"
    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, architecture)
    for key, item in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", TEMPLATE_KEY):
            continue
        value = layers if key == f"{architecture}.block_count" else item.contents()
        writer.add_key_value(key, value, item.types[0], item.types[-1] if len(item.types) > 1 else None)
    writer.add_chat_template((TEMPLATES / "smollm2-tools.jinja").read_text())
    for tensor in reader.tensors:
        kind, _, rest = tensor.name.partition(".")
        if kind != "blk" or int(rest.partition(".")[0]) < layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
