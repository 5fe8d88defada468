"""One peer in a process of its own: a line of JSON with texts comes in, a line with seconds and answers goes out.

Runs in the peers' environment, which has neither this project nor its other scripts.

    python loadtest/peer_process.py openvino FOLDER
    python loadtest/peer_process.py onnxruntime FILE TOKENIZER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

CACHE_GIB = 2
STEP_TOKENS = (256, 2048)
"""The budgets of a step that are tried: the default, and a large one."""

Request = dict[str, Any]
Answer = dict[str, Any]
Peer = Callable[[Request], Answer]


def openvino(folder: str) -> tuple[Peer, Answer]:
    """Continuous batching, with prefix caching and the step's budget that computes prompts faster."""
    import openvino
    import openvino_genai as genai

    def pipeline(step_tokens: int) -> Any:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = step_tokens
        return genai.ContinuousBatchingPipeline(folder, scheduler, "CPU")

    def generate(pipe: Any, texts: list[str], new_tokens: int) -> Answer:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        start = perf_counter()
        encode = pipe.get_tokenizer().encode
        results = pipe.generate([encode(text).input_ids for text in texts], [config] * len(texts))
        seconds = perf_counter() - start
        return {"seconds": seconds, "new_tokens": [len(result.m_generation_ids[0]) for result in results]}

    def prompts_s(step_tokens: int) -> float:
        pipe = pipeline(step_tokens)
        texts = [f"{number} " * 500 for number in range(4)]
        generate(pipe, ["A first text"], 2)
        return float(generate(pipe, texts, 1)["seconds"])

    best = min(STEP_TOKENS, key=prompts_s)
    pipe = pipeline(best)
    facts = {"openvino": openvino.__version__, "step_tokens": best, "cache_gib": CACHE_GIB}
    return lambda request: generate(pipe, request["texts"], request["new_tokens"]), facts


def onnxruntime(path: str, tokenizer_path: str) -> tuple[Peer, Answer]:
    """One text after the other: a batch would pad on a processor that has no idle unit."""
    import numpy as np
    import onnxruntime as runtime
    from tokenizers import Tokenizer

    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(tokenizer_path)
    tokenizer.no_padding()

    def logits(text: str) -> list[float]:
        token_ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
        inputs = {"input_ids": token_ids, "attention_mask": np.ones_like(token_ids)}
        inputs["token_type_ids"] = np.zeros_like(token_ids)
        [found] = session.run(None, inputs)
        return [float(value) for value in found[0]]

    def classify(request: Request) -> Answer:
        start = perf_counter()
        answers = [logits(text) for text in request["texts"]]
        return {"seconds": perf_counter() - start, "logits": answers}

    return classify, {"onnxruntime": runtime.__version__}


def main() -> None:
    peer, facts = {"openvino": openvino, "onnxruntime": onnxruntime}[sys.argv[1]](*sys.argv[2:])
    out = sys.stdout
    # What a library prints must not come between the answers.
    sys.stdout = sys.stderr
    print(json.dumps(facts), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(peer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
