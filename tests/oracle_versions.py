"""Rules that transformers has repaired within the supported range: an older one is not an oracle for them."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version

REPAIRED = {
    "sequence_bias": "5.18",  # a sequence as long as the context was ignored
    "exponential_decay_length_penalty": "5.19",  # a token that another rule had forbidden became NaN
    "encoder_repetition_penalty with beams": "5.19",  # it was applied to the first beam alone
}
"""By the rule, the release from which on it does what transformers documents."""


def is_oracle(rule: str) -> bool:
    """Whether the installed transformers computes ``rule``; it does so for every rule that it has not repaired."""
    return Version(transformers.__version__) >= Version(REPAIRED.get(rule, "0"))


def needs_oracle(rule: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not is_oracle(rule), reason=f"transformers {transformers.__version__} computes {rule} wrongly"
    )
