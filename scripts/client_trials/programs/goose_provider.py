"""goose's own reader and client, of its SDK, with the provider that `mesh-llm goose --write` writes."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import goose

model, base = os.environ["MODEL"], os.environ["BASE"]
subprocess.run([sys.argv[1], "goose", "--write"], check=True)
text = (Path.home() / ".config/goose/custom_providers/mesh.json").read_text()
provider = goose.declarative_provider_from_json(text)
with urllib.request.urlopen(f"{base}/v1/models/{model}") as reply:
    served = json.load(reply)["max_input_tokens"]
(limit,) = (entry["context_limit"] for entry in json.loads(text)["models"] if entry["name"] == model)
assert limit == served
config = goose.ProviderModelConfig(
    model_name=model, context_limit=None, temperature=None, max_tokens=16, toolshim_model=None,
    request_params_json=None, provider_params_json=None, reasoning=None, timeout_ms=None, request_headers=None,
)  # fmt: skip
asked = goose.ProviderMessage(role=goose.MessageRole.USER, content=[goose.MessageContent.TEXT("Say hi.")])


async def ask() -> None:
    """The list of models, the limit, an answer."""
    assert model in [found.name for found in await provider.list_models()]
    assert await provider.context_limit(config) == served
    assert (await provider.complete(config, "Be short.", [asked], [])).content


asyncio.run(ask())
