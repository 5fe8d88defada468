"""Encoder requests a second of the server, beside a transformers pipeline behind a plain FastAPI route.

    python loadtest/encoder.py
    python loadtest/encoder.py --task ner

Texts of 10 to 200 tokens, 32 at once, the same ones to every side in turn, round by round. Each side's answers are
compared with the pipeline's: labels, offsets and scores. The route is asynchronous and runs one text at a time, the
best that a pipeline does: in a thread for each request they would share two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from report import percentile, save, table
from rounds import interleave, medians, ratio
from served import ROOT, Served, server
from tokenizers import Tokenizer

MODELS = {"classify": ROOT / "server/defaults/sentiment", "ner": ROOT / "models/rampart"}
PARAMETERS = {"classify": {}, "ner": {"aggregation_strategy": "simple"}}
VARIANTS = {"float32": ("--dtype", "float32"), "bfloat16": ("--dtype", "bfloat16"), "int8": ("--quantize", "int8")}
SOURCES = ("README.md", "server/README.md", "server/OPTIONS.md", "models/minilm-l6/README.md")
TOKENS = (10, 200)
CONCURRENCY = 32
PIPELINE = "pipeline"
Texts = Sequence[str]
Classify = Callable[[Texts], tuple[list[Any], float]]
"""Answers in the shape of `/classify`, and the seconds that they took."""


@dataclass(frozen=True)
class Side:
    """Where requests go, and what each was answered, by its text."""

    url: str
    answers: dict[str, Any]


def texts_of(tokenizer: Tokenizer, number: int, rng: random.Random) -> list[str]:
    """Runs of the repository's own sentences and names, of lengths that are drawn evenly."""
    sentences = [
        part.strip() for name in SOURCES for part in re.split(r"(?<=[.!?:])\s|\n", _read(name)) if part.strip()
    ]
    people = ("Maria Jensen, 12 Oak Street, Portland", "Robert Brown <r.brown@mail.org>", "call +1 503 555 0142")
    texts = []
    while len(texts) < number:
        parts = rng.choices(sentences, k=24)
        parts.insert(rng.randrange(4), rng.choice(people))
        encoding = tokenizer.encode(" ".join(parts))
        length = rng.randint(*TOKENS) - 2
        if len(encoding.ids) - 2 > length:
            texts.append(" ".join(parts)[: encoding.offsets[length][1]])
    return texts


def _read(name: str) -> str:
    path = ROOT / name
    return path.read_text() if path.is_file() else ""


@contextmanager
def pipeline_route(task: str, model: Path) -> Iterator[str]:
    """The route in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, "--serve-pipeline", str(port), task, str(model)], cwd=ROOT)
    try:
        while not _accepts(port):
            if process.poll() is not None:
                raise SystemExit("The pipeline's process ended.")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/{task}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def serve_pipeline(port: int, task: str, model: str) -> None:
    """A pipeline as its documentation shows it, behind a route of one line."""
    sys.path.insert(0, str(ROOT))
    import uvicorn
    from fastapi import FastAPI
    from transformers import AutoTokenizer, logging, pipeline

    from server.config import ModelConfig
    from server.models.loader import load

    logging.set_verbosity_error()
    # The same weights: an adapter merged into its base.
    module = load(ModelConfig(name="pipeline", path=model)).module
    tokenizer = AutoTokenizer.from_pretrained(model)
    if task == "classify":
        run = partial(pipeline("text-classification", module, tokenizer=tokenizer), top_k=None)
    else:
        run = pipeline("token-classification", module, tokenizer=tokenizer, **PARAMETERS["ner"])
    app = FastAPI()

    @app.post(f"/{task}")
    async def route(body: dict[str, Any]) -> Any:
        return json.loads(json.dumps(run(body["inputs"]), default=float))

    uvicorn.run(app, port=port, log_level="error")


def send_all(side: Side, parameters: dict[str, Any], texts: Texts) -> dict[str, float]:
    """All texts, some at once; requests a second and a request's time."""
    bodies = [{"inputs": text, "parameters": parameters} for text in texts]
    answers, seconds, elapsed_s = asyncio.run(post_all(side.url, bodies))
    side.answers.update(zip(texts, answers, strict=True))
    return {"requests_per_s": len(texts) / elapsed_s, "p50_s": statistics.median(seconds),
            "p95_s": percentile(seconds, 95) or 0.0}  # fmt: skip


def classify_all(side: Side, classify: Classify, texts: Texts) -> dict[str, float]:
    """The same of what answers in process."""
    answers, elapsed_s = classify(texts)
    side.answers.update(zip(texts, answers, strict=True))
    return {"requests_per_s": len(texts) / elapsed_s}


async def post_all(url: str, bodies: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[float], float]:
    """All bodies, `CONCURRENCY` at once: each one's answer, the seconds of each in order of their ends, and of all."""
    waiting = list(enumerate(bodies))[::-1]
    answers: list[Any] = [None] * len(bodies)
    seconds: list[float] = []

    async def client() -> None:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
        while waiting:
            place, body = waiting.pop()
            start = perf_counter()
            answers[place] = await _post(reader, writer, parts.path, body)
            seconds.append(perf_counter() - start)
        writer.close()

    start = perf_counter()
    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    return answers, seconds, perf_counter() - start


async def _post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: Mapping[str, Any]) -> Any:
    payload = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    )
    writer.write(head.encode() + b"\r\n" + payload)
    status = int((await reader.readline()).split()[1])
    length = 0
    while line := (await reader.readline()).strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    answer = json.loads(await reader.readexactly(length))
    if status != 200:
        raise SystemExit(f"A request was answered {status}: {answer}")
    return answer


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How many texts have the pipeline's labels and offsets, and how far scores of those lie apart at most.

    ``largest_lead``: of the texts with another label, how far the pipeline's own was ahead of it in the pipeline's
    scores; absent for tags, whose other scores it does not tell.
    """
    pairs = [(_facts(ours[text]), _facts(theirs[text])) for text in theirs]
    equal = [(mine, other) for mine, other in pairs if [fact[0] for fact in mine] == [fact[0] for fact in other]]
    apart = [abs(a[1] - b[1]) for mine, other in equal for a, b in zip(mine, other, strict=True)]
    leads = [_lead(ours[text], theirs[text]) for text in theirs if any("label" in each for each in _flat(theirs[text]))]
    return {"texts": len(pairs), "equal": len(equal), "largest_difference": max(apart, default=0.0),
            "largest_lead": max(leads, default=None)}  # fmt: skip


def _lead(ours: Any, theirs: Any) -> float:
    """How far the pipeline puts its own label before ours; 0 where they are one."""
    mine = max(_flat(ours), key=lambda each: each["score"])["label"]
    scores = {each["label"]: each["score"] for each in _flat(theirs)}
    return float(max(scores.values()) - scores[mine])


def _facts(answer: Any) -> list[tuple[Any, float]]:
    """What must be equal, with its score: the best label of a text, or each entity's label and place."""
    entries = _flat(answer)
    if entries and "label" in entries[0]:
        best = max(entries, key=lambda each: each["score"])
        return [(best["label"], best["score"])]
    return [((each["entity_group"], each["start"], each["end"]), each["score"]) for each in entries]


def _flat(answer: Any) -> list[dict[str, Any]]:
    """The one text's list, however deep it lies."""
    while answer and isinstance(answer[0], list):
        answer = answer[0]
    return list(answer)


def measure(args: argparse.Namespace, others: Mapping[str, Classify] | None = None) -> dict[str, Any]:
    """Reads ``rounds``, ``seed`` and ``is_quick`` of a plan; ``task`` and ``requests`` where they are given.

    ``others`` are compared too, in process.
    """
    others = others or {}
    task = getattr(args, "task", "classify")
    is_quick = getattr(args, "is_quick", False)
    number = CONCURRENCY if is_quick else getattr(args, "requests", 320)
    model = MODELS[task]
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    rng = random.Random(args.seed)
    with ExitStack() as stack:
        sides, facts = {}, {}
        for name, flags in VARIANTS.items():
            served: Served = stack.enter_context(server(["--model", f"bench={model}", *flags]))
            sides[name] = Side(f"{served.url}/{task}", {})
            facts[name] = {key: served.facts().get(key) for key in ("dtype", "executor", "attention")}
        sides[PIPELINE] = Side(stack.enter_context(pipeline_route(task, model)), {})
        warm = texts_of(tokenizer, CONCURRENCY, rng)
        for side in sides.values():
            send_all(side, PARAMETERS[task], warm)
        senders = {name: partial(send_all, side, PARAMETERS[task]) for name, side in sides.items()}
        for name, classify in others.items():
            sides[name] = Side("", {})
            senders[name] = partial(classify_all, sides[name], classify)
            senders[name](warm)
        rounds = interleave(senders, partial(texts_of, tokenizer, number, rng), args.rounds)
    ratios = {name: ratio(rounds, "requests_per_s", name, PIPELINE) for name in VARIANTS}
    return {
        "task": task,
        "concurrency": CONCURRENCY,
        "x_pipeline": ratios["float32"],
        "x_pipeline_bfloat16": ratios["bfloat16"],
        "x_pipeline_int8": ratios["int8"],
        "sides": medians(rounds),
        "rounds": rounds,
        "agreement": {name: agreement(sides[name].answers, sides[PIPELINE].answers) for name in (*VARIANTS, *others)},
        "facts": facts,
    }


def main() -> None:
    if sys.argv[1:2] == ["--serve-pipeline"]:
        return serve_pipeline(int(sys.argv[2]), *sys.argv[3:5])
    parser = argparse.ArgumentParser(description="Encoder requests/s beside a pipeline behind a plain route.")
    parser.add_argument("--task", choices=MODELS, default="classify")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=320, help="of a round, to every side")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = measure(args)
    rows = [
        [name, f"{side['requests_per_s']:.1f}", f"{side['p50_s'] * 1000:.0f}", f"{side['p95_s'] * 1000:.0f}",
         f"{results['x_' + PIPELINE + ('' if name == 'float32' else '_' + name)]:.2f}" if name in VARIANTS else "1.00",
         _said(results["agreement"].get(name))]
        for name, side in results["sides"].items()
    ]  # fmt: skip
    print(table(["side", "requests/s", "p50 ms", "p95 ms", "ratio", "equal, apart, lead"], rows))
    print(f"saved to {save('encoder', {'arguments': vars(args), 'results': results})}")
    return None


def _said(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    lead = "" if found["largest_lead"] is None else f", {found['largest_lead']:.4f}"
    return f"{found['equal']}/{found['texts']}, {found['largest_difference']:.4f}{lead}"


if __name__ == "__main__":
    main()
