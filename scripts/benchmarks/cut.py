"""Makes a smaller model with the same vocabulary from a larger one: its first layers only.

Its text is nonsense, because the model was not trained to end there. It tests the mechanics of draft models and
measures the cost of a draft model whose tokens are all rejected.
"""

from __future__ import annotations

from pathlib import Path

import gguf

TEMPLATE_KEY = "tokenizer.chat_template"


def cut(source: Path, target: Path, layers: int, *, template: str = "") -> Path:
    """Write the model of `source` with its first `layers` layers to `target`; `template`: in place of its own."""
    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if name == f"{architecture}.block_count":
            value = layers
        elif template and name == TEMPLATE_KEY:
            value = template
        writer.add_key_value(name, value, kind, field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        block = tensor.name.split(".")[1] if tensor.name.startswith("blk.") else "0"
        if int(block) < layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
