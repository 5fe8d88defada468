"""A decoding step whose rows have adapters, beside the same step of the base alone, in one engine.

    python loadtest/adapters.py

The adapters are LoRA of rank 16 on every linear layer. They are written once, beside the results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from arguments import DEFAULT_MODEL
from plan import COMMON_FLAGS, Plan
from report import RESULTS, table
from rounds import Numbers
from step_parts import Decoding, model_config

CASES = {"1 stream": (1, 1), "8 streams, 8 adapters": (8, 8), "32 streams, 1 adapter": (32, 1),
         "32 streams, 32 adapters": (32, 32)}  # fmt: skip
"""Rows, and adapters that they share."""
QUICK_CASES = {"2 streams, 2 adapters": (2, 2)}

RANK = 16


def in_a_process(plan: Plan) -> Numbers:
    """A step of 1, 8 and 32 streams with adapters, beside the base alone."""
    from server.client.environment import environment

    flags = [*COMMON_FLAGS, *plan.serve_flags]
    arguments = ["--model", plan.model, "--rounds", str(plan.rounds), "--json", *plan.pick([], ["--quick"])]
    run = subprocess.run(
        [sys.executable, str(Path(__file__)), *arguments, "--", *flags],
        env=environment(model_config(plan.model, flags).threads), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if run.returncode:
        raise SystemExit((run.stderr.strip() or "it ended").splitlines()[-1])
    numbers: Numbers = json.loads(run.stdout.splitlines()[-1])
    return numbers


def folders(model: str, count: int) -> list[Path]:
    """Adapters of the model; the missing ones are made."""
    root = RESULTS / "adapters" / Path(model).name
    found = [root / str(i) for i in range(count)]
    missing = [folder for folder in found if not (folder / "adapter_config.json").is_file()]
    if missing:
        _write(model, missing)
    return found


def _write(model: str, missing: list[Path]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
    adapted = get_peft_model(module, config, autocast_adapter_dtype=False)
    for folder in missing:
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=1e-3)
        adapted.save_pretrained(folder)


def measure(decoding: Decoding, digests: list[str], cases: dict[str, tuple[int, int]], rounds: int) -> Numbers:
    """By case: milliseconds of a step with adapters and without, medians, and the median of the rounds' ratios."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(1 + rounds):
        for name, (num_rows, num_adapters) in cases.items():
            base = statistics.median(decoding.step_times(num_rows))
            adapted = statistics.median(decoding.step_times(num_rows, adapters=digests[:num_adapters]))
            times[name].append((adapted, base))
    return {
        name: {
            "adapted_ms": 1e3 * statistics.median(adapted for adapted, _ in found[1:]),
            "base_ms": 1e3 * statistics.median(base for _, base in found[1:]),
            "x_base": statistics.median(adapted / base for adapted, base in found[1:]),
        }
        for name, found in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A decoding step whose rows have adapters.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="next to no work: to see that it runs")
    parser.add_argument("--json", action="store_true", help="the last line is JSON, for another program")
    parser.add_argument("serve_flags", nargs=argparse.REMAINDER, help="after --: flags for sluice serve")
    args = parser.parse_args()

    import torch

    from server.protocol import LoadAdapter
    from server.worker.__main__ import build

    cases = QUICK_CASES if args.quick else CASES
    flags = [flag for flag in args.serve_flags if flag != "--"] or [*COMMON_FLAGS]
    config = model_config(args.model, flags)
    torch.set_num_threads(config.threads or int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    paths = folders(args.model, max(count for _, count in cases.values()))
    adapters = [LoadAdapter(path.name, model_config(str(path), flags)) for path in paths]
    engine, ready = build(config, adapters=adapters)
    problems = {str(adapter.problem) for adapter in ready.adapters if adapter.problem}
    if problems:
        raise SystemExit(f"adapters cannot be shared: {', '.join(problems)}")
    decoding = Decoding(engine, ready.vocab_size, context=256, num_steps=30)
    found = measure(decoding, [fact.digest for fact in ready.adapters], cases, args.rounds)
    rows = [
        [name, f"{each['base_ms']:.1f}", f"{each['adapted_ms']:.1f}", f"{each['x_base']:.2f}"]
        for name, each in found.items()
    ]
    print(table(["case", "base ms", "with adapters ms", "times"], rows))
    if args.json:
        print(json.dumps({"adapter_bytes": ready.adapters[0].num_bytes, **found}))


if __name__ == "__main__":
    main()
