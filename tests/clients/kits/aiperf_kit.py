"""aiperf measures streamed chats: it counts the tokens that the server counts, and it reads the server's metrics.

It makes prompts that are ``--isl`` tokens long with the model's template around them, and counts answers by their text,
which says all of them only where none is special: so they are kept from ending early. It sends no key for metrics.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
FOLDER = Path(__file__).parents[3] / "models" / MODEL
NUM_REQUESTS, NUM_PROMPT, NUM_NEW = 6, 64, 16
NEEDED = (
    *("time_to_first_token", "time_to_second_token", "inter_token_latency", "request_latency", "input_sequence_length"),
    *("output_sequence_length", "usage_prompt_tokens", "usage_completion_tokens", "output_token_throughput"),
)
SERVERS_OWN = ("sluice_requests", "sluice_output_tokens", "sluice_time_to_first_token_seconds", "sluice_kv_usage_ratio")


def read(name: str) -> Any:
    return json.loads(Path("told", name).read_text())


command = [
    *(Path(sys.executable).with_name("aiperf"), "profile", "--ui", "none", "--output-artifact-dir", "told"),
    *("--model", MODEL, "--url", os.environ["SERVER"], "--endpoint-type", "chat", "--streaming"),
    *("--api-key", os.environ["OPENAI_API_KEY"], "--tokenizer", FOLDER, "--apply-chat-template"),
    *("--concurrency", "2", "--request-count", str(NUM_REQUESTS), "--isl", str(NUM_PROMPT), "--osl", str(NUM_NEW)),
    *("--random-seed", "1", "--extra-inputs", "temperature:0", "--extra-inputs", f"min_tokens:{NUM_NEW}"),
]
done = subprocess.run(command, capture_output=True, text=True, check=False)
told = done.stdout + done.stderr
print(told)
assert done.returncode == 0 and "Traceback" not in told
assert "Warning" not in told
figures = read("profile_export_aiperf.json")
assert not [name for name in NEEDED if name not in figures]
assert figures["request_count"]["avg"] == NUM_REQUESTS and figures["request_error_rate"]["avg"] == 0
assert figures["usage_prompt_tokens"]["avg"] == NUM_PROMPT
assert figures["usage_completion_tokens"]["avg"] == figures["output_sequence_length"]["avg"] == NUM_NEW
metrics = read("server_metrics_export.json")
assert metrics["summary"]["endpoints_successful"] == [os.environ["SERVER"] + "/metrics"]
assert not [name for name in SERVERS_OWN if name not in metrics["metrics"]], list(metrics["metrics"])
print("ok")
