"""lm-evaluation-harness scores a model over HTTP as it scores the same folder itself: tables and answers are equal.

Its ``local-completions`` asks /v1/completions, in each of the ways that it can; its ``hf`` runs transformers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

KEY = os.environ["OPENAI_API_KEY"]
MODEL = "smollm2-135m-instruct"
FOLDER = Path(__file__).parents[3] / "models" / MODEL
TASKS = {"choices": 1e-3, "texts": 1e-3, "answers": None}
"""How far two sums of a text's log-probabilities may be apart: both sides compute logits in float32, each its way."""
MAX_LENGTH = 256
"""Shorter than the longest text, which is therefore scored in two windows."""

# In float32 torch's log_softmax over the vocabulary makes every token some 1e-5 likelier than float64 does. The server
# keeps nearer to the exact number, and so does the harness where it is told to.
LOCAL = {"pretrained": FOLDER, "dtype": "float32", "softmax_dtype": "float64", "max_length": MAX_LENGTH}
# The harness takes a token from a server's length for the answer, and in rolling windows another one.
REMOTE = {"model": MODEL, "base_url": os.environ["OPENAI_BASE_URL"] + "/completions", "max_length": MAX_LENGTH + 2}
HERE = {**REMOTE, "tokenizer_backend": "huggingface", "tokenizer": FOLDER}
WAYS = {
    "lists of ids": (HERE, 4),
    "texts": ({**HERE, "tokenized_requests": False}, 4),
    "one at a time, side by side": ({**HERE, "num_concurrent": 3}, 1),
    "the server's own tokenizer": ({**REMOTE, "tokenizer_backend": "remote", "auth_token": KEY}, 4),
}
TASK_FILES = Path(__file__).parent / "lm_eval_tasks"

os.chdir(TASK_FILES)  # which the tasks' own paths start from
manager = TaskManager(include_path=str(TASK_FILES), include_defaults=False)


def evaluated(model: str, arguments: dict[str, Any], batch_size: int) -> dict[str, Any]:
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    return lm_eval.simple_evaluate(
        model=model, model_args=given, tasks=list(TASKS), task_manager=manager, batch_size=batch_size, device="cpu"
    )


def answers(result: dict[str, Any], task: str) -> list[Any]:
    """Of every request: a text, a sum, or a sum and whether greedy decoding gives the same."""
    samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
    return [answer for sample in samples for (answer,) in sample["resps"]]


def require_equal(task: str, found: Any, wanted: Any, way: str) -> None:
    tolerance = TASKS[task]
    if tolerance is None:
        assert found == wanted, (way, task, found, wanted)
        return
    (found_sum, *is_greedy), (wanted_sum, *is_wanted_greedy) = (
        [each] if isinstance(each, float) else each for each in (found, wanted)
    )
    assert abs(found_sum - wanted_sum) < tolerance and is_greedy == is_wanted_greedy, (way, task, found, wanted)


wanted = evaluated("hf", LOCAL, 4)
table = make_table(wanted)
print(table)
for way, (arguments, batch_size) in WAYS.items():
    found = evaluated("local-completions", arguments, batch_size)
    for task in TASKS:
        for pair in zip(answers(found, task), answers(wanted, task), strict=True):
            require_equal(task, *pair, way)
    print(f"{way}\n{make_table(found)}")
    assert make_table(found) == table, way
print("ok")
