"""LiteLLM with both kinds of providers: whole and streamed."""

import os

import litellm

model, base = os.environ["MODEL"], os.environ["BASE"]
asked = [{"role": "user", "content": "Say hi."}]
for name, url in ((f"openai/{model}", f"{base}/v1"), (f"anthropic/{model}", base)):
    common = {"model": name, "api_base": url, "api_key": "none", "messages": asked, "max_tokens": 16}
    assert litellm.completion(**common).choices[0].message.content
    stream = litellm.completion(**common, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
