"""The bench runs, compares in rounds, and says of every target whether it was met, missed or not measured."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import plots
import pytest
import targets
from part_timer import ATTENTION, FORWARD, HEAD, LINEARS, PARTS, SAMPLING, PartTimer
from rounds import interleave, medians, ratio

from tests.tiny_adapters import write_tiny_adapter

SCRIPTS = Path(__file__).parents[2] / "loadtest"


def test_every_round_measures_every_side_on_the_same_and_begins_with_another():
    calls: list[tuple[str, int]] = []

    def side(name: str):
        return lambda given: calls.append((name, given)) or {"speed": given * (2.0 if name == "a" else 1.0)}

    numbers = iter((1, 5, 3))
    measured = interleave({"a": side("a"), "b": side("b")}, lambda: next(numbers), 3)
    assert calls == [("a", 1), ("b", 1), ("b", 5), ("a", 5), ("a", 3), ("b", 3)]
    assert medians(measured) == {"a": {"speed": 6.0}, "b": {"speed": 3.0}}
    assert ratio(measured, "speed", "a", "b") == 2.0


def speeds(plain: float, int8: float) -> dict[str, Any]:
    return {
        "1 streams": {
            "sides": {
                "memory": {"bytes_per_s": 20e9},
                "plain": {"decode_ms": 20.0, "x_static": plain},
                "int8": {"decode_ms": 10.0, "x_static": int8},
            }
        },
        "8 streams": {"sides": {"plain": {"x_static": plain}, "int8": {"x_static": int8}}},
        "facts": {"plain": {"weight_bytes": 300e6}},
    }


def rows_of(results: dict[str, Any]) -> dict[str, list[str]]:
    return {target.name: target.row(results)[2:] for target in targets.TARGETS}


def test_a_target_is_met_missed_or_not_measured():
    rows = rows_of({"streams": speeds(2.8, 4.4)})
    assert rows["2. 8 streams, beside generate"] == ["2.80 x", "yes"]
    assert rows["2. 8 streams, int8"] == ["4.40 x", "NO"]
    assert rows["2. 32 streams, beside generate"] == ["-", "-"]


def test_the_bandwidth_floor_is_the_time_that_the_weights_take_to_read():
    rows = rows_of({"streams": speeds(1.0, 1.0)})
    assert rows["1. 1 stream, part of the bandwidth floor"] == ["75 %", "yes"]  # 15 of 20 ms
    assert rows["1. 1 stream, int8 beside bf16"] == ["2.00 x", "yes"]


def test_no_results_meet_no_target():
    assert {row[-1] for row in rows_of({}).values()} == {"-"}


def test_the_parts_of_a_step_add_up_to_it_and_the_product_is_as_before(tiny_llama):
    from step_parts import Decoding, model_config

    from server.native.linear import Linear
    from server.worker.__main__ import build

    engine, ready = build(
        model_config(str(tiny_llama), ["--threads", "1", "--dtype", "float32", "--kv-cache-gib", "0.01"])
    )
    decoding = Decoding(engine, ready.vocab_size, context=32, num_steps=3)
    forward = Linear.__call__
    timer = PartTimer(ready.vocab_size)
    with timer.patched():
        assert Linear.__call__ is not forward
        times = decoding.step_times(2, timer)
    assert Linear.__call__ is forward
    assert len(times) == 3
    assert set(timer.seconds) <= set(PARTS)
    assert all(timer.seconds[part] > 0 for part in (LINEARS, HEAD, ATTENTION, FORWARD, SAMPLING))
    assert sum(timer.seconds.values()) == pytest.approx(sum(times), rel=0.2)


def test_steps_with_adapters_are_measured_beside_the_base(tiny_llama, tmp_path):
    from adapters import measure
    from step_parts import Decoding, model_config

    from server.protocol import LoadAdapter
    from server.worker.__main__ import build

    flags = ["--threads", "1", "--dtype", "float32", "--kv-cache-gib", "0.01"]
    adapter = write_tiny_adapter(tmp_path / "adapter", Path(tiny_llama), "lora", "llama")
    engine, ready = build(
        model_config(str(tiny_llama), flags), adapters=[LoadAdapter("a", model_config(str(adapter), flags))]
    )
    decoding = Decoding(engine, ready.vocab_size, context=32, num_steps=3)
    found = measure(decoding, [ready.adapters[0].digest], {"2 streams": (2, 1)}, 1)["2 streams"]
    assert found["x_base"] == pytest.approx(found["adapted_ms"] / found["base_ms"])


@pytest.mark.timeout(300)
def test_the_bench_replaces_the_parts_that_ran_in_earlier_results_and_draws_them(tiny_llama, tmp_path):
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps({"results": {"waiting": {"points": []}, "streams": "old"}}))
    command = [sys.executable, SCRIPTS / "bench.py", "--quick", "--rounds", "1", "--model", str(tiny_llama)]
    command += ["--only", "floors", "streams", "--into", str(earlier), "--plots", str(tmp_path / "plots")]
    command += ["--", "--threads", "1", "--dtype", "float32"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads(earlier.read_text())["results"]
    assert results.keys() == {"floors", "streams", "waiting"}
    sides = results["streams"]["3 streams"]["sides"]
    assert sides["plain"]["tokens_per_s"] > 0
    assert sides["static batch"]["x_static"] == 1.0
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["beside-generate.svg"]


def test_pictures_without_numbers_are_not_drawn(tmp_path):
    assert plots.draw({}, "a processor", tmp_path) == []


def test_two_engines_are_measured_in_turn_and_compared(tiny_llama):
    import step_parts

    args = argparse.Namespace(
        model=str(tiny_llama), context=32, steps=3, serve_flags=["--threads", "1", "--kv-cache-gib", "0.01"]
    )
    engines = [step_parts.build(args, []), step_parts.build(args, ["--dtype", "float32"])]
    first, other = step_parts.measure(engines, [2], rounds=1)
    [[rows, step, attention]] = step_parts.as_parts_of(first, other)
    assert (rows, float(step) > 0, float(attention) > 0) == ("2", True, True)
