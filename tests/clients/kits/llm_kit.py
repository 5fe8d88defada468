"""llm, the command: a prompt, a conversation and a schema, as its extra-openai-models.yaml wants them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MODEL = "smollm2-135m-instruct"
folder = Path(os.environ["LLM_USER_PATH"])
(folder / "extra-openai-models.yaml").write_text(
    f"- model_id: sluice\n  model_name: {MODEL}\n  api_base: {os.environ['OPENAI_BASE_URL']}\n"
    "  api_key_name: sluice\n  supports_schema: true\n"
)
(folder / "keys.json").write_text(json.dumps({"sluice": os.environ["OPENAI_API_KEY"]}))


def llm(*arguments: str) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


options = ("-m", "sluice", "-o", "temperature", "0", "-o", "max_tokens", "60")
assert "Tokyo" in llm("What is the capital of Japan?", *options)
assert "Tokyo" in llm("What is the capital of Japan?", "--no-stream", *options)
assert llm("And what is it known for?", "--continue", *options)
fields = {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 120}}
schema = {"type": "object", "properties": fields, "required": ["name", "age"], "additionalProperties": False}
person = json.loads(llm("Invent a person", "--schema", json.dumps(schema), *options))
assert isinstance(person["age"], int) and isinstance(person["name"], str)
told = json.loads(llm("logs", "-n", "1", "--json"))[0]
assert told["input_tokens"] > 0 and told["output_tokens"] > 0
print("ok")
