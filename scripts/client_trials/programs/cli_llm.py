"""The command `llm`, with the model in its own file of further models."""

import json
import os
import subprocess
import sys
from pathlib import Path

model, base = os.environ["MODEL"], os.environ["BASE"]
folder = Path(os.environ["LLM_USER_PATH"])
folder.mkdir(parents=True, exist_ok=True)
entry = {"model_id": "mesh", "model_name": model, "api_base": f"{base}/v1", "supports_schema": True}
(folder / "extra-openai-models.yaml").write_text(json.dumps([entry]))
(folder / "keys.json").write_text('{"none": "none"}')
program = [str(Path(sys.executable).with_name("llm")), "-m", "mesh"]
said = subprocess.run(
    [*program, "-o", "max_tokens", "16", "Say hi."], check=True, capture_output=True, text=True
).stdout
assert said.strip()
words = [*program, "--no-stream", "--schema", "name, age int", "-o", "max_tokens", "100", "Bob is 5."]
assert "age" in json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
