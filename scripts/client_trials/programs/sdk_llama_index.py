"""LlamaIndex with an OpenAI-like server: whole and streamed."""

import os

from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(
    model=os.environ["MODEL"], api_base=os.environ["BASE"] + "/v1", api_key="none", max_tokens=16, is_chat_model=True
)
assert model.complete("Say hi.").text
assert [part.delta for part in model.stream_complete("Say hi.")]
