"""The weighted sum of adapters, layer by layer."""

from __future__ import annotations

import pytest
import torch

from server.modules.adapted import LayerChange, NotShared
from server.modules.mixture import weighted_sum

A, B, BIAS = torch.ones(2, 3), torch.ones(4, 2), torch.ones(4)


def test_layers_of_one_part_alone_keep_its_weight() -> None:
    first, second = {"x": LayerChange(a_RK=A, b_NR=B)}, {"x": LayerChange(a_RK=2 * A, b_NR=B, added_N=BIAS)}
    found = weighted_sum([(0.5, {**first, "y": LayerChange(added_N=BIAS)}), (-2.0, second)])
    x, y = found["x"], found["y"]
    assert x.a_RK is not None and x.b_NR is not None and x.added_N is not None and y.added_N is not None
    assert torch.equal(x.b_NR @ x.a_RK, 0.5 * B @ A - 2.0 * B @ (2 * A))
    assert torch.equal(x.added_N, -2.0 * BIAS) and torch.equal(y.added_N, 0.5 * BIAS)
    assert y.a_RK is None and y.b_NR is None


@pytest.mark.parametrize("field", ["in_K", "out_N", "magnitude_N", "bias_N"])
def test_a_change_that_does_not_add_up_is_refused_with_its_layer(field: str) -> None:
    with pytest.raises(NotShared, match="and layer has more"):
        weighted_sum([(1.0, {"layer": LayerChange(**{field: BIAS})})])
