"""locust runs loadtest/locustfile.py: every request is whole, its time ends with it, its first token comes before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LOCUSTFILE = Path(__file__).parents[3] / "loadtest" / "locustfile.py"
CLIENTS = "2"

flags = ["--headless", "-u", CLIENTS, "-r", CLIENTS, "-t", "20s", "--stop-timeout", "120", "--only-summary"]
command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", os.environ["SERVER"], *flags]
# Its table as JSON is written at the end; its table as CSV can lack the last second.
done = subprocess.run([*command, "--json-file", "told"], capture_output=True, text=True, check=False)
told = done.stdout + done.stderr
print(told)
assert done.returncode == 0 and "Traceback" not in told
rows = {row["method"]: row for row in json.loads(Path("told.json").read_text())}
whole, first = rows["POST"], rows["TTFT"]
assert whole["name"] == first["name"] == "/generate"
assert whole["num_requests"] == first["num_requests"] > 0
assert whole["num_failures"] == first["num_failures"] == 0
# A stream has no length in its head, and 16 tokens or more come one after another.
assert whole["total_content_length"] > 1000 * whole["num_requests"]
assert first["total_response_time"] < whole["total_response_time"]
print("ok")
