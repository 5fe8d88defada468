"""Tell what ``sluice serve`` would load, how much memory it takes and what its limits are, without loading it.

    sluice plan ./my-llama
    sluice plan --config sluice.toml --json

Takes all flags of ``sluice serve``. The exit code is that of serve where a model cannot be served or does not fit.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from server import machine, settings
from server.commands.terminal import count, size
from server.errors import EXIT_MODEL
from server.sharing import hosts
from server.tasks import TASKS

if TYPE_CHECKING:
    from server.commands.planned import PlannedModel


def add_arguments(parser: ArgumentParser) -> None:
    parser.usage = "%(prog)s [--json] [PATH ...] [any flag of sluice serve]"
    parser.add_argument("--json", action="store_true", help="Print a JSON object.")
    settings.add_flags(parser)


def run(options: Namespace) -> int:
    config = settings.load(options)
    from server.commands import planned

    shared = hosts(config)
    results = {
        model.name: planned.plan_or_problem(model, config.num_on_gpu(model), shared.get(model.name))
        for model in config.models
    }
    plans = [plan for plan in results.values() if not isinstance(plan, str)]
    problems = {name: problem for name, problem in results.items() if isinstance(problem, str)}
    needed, free = needed_on_cpu(plans), machine.free_bytes()
    fits = needed <= free
    if getattr(options, "json", False):
        models = [planned.as_json(plan) for plan in plans]
        print(
            json.dumps({"models": models, "problems": problems, "needed_bytes": needed, "free_bytes": free}, indent=2)
        )
    else:
        for plan in plans:
            print("\n".join(lines(plan)))
        for name, problem in problems.items():
            print(f"{name}  cannot be served: {problem}")
        print(memory_line(needed, free))
    return EXIT_MODEL if problems or not fits else 0


def needed_on_cpu(plans: Sequence[PlannedModel]) -> int:
    """Bytes of the machine's own memory."""
    return sum(plan.needed_bytes for plan in plans if plan.device == "cpu")


def memory_line(needed: int, free: int) -> str:
    """
    >>> memory_line(2 * 1024**3, 3 * 1024**3)
    'memory: about 2.0 GiB needed, 3.0 GiB free'
    """
    facts = f"memory: about {size(needed)} needed, {size(free)} free"
    return facts if needed <= free else f"{facts}: not enough. Serve smaller or fewer models, or set quantize."


def lines(plan: PlannedModel) -> list[str]:
    """What one model comes to, for a person."""
    place = f"{plan.path} on {plan.base}" if plan.base else plan.path
    quantised = "" if plan.quantize == "none" else f", products in {plan.quantize}"
    found = [
        f"{plan.name}  /{plan.task}, {plan.architecture} from {place}",
        f"  weights   {count(plan.num_parameters)} parameters in {plan.dtype}{quantised} on {plan.device}: "
        f"{size(plan.weight_bytes)}, {size(plan.load_bytes)} while loading, {size(plan.disk_bytes)} on disk",
    ]
    if plan.cache is not None:
        quantised = "" if plan.cache.kv_dtype == "auto" else f" in {plan.cache.kv_dtype}"
        found.append(
            f"  KV cache  {size(plan.cache.token_bytes)} a token{quantised}: {size(plan.cache.num_bytes)} for "
            f"{plan.cache.num_tokens:,} tokens"
        )
    elif plan.shares_worker_of is not None:
        cache = ", with its KV cache" if TASKS[plan.task].is_decoder else ""
        found.append(f"  worker    that of {plan.shares_worker_of}{cache}")
    elif TASKS[plan.task].is_decoder:
        found.append("  KV cache  unknown until it is loaded")
    limits = f"  limits    {plan.max_model_len:,} tokens a sequence"
    if plan.max_source_len:
        limits = f"  limits    {plan.max_source_len:,} tokens a source, {plan.max_model_len:,} an output"
    if TASKS[plan.task].is_decoder:
        limits += f", {plan.max_running} sequences and {plan.max_batch_tokens:,} new tokens a step"
    if plan.not_shared_because is not None:
        found.append(f"  worker    its own, with a merged copy of the base: {plan.not_shared_because}")
    return [*found, limits]
