"""The server beside what people would use instead: OpenVINO GenAI, `generate`, and onnxruntime for classifiers.

    make bench-peers

Ours is measured over HTTP, the others in process. Each has a process of its own that waits while the others compute.
"""

from __future__ import annotations

import json
import math
import subprocess
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import comparison
import encoder
import peer_environment
from comparison import STATIC, Case
from plan import Plan
from report import table
from rounds import Numbers, ratio
from served import ROOT

FP16, INT8 = "OpenVINO fp16", "OpenVINO int8"
ONNXRUNTIME = "onnxruntime float32"
RATIOS = (("plain", FP16), ("int8", INT8), ("plain", STATIC), ("int8", STATIC))
"""Ours, and what it is compared with."""
SCRIPT = Path(__file__).with_name("peer_process.py")


class Peer:
    """A process of `peer_process`: it is ready when this is made."""

    def __init__(self, *arguments: str, python: Path | None = None, script: Path | None = None) -> None:
        command = [str(python or peer_environment.installed()), str(script or SCRIPT), *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.facts = self._read()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._process:  # closes its pipes and waits
            self._process.terminate()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("A peer's process ended: its last words are above.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def cases(plan: Plan) -> dict[str, Case]:
    """The workloads, by what they are called in the table."""
    if plan.is_quick:
        return {"2 streams": Case(2, 8, 4), "long prompts": Case(2, 64, 1)}
    return {
        **{f"{number} streams": Case(number) for number in (1, 8, 32)},
        "shared prefix": Case(16, 16, shared_tokens=512),
        "long prompts": Case(4, 1024, 1),
    }


def decoders(plan: Plan) -> Numbers:
    """Five workloads beside OpenVINO GenAI and `generate`."""
    with comparison.opened(plan, plan.model, plan.variants()) as sides, _openvino(plan.model) as others:
        senders = {name: _generate(peer) for name, peer in others.items()}
        found = {name: comparison.compare(sides, case, plan.rounds, senders) for name, case in cases(plan).items()}
        for each in found.values():
            each["ratios"] = {
                f"{ours} / {other}": ratio(each["rounds"], "tokens_per_s", ours, other) for ours, other in RATIOS
            }
        facts = {**sides.facts(), **{name: peer.facts for name, peer in others.items()}}
        return {"facts": facts, "cases": found}


@contextmanager
def _openvino(model: str) -> Iterator[dict[str, Peer]]:
    peer_environment.installed()
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(Peer("openvino", str(peer_environment.openvino_model(model, weights))))
            for name, weights in ((FP16, "fp16"), (INT8, "int8"))
        }


def _generate(peer: Peer) -> comparison.Send:
    def send(texts: list[str], new_tokens: int) -> Numbers:
        answer = peer.ask(texts=texts, new_tokens=new_tokens)
        assert answer["new_tokens"] == [new_tokens] * len(texts)
        return {"seconds": answer["seconds"], "tokens_per_s": len(texts) * new_tokens / answer["seconds"]}

    return send


def classifiers(plan: Plan) -> Numbers:
    """The encoder beside onnxruntime."""
    peer_environment.installed()
    model = encoder.MODELS["classify"]
    names = json.loads((model / "config.json").read_text())["id2label"]
    labels = [names[str(number)] for number in range(len(names))]
    onnx = str(peer_environment.onnx_model(model))
    with Peer("onnxruntime", onnx, str(model / "tokenizer.json")) as peer:
        found = dict(encoder.measure(Namespace(**plan.__dict__), {ONNXRUNTIME: _classify(peer, labels)}))
    found["facts"][ONNXRUNTIME] = peer.facts
    found["ratios"] = {
        f"{name} / {ONNXRUNTIME}": ratio(found["rounds"], "requests_per_s", name, ONNXRUNTIME)
        for name in encoder.VARIANTS
    }
    return found


def _classify(peer: Peer, labels: Sequence[str]) -> encoder.Classify:
    def classify(texts: Sequence[str]) -> tuple[list[Any], float]:
        answer = peer.ask(texts=list(texts))
        return [_scores(logits, labels) for logits in answer["logits"]], answer["seconds"]

    return classify


def _scores(logits: Sequence[float], labels: Sequence[str]) -> list[dict[str, Any]]:
    weights = [math.exp(value - max(logits)) for value in logits]
    return [{"label": label, "score": weight / sum(weights)} for label, weight in zip(labels, weights, strict=True)]


def shown(results: Mapping[str, Any]) -> str:
    """The tables of what was measured."""
    return "\n\n".join(
        table_of(results[part]) for part, table_of in (("peers", _decoder_table), ("peer-encoders", _encoder_table))
        if part in results
    )  # fmt: skip


def _decoder_table(found: Numbers) -> str:
    names = ("plain", "int8", FP16, INT8, STATIC)
    rows = [
        [name, *(_number(_speed(each, side)) for side in names), *(f"{value:.2f}" for value in each["ratios"].values())]
        for name, each in found["cases"].items()
    ]
    ratios = next(iter(found["cases"].values()))["ratios"]
    return table(["tokens/s", *names, *ratios], rows)


def _speed(found: Numbers, side: str) -> float:
    """Output tokens a second; prompt tokens where there is one new token."""
    case, speed = found["case"], float(found["sides"][side]["tokens_per_s"])
    return speed * case["prompt_tokens"] if case["new_tokens"] == 1 else speed


def _encoder_table(found: Numbers) -> str:
    rows = [
        [
            name,
            _number(side["requests_per_s"]),
            _number(found["ratios"].get(f"{name} / {ONNXRUNTIME}")),
            "{equal} of {texts}".format(**found["agreement"][name]) if name in found["agreement"] else "",
        ]
        for name, side in found["sides"].items()
    ]
    return table(["", "requests/s", f"beside {ONNXRUNTIME}", "labels as the pipeline's"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
