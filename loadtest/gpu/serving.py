"""A server over HTTP on the device: every kind of request, closed loops, a killed worker, and the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu import models
from gpu.http import Client, closed_loop, percentile
from gpu.setting import Setting

PROMPT = "The river runs past the mill, and the miller counts the sacks of flour."
MESSAGES = [{"role": "user", "content": PROMPT}]
WORKER = b"sluice-worker"
FACTS = ("device", "dtype", "executor", "attention", "num_blocks", "kv_cache_bytes", "weight_bytes")
"""What /info says of a model."""


def run(setting: Setting) -> None:
    device = setting.use_device()
    folders = {"chat": models.decoder_folder(setting, device), "mood": models.encoder_folder(setting)}
    with served(setting, folders) as (client, process):
        requests(setting, client)
        for num_clients in setting.pick((1, 8, 32, 128, 256), (1, 4)):
            loop(setting, client, num_clients)
        killed_worker(setting, client, process)
        ended(setting, process)


@contextmanager
def served(setting: Setting, folders: dict[str, Path]) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [flag for name, folder in folders.items() for flag in ("--model", f"{name}={folder}")]
    flags += ["--port", str(port), "--device", setting.device, "--max-running", setting.pick("256", "16")]
    flags += ["--max-queued-requests", "1000"]
    flags += setting.pick([], ["--kv-cache-gib", "0.1", "--threads", "1"])
    start_s = time.monotonic()
    path = setting.folder / "server.log"
    with path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "server", "serve", *flags], stdout=log, stderr=log)
        try:
            client = Client(port)
            wait_until_ready(setting, client, process, path)
            setting.results.add("ready", ok=True, seconds=time.monotonic() - start_s)
            for model in json.loads(client.get("/info")[1])["models"]:
                setting.results.add(f"model {model['name']}", **{key: model.get(key) for key in FACTS})
            yield client, process
        finally:
            process.kill()
            process.wait()


def wait_until_ready(setting: Setting, client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    while setting.left_s > 0:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            if client.get("/readyz")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready in time: {log.read_text()[-2000:]}")


def requests(setting: Setting, client: Client) -> None:
    """Each kind of request once. With random weights only the shape of an answer can be judged."""
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sampled": {"do_sample": True, "seed": 1, "top_p": 0.9, "temperature": 0.8},
        "logprobs": {"details": True, "top_n_tokens": 3},
        "grammar": {"grammar": {"type": "json", "value": schema}, "max_new_tokens": 30},
        "four samples": {"num_return_sequences": 4, "do_sample": True, "seed": 2},
        "beams": {"num_beams": 4},
        "penalties": {"repetition_penalty": 1.2, "logit_bias": {"5": 1.0}, "min_new_tokens": 4},
    }
    for name, parameters in kinds.items():
        body = {"inputs": PROMPT, "model": "chat", "parameters": {"max_new_tokens": 12, **parameters}}
        answers = [client.post("/generate", body) for _ in range(2)]
        status, answer = answers[0]
        same = json.dumps(texts(answers[0][1])) == json.dumps(texts(answers[1][1]))
        setting.results.add(name, ok=status == 200 and same, status=status, same_twice=same, answer=json.dumps(answer))
    body = {"messages": MESSAGES, "model": "chat", "max_tokens": 12, "temperature": 0, "stream": True}
    events = list(client.events("/v1/chat/completions", body))
    setting.results.add("chat stream", ok=events[-1:] == ["[DONE]"] and len(events) > 2, events=len(events))
    status, answer = client.post("/classify", {"inputs": [PROMPT, "Short."], "model": "mood"})
    setting.results.add("classify", ok=status == 200, status=status, answer=json.dumps(answer))


def texts(answer: Any) -> Any:
    """The answer without what differs from time to time."""
    if isinstance(answer, dict):
        return {key: texts(value) for key, value in answer.items() if "text" in key or isinstance(value, dict | list)}
    return [texts(each) for each in answer] if isinstance(answer, list) else answer


def chat(setting: Setting, number: int) -> dict[str, Any]:
    content = f"{number}. {PROMPT} " * setting.pick(3, 1)
    return {"messages": [{"role": "user", "content": content}], "model": "chat", "stream": True, "temperature": 0,
            "max_tokens": setting.pick(256, 16), "ignore_eos": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True}}  # fmt: skip


def loop(setting: Setting, client: Client, num_clients: int) -> None:
    seconds = setting.pick(10.0, 2.0)
    load = closed_loop(client, num_clients, seconds, lambda number: chat(setting, number))
    figures = {
        f"{name}_p{share * 100:.0f}_ms": (percentile(values, share) or 0.0) * 1000
        for name, values in (("ttft", load.first_s), ("tpot", load.gaps_s))
        for share in (0.5, 0.95)
    }
    setting.results.add(
        f"{num_clients} clients",
        ok=not load.errors and load.num_tokens > 0,
        tokens_per_s=load.num_tokens / seconds,
        **figures,
        errors=load.errors[:3],
    )


def killed_worker(setting: Setting, client: Client, process: subprocess.Popen[bytes]) -> None:
    """A stream that runs when its worker is killed goes on with the next one."""
    wanted = setting.pick(512, 200)
    body = {**chat(setting, 0), "max_tokens": wanted}
    last_s, longest_s, num_tokens, killed = time.monotonic(), 0.0, 0, 0
    for data in client.events("/v1/chat/completions", body):
        longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
        if data == "[DONE]":
            break
        num_tokens = (json.loads(data).get("usage") or {}).get("completion_tokens", num_tokens)
        if not killed:
            workers = workers_of(process.pid)
            killed = len(workers)
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
    setting.results.add(
        "killed workers",
        ok=killed > 0 and num_tokens == wanted,
        killed=killed,
        tokens=num_tokens,
        wanted=wanted,
        longest_pause_s=longest_s,
    )


def workers_of(server: int) -> list[int]:
    """Process ids, by the name that a worker gives itself."""
    names = {
        int(path.parent.name): path.read_bytes().strip()
        for path in Path("/proc").glob("[0-9]*/comm")
        if _is_there(path)
    }
    return [pid for pid, name in names.items() if name == WORKER and server in _ancestors(pid)]


def _is_there(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(pid)
    return found


def ended(setting: Setting, process: subprocess.Popen[bytes]) -> None:
    start_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        code: int | None = process.wait(min(30.0, max(1.0, setting.left_s - 1)))
    except subprocess.TimeoutExpired:
        code = None
    setting.results.add("SIGTERM", ok=code == 0, exit_code=code, seconds=time.monotonic() - start_s)
