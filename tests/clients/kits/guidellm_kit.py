"""guidellm measures chats and completions: no warning of its own, and all that it tells of tokens and their times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
FOLDER = Path(__file__).parents[3] / "models" / MODEL
NUM_REQUESTS, NUM_NEW = 6, 12
TIMES = ("time_to_first_token_ms", "inter_token_latency_ms", "time_per_output_token_ms", "output_tokens_per_second")


def measured(route: str) -> dict[str, Any]:
    report = Path(f"{route.strip('/').replace('/', '-')}.json")
    target = f"kind=openai_http,target={os.environ['SERVER']},model={MODEL},request_format={route}"
    command = [
        *(Path(sys.executable).with_name("guidellm"), "run", "--disable-console-interactive"),
        *("--backend", f"{target},api_key={os.environ['OPENAI_API_KEY']}"),
        *("--tokenizer", f"kind=huggingface_auto,model={FOLDER}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={NUM_NEW}"),
        *("--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={NUM_REQUESTS}"),
        *("--output", f"kind=json,path={report}", "--output", "kind=console"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    print(told)
    assert done.returncode == 0 and "WARNING" not in told and "Traceback" not in told, route
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    return benchmark


for route in ("/v1/chat/completions", "/v1/completions"):
    benchmark = measured(route)
    # That it takes itself a hundredth of the time to the first token to make a prompt is for it to mend.
    warnings = [warning for warning in benchmark["warnings"] if not warning["code"].startswith("generation_delay")]
    assert warnings == [], warnings
    requests = benchmark["requests"]
    assert len(requests["successful"]) == NUM_REQUESTS and not requests["errored"] and not requests["incomplete"]
    for request in requests["successful"]:
        assert request["output_tokens"] == NUM_NEW and request["prompt_tokens"] >= 32, request
        assert all(request[name] > 0 for name in TIMES), request
    for name in TIMES:
        assert benchmark["metrics"][name]["successful"]["count"] > 0, name
print("ok")
