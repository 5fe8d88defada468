"""Whatever the family, a text gets what transformers gives it alone, whoever shares its step and came before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from server.encoder.build import Wishes, build_forward
from server.encoder.engine import EncoderEngine
from server.encoder.trial import Frame
from server.errors import ConfigurationError
from server.protocol import Encode, MaskQuery, Scores, Stats
from tests.encoder.families import (
    CLS_ID,
    END_ID,
    FAMILIES,
    MASK_ID,
    MAX_MODEL_LEN,
    PAD_ID,
    VOCAB_SIZE,
    Head,
    batching_of,
    fresh_model,
    has_head,
)

torch.set_num_threads(1)

# Around every switch of the configs, and where the trial at load looks.
LENGTHS = (150, 3, 17, 40, 9, 41, 41, 160, 29, MAX_MODEL_LEN)
HEADS: tuple[Head, ...] = ("classify", "ner", "fill-mask", "question-answering")
CASES = [(family, head) for family in FAMILIES for head in HEADS if has_head(family, head)]


def test_at_least_26_families_are_covered() -> None:
    assert len(FAMILIES) >= 26


def test_a_head_that_takes_no_single_text_is_refused_at_load() -> None:
    with pytest.raises(ConfigurationError, match="separator tokens"):
        engine_of("longformer", "question-answering")


@pytest.mark.parametrize(("family", "head"), CASES)
def test_every_family_answers_each_text_as_transformers_does_alone(family: str, head: Head) -> None:
    commands = commands_of(head)
    expected = [alone(family, head, command) for command in commands]
    engine = engine_of(family, head)
    assert engine._forward.batching == batching_of(family, head)
    for order in (commands, commands[::-1]):
        answers, num_steps = run(engine, order)
        for command, values in zip(commands, expected, strict=True):
            np.testing.assert_allclose(answers[command.request_id], values, atol=1e-4, rtol=1e-4)
        assert num_steps <= len(commands) - (engine._forward.batching != "one by one")


def engine_of(family: str, head: Head) -> EncoderEngine:
    module = fresh_model(family, head)
    forward = build_forward(
        module,
        pad_token_id=module.config.pad_token_id,
        max_model_len=MAX_MODEL_LEN,
        wishes=Wishes(),
        pack=lambda module: None,
        frame=Frame([CLS_ID], [END_ID]),
    )
    return EncoderEngine(forward, task=head, max_batch_tokens=4096, max_model_len=MAX_MODEL_LEN)


def commands_of(head: Head) -> list[Encode]:
    """Texts as they may come: one holds a padding token, one an end token."""
    generator = np.random.default_rng(0)
    texts = [[CLS_ID, *generator.integers(5, VOCAB_SIZE, length - 2).tolist(), END_ID] for length in LENGTHS]
    texts[2][5], texts[3][5] = PAD_ID, END_ID
    mask = MaskQuery([1], top_k=VOCAB_SIZE) if head == "fill-mask" else None
    for token_ids in texts:
        token_ids[1] = MASK_ID
    return [Encode(str(number), token_ids, None, mask) for number, token_ids in enumerate(texts)]


def alone(family: str, head: Head, command: Encode) -> np.ndarray:
    """By a model that has never seen another text."""
    module = fresh_model(family, head)
    # For the one family that draws random numbers.
    torch.manual_seed(0)
    token_ids = torch.tensor([command.token_ids])
    with torch.inference_mode():
        output = module(input_ids=token_ids, attention_mask=torch.ones_like(token_ids))
    if head == "question-answering":
        return torch.stack((output.start_logits[0], output.end_logits[0]), dim=-1).numpy()
    logits = output.logits[0]
    return np.asarray(logits[1].softmax(-1) if head == "fill-mask" else logits)


def run(engine: EncoderEngine, commands: Sequence[Encode]) -> tuple[dict[str, np.ndarray], int]:
    """The answers, those of a mask query in the order of the vocabulary; and the number of steps."""
    for command in commands:
        engine.add(command)
    answers: dict[str, np.ndarray] = {}
    num_steps = 0
    while engine.has_work:
        *replies, stats = engine.step()
        assert isinstance(stats, Stats)
        num_steps += 1
        for reply in replies:
            assert isinstance(reply, Scores), reply
            values = np.frombuffer(reply.data, "<f4").reshape(reply.shape)
            if reply.candidate_ids is not None:
                values = values[0][np.argsort(reply.candidate_ids[0])]
            answers[reply.request_id] = values
    return answers, num_steps
