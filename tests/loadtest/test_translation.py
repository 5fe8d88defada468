"""The parts of the translators' bench that need no peer."""

from __future__ import annotations

import pytest
import translation
from translation import CTRANSLATE2, ONE_BY_ONE, STATIC, Case, Generate

from tests.tiny_encoder_decoders import write_tiny_encoder_decoder


def test_a_ratio_is_the_other_sides_time_over_ours():
    rounds = [
        {side: {"seconds": seconds, "cpu_s": 2 * seconds**2} for side, seconds in
         {"plain": 1.0, "int8": 0.5, ONE_BY_ONE: 8.0, STATIC: 3.0, CTRANSLATE2: 0.6}.items()}
    ]  # fmt: skip
    ratios = translation._ratios(rounds)
    assert ratios[f"plain / {ONE_BY_ONE}"] == {"seconds": 8.0, "cpu_s": 64.0}
    assert ratios[f"int8 / {CTRANSLATE2}"]["seconds"] == pytest.approx(1.2)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generate_writes_outputs_of_one_length_for_sources_of_several(tmp_path, num_beams):
    generate = Generate(write_tiny_encoder_decoder(tmp_path, "marian"), 1)
    sources = [[5, 6, 7], [8, 9, 10, 11, 12]]
    case = Case(2, num_beams, new_tokens=4)
    for batches in ([sources], [[source] for source in sources]):
        assert generate.run(batches, case)["seconds"] > 0


def test_the_table_has_a_column_for_every_side_and_ratio():
    sides = {side: {"seconds": 2.0, "cpu_s": 1.0} for side in ("plain", "int8", ONE_BY_ONE, STATIC, CTRANSLATE2)}
    case = {"requests": 8, "num_beams": 4, "new_tokens": 32}
    found = {"cases": {"8 x 4": {"case": case, "sides": sides, "ratios": translation._ratios([sides])}}}
    header, row = translation.shown(found).splitlines()
    assert all(name in header for name in sides)
    assert "128" in row
