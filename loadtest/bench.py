"""Everything that the project promises of its speed, measured in one run.

    make bench                                      # all of it: about half an hour on two cores
    python loadtest/bench.py --only streams steady  # some parts
    python loadtest/bench.py --only streams --into loadtest/results/bench-20260101-120000.json
    python loadtest/bench.py --quick                # does it all run?
    make bench-peers                                # beside what else people would run: 15 minutes

Compared things are measured in turn in every round. The results go into a JSON file and into plots, and a table at
the end holds them against the targets. ``--into`` replaces the parts that ran in an earlier file.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import adapters
import beams
import comparison
import engine_overhead
import floors
import growth
import load
import peers
import plots
import random_models
import scenarios
import startup
import steady
import step_parts
import targets
import translation
from arguments import DEFAULT_MODEL
from baseline import quiet
from client import run
from comparison import Case
from plan import DETERMINISTIC, Plan
from report import machine, save
from rounds import Numbers
from served import nice_value, servers

RATES = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0)
RATE_S = 10.0


def streams(plan: Plan) -> Numbers:
    """1, 8 and 32 streams."""
    return _cases(plan, plan.variants(), {f"{n} streams": _case(plan, n) for n in plan.pick((1, 8, 32), (1, 3))})


def deterministic(plan: Plan) -> Numbers:
    """What `deterministic` costs."""
    sizes = plan.pick((1, 8, 32), (2,))
    return _cases(plan, plan.variants(DETERMINISTIC), {f"{n} streams": _case(plan, n, 32) for n in sizes})


def long(plan: Plan) -> Numbers:
    """Eight prompts of 1,024 tokens: with one new token, and with a few."""
    size = plan.pick(1024, 64)
    cases = {"prefill": Case(plan.pick(8, 2), size, 1), "long prompts": Case(plan.pick(8, 2), size, plan.pick(32, 4))}
    return _cases(plan, plan.variants(), cases)


def prefix(plan: Plan) -> Numbers:
    """Sixteen prompts that begin with the same 512 tokens."""
    case = plan.pick(Case(16, 16, 64, shared_tokens=512), Case(3, 4, 4, shared_tokens=64))
    with comparison.opened(plan, plan.model, plan.variants()) as sides:
        found = comparison.compare_shared_prefix(sides, case, plan.rounds)
        return {"facts": sides.facts(), "shared prefix": found}


def rates(plan: Plan) -> Numbers:
    """Latency against the rate of Poisson arrivals of a mix of requests."""
    points = []
    mix = scenarios.load(plan.pick("mixed", "short-chat"))
    with servers(plan.model, plan.variants()) as served:
        for rate in plan.pick(RATES, (4.0,)):
            for name, each in served.items():
                found = run(load.open_loop(each.url, mix, rate, plan.pick(RATE_S, 1.0), plan.seed))
                points.append({"side": name, **found})
    return {"points": points}


def steps(plan: Plan) -> Numbers:
    """A decoding step by part, in the engine alone."""
    return {name: step_parts.in_a_process(plan, flags) for name, flags in plan.variants().items()}


def encoder(plan: Plan) -> Numbers:
    """The encoder beside the pipeline behind a plain route."""
    import encoder as script

    return dict(script.measure(Namespace(**plan.__dict__)))


def many_classifiers(plan: Plan) -> Numbers:
    """Fifty classifiers on one encoder beside one."""
    import classifiers

    return dict(classifiers.measure(Namespace(**plan.__dict__)))


def beam_search(plan: Plan) -> Numbers:
    """Eight requests of four beams beside one static batch."""
    sizes = plan.pick(
        {"requests": 8, "prompt_tokens": 64, "new_tokens": 32}, {"requests": 2, "prompt_tokens": 8, "new_tokens": 4}
    )
    long_tokens = plan.pick(1000, 64)
    flags = plan.variants({"plain": ()})["plain"]
    return beams.measure(
        Namespace(model=plan.model, seed=plan.seed, rounds=plan.rounds, num_beams=4, long_prompt_tokens=long_tokens,
                  one_by_one=False, serve_flags=flags, **sizes)
    )  # fmt: skip


def waiting(plan: Plan) -> Numbers:
    """The engine's own time in a step with few and with very many requests waiting."""
    numbers, vocab_size = plan.pick((10, 10_000), (2, 20)), plan.pick(49_152, 512)
    return {"points": engine_overhead.of_waiting(numbers, vocab_size, plan.pick(300, 10))}


def other_model(name: str) -> Callable[[Plan], Numbers]:
    def measure(plan: Plan) -> Numbers:
        own = plan if plan.is_quick else replace(plan, model=str(random_models.folder_of(name)))
        cases = {f"{n} streams": _case(own, n) for n in own.pick((1, 8, 32), (1, 2))}
        length = own.pick(992, 32)  # a GPT-2 has no more than 1,024 positions
        cases["prefill"] = Case(own.pick(4, 2), length, 1)
        found = _cases(own, own.variants(), cases)
        return {**found, "startup": startup.of_model(own)}

    measure.__doc__ = f"The same on a random {name}."
    return measure


PARTS: dict[str, Callable[[Plan], Numbers]] = {
    "floors": floors.measure,
    "steps": steps,
    "streams": streams,
    "long": long,
    "prefix": prefix,
    "rates": rates,
    "adapters": adapters.in_a_process,
    "steady": steady.measure,
    "steady-sources": steady.of_translator,
    "encoder": encoder,
    "classifiers": many_classifiers,
    "beams": beam_search,
    "deterministic": deterministic,
    **{name: other_model(name) for name in random_models.CONFIGS},
    "concurrency": growth.by_concurrency,
    "context": growth.by_context,
    "cache": growth.by_cache,
    "waiting": waiting,
    "startup": startup.measure,
}
PEER_PARTS: dict[str, Callable[[Plan], Numbers]] = {
    "peers": peers.decoders,
    "peer-encoders": peers.classifiers,
    "translation": translation.measure,
}
"""Only where they are asked for: they install what they compare with."""
EVERY_PART = PARTS | PEER_PARTS


def _case(plan: Plan, size: int, new_tokens: int = 64) -> Case:
    return Case(size, plan.pick(128, 8), plan.pick(new_tokens, 6))


def _cases(plan: Plan, variants: dict[str, list[str]], cases: dict[str, Case]) -> Numbers:
    with comparison.opened(plan, plan.model, variants) as sides:
        found = {name: comparison.compare(sides, case, plan.rounds) for name, case in cases.items()}
        return {"facts": sides.facts(), **found}


def measure(plan: Plan, names: list[str]) -> Iterator[tuple[str, Numbers]]:
    """Each part's results, when it is done; one that fails is told at once and has none."""
    for name in names:
        print(f"{name}: {(EVERY_PART[name].__doc__ or '').strip().splitlines()[0]}", flush=True)
        start = time.perf_counter()
        try:
            found = EVERY_PART[name](plan)
        except (Exception, SystemExit):
            traceback.print_exc()
            continue
        took_s = time.perf_counter() - start
        print(f"    {took_s:.0f} s", flush=True)
        yield name, {**found, "took_s": took_s}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=EVERY_PART, default=list(PARTS), help="these parts")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is reported")
    parser.add_argument("--quick", action="store_true", help="next to no work: to see that it runs")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="the decoder's folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--into", type=Path, help="earlier results that the parts which ran replace theirs in")
    parser.add_argument("--plots", type=Path, default=plots.FOLDER, help="where the plots go")
    parser.add_argument("serve_flags", nargs=argparse.REMAINDER, help="after --: flags for every server")
    args = parser.parse_args()
    quiet()
    flags = tuple(flag for flag in args.serve_flags if flag != "--")
    plan = Plan(args.model, args.rounds, is_quick=args.quick, seed=args.seed, serve_flags=flags)
    results = json.loads(args.into.read_text())["results"] if args.into else {}
    path, measured = args.into, []
    for name, found in measure(plan, args.only):
        results[name] = found
        measured.append(name)
        # After each part: a run that is broken off has measured something.
        path = save("bench", {"arguments": vars(args), "nice": nice_value(), "results": results}, into=path)
    plots.draw(results, machine()["cpu"], args.plots)
    tables = [targets.shown(results) if set(measured) - PEER_PARTS.keys() else peers.shown(results)]
    if "translation" in measured:
        tables.append(translation.shown(results["translation"]))
    print("\n\n".join(filter(None, tables)))
    print(f"saved to {path}")
    return 0 if measured == args.only else 1


if __name__ == "__main__":
    raise SystemExit(main())
