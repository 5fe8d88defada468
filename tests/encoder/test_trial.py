"""The texts that every way through a module is tried on, and what their outcome decides."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from server.encoder.batching import PaddedRequests
from server.encoder.build import Wishes, build_forward, find_grouping
from server.encoder.forward import Forward, PaddedForward
from server.encoder.grouping import ONE_BY_ONE, PADDED, Grouping
from server.encoder.trial import Frame, Trial, _switches, run_alone
from server.errors import EXIT_MODEL, ConfigurationError
from server.protocol import Encode
from tests.encoder.families import BERT, CLS_ID, DECODER, END_ID, PAD_ID, VOCAB_SIZE, family_model
from tests.tiny_encoders import tiny_encoder

torch.set_num_threads(1)

FRAME = Frame([CLS_ID], [END_ID])


def trial_of(module: PreTrainedModel, max_model_len: int = 200, frame: Frame = FRAME) -> Trial:
    return run_alone(PaddedForward(module, PAD_ID, ONE_BY_ONE), frame, max_model_len)


def built(module: PreTrainedModel) -> Forward:
    module = copy.deepcopy(module)
    return build_forward(
        module, pad_token_id=PAD_ID, max_model_len=200, wishes=Wishes(), pack=lambda module: None, frame=FRAME
    )


def test_every_text_of_the_trial_begins_and_ends_as_real_ones() -> None:
    batch = trial_of(tiny_encoder("bert", "classify"), 64).batch
    assert all(command.token_ids[0] == CLS_ID and command.token_ids[-1] == END_ID for command in batch)
    assert [command.token_ids.count(END_ID) for command in batch] == [1, 1, 1, 1, 2, 1]
    assert [len(command.token_ids) for command in batch] == [3, 40, 41, 41, 41, 64]


@pytest.mark.parametrize("has_types", [True, False])
def test_the_trial_has_token_types_where_the_tokenizer_gives_them(has_types: bool) -> None:
    frame = Frame([CLS_ID], [END_ID], has_types)
    types = [command.token_type_ids for command in trial_of(tiny_encoder("bert", "classify"), 64, frame).batch]
    assert all((each is not None) == has_types for each in types)
    assert any(1 in each for each in types if each) == has_types


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"local_attention": 128, "global_attn_every_n_layers": 3}, [128]),
        ({"attention_window": [64, 256, 64]}, [64, 256]),
        ({"sliding_window": None, "use_sliding_window": True, "max_position_embeddings": 512}, []),
        ({"attention_type": "block_sparse", "block_size": 64, "num_random_blocks": 3}, [64, 704]),
        ({"rope_parameters": {"factor": 8.0, "original_max_position_embeddings": 4096}}, [4096]),
        ({"rope_parameters": {"rope_type": "dynamic"}, "max_position_embeddings": 512}, [512]),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}, "max_position_embeddings": 512}, [512]),
        ({"rope_parameters": {"rope_type": "linear"}, "max_position_embeddings": 512}, []),
        ({"max_relative_positions": -1, "lsh_attn_chunk_length": 32}, [32]),
    ],
)
def test_every_length_from_which_a_config_computes_otherwise_is_a_switch(
    fields: dict[str, Any], expected: list[int]
) -> None:
    assert _switches(SimpleNamespace(**fields)) == expected


def test_a_text_beyond_every_switch_is_tried() -> None:
    module = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("bert", **{**BERT, "max_position_embeddings": 500}, vocab_size=VOCAB_SIZE, my_window=300)
    ).eval()
    assert [len(command.token_ids) for command in trial_of(module, 500).batch][-1] == 301


def test_texts_beyond_a_switch_too_far_for_the_trial_share_a_pass_only_at_equal_lengths() -> None:
    fields = {**BERT, "max_position_embeddings": 5000, "my_window": 2000}
    module = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("bert", **fields, vocab_size=VOCAB_SIZE)
    ).eval()
    trial = trial_of(module, 5000)
    grouping = find_grouping(module, PAD_ID, trial)
    lengths = [5, 2000, 2001, 2002, 2001]
    assert grouping.batching == "padded"
    assert grouping.groups([Encode("", [CLS_ID] * length) for length in lengths]) == [[0, 1], [2, 4], [3]]


def test_texts_are_padded_up_to_a_switch_if_only_those_beyond_it_feel_the_padding() -> None:
    grouping = built(family_model("big_bird", "classify")).grouping  # type: ignore[attr-defined]
    lengths = [5, 168, 169, 170, 169]
    assert grouping.batching == "padded"
    assert grouping.groups([Encode("", [CLS_ID] * length) for length in lengths]) == [[0, 1], [2, 4], [3]]


def test_only_requests_of_one_group_share_a_step() -> None:
    lengths = [9, 8, 9, 8, 7]
    for grouping, expected in [(PADDED, [5]), (Grouping("equal lengths"), [1, 2, 2]), (ONE_BY_ONE, [1] * 5)]:
        requests = PaddedRequests(4096, grouping)
        for number, length in enumerate(lengths):
            requests.add(Encode(str(number), [CLS_ID] * length))
        sizes = []
        while requests:
            batch = requests.take()
            sizes.append(len(batch))
            assert len(grouping.groups(batch)) == 1
        assert sorted(sizes) == expected


@pytest.mark.parametrize("family", ["fnet", "bart"])
def test_a_batch_of_several_groups_is_answered_in_its_order(family: str) -> None:
    forward = built(family_model(family, "classify"))
    commands = [Encode(str(n), [CLS_ID, *range(5, 5 + n), END_ID]) for n in (9, 3, 9, 4)]
    commands[1].token_ids[1] = END_ID
    with torch.inference_mode():
        together = forward.logits(commands)
        singles = torch.cat([forward.logits([command]) for command in commands])
    torch.testing.assert_close(together, singles, atol=1e-4, rtol=1e-4)


def test_texts_of_equal_length_with_different_numbers_of_end_tokens_stay_apart() -> None:
    forward = built(family_model("bigbird_pegasus", "classify"))
    one, two = ([CLS_ID, *range(5, 14), END_ID] for _ in range(2))
    two[4] = END_ID
    with torch.inference_mode():
        together = forward.logits([Encode("one", one), Encode("two", two)])
        singles = torch.cat([forward.logits([Encode("", ids)]) for ids in (one, two)])
    torch.testing.assert_close(together, singles, atol=1e-4, rtol=1e-4)


def decoder_classifier(**fields: Any) -> PreTrainedModel:
    config = AutoConfig.for_model("llama", **{**DECODER, "vocab_size": VOCAB_SIZE, "pad_token_id": PAD_ID, **fields})
    torch.manual_seed(0)
    module: PreTrainedModel = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return module


def test_a_long_text_does_not_change_the_rotary_factors_of_a_shorter_one() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
    module = decoder_classifier(max_position_embeddings=160, rope_parameters=rope)
    forward = built(module)
    commands = [Encode(str(length), [CLS_ID, *[5, 9, 7, 30] * (length // 4)]) for length in (152, 164, 188)]
    with torch.inference_mode():
        together = forward.logits(commands)
        singles = torch.cat([copy.deepcopy(module)(torch.tensor([each.token_ids])).logits for each in commands])
    torch.testing.assert_close(together, singles, atol=1e-4, rtol=1e-4)
    assert forward.batching == "padded"


def test_a_model_may_have_several_end_tokens() -> None:
    assert built(decoder_classifier(eos_token_id=[END_ID, 9])).batching == "padded"


def test_a_mask_is_filled_as_alone_in_a_batch_of_several_groups() -> None:
    forward = built(family_model("fnet", "fill-mask"))
    commands = [Encode(str(n), [CLS_ID, *range(5, 5 + n), END_ID]) for n in (9, 3)]
    first = torch.tensor([1])
    with torch.inference_mode():
        together = forward.logits_at(commands, torch.arange(2), first.expand(2))
        singles = torch.cat([forward.logits_at([command], torch.tensor([0]), first) for command in commands])
    torch.testing.assert_close(together, singles, atol=1e-4, rtol=1e-4)


def test_a_short_text_does_not_change_how_a_long_one_is_answered() -> None:
    module = family_model("big_bird", "classify")
    long, short = Encode("long", [*range(2, 92), *range(2, 92)]), Encode("short", [2, 9, 3])
    fresh = PaddedForward(copy.deepcopy(module), PAD_ID)
    worn = PaddedForward(copy.deepcopy(module), PAD_ID)
    with torch.inference_mode():
        worn.logits([short])
        assert worn.module.base_model.attention_type == "block_sparse"
        torch.testing.assert_close(worn.logits([long]), fresh.logits([long]))


def test_a_plan_whose_steps_change_the_module_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    module = tiny_encoder("bert", "classify")

    def count(part: Any, *_: Any) -> None:
        part.num_steps = getattr(part, "num_steps", 0) + 1

    module.bert.embeddings.register_forward_pre_hook(count)
    caplog.set_level("INFO")
    forward = build_forward(
        module, pad_token_id=PAD_ID, max_model_len=64, wishes=Wishes(), pack=lambda module: None, frame=FRAME
    )
    assert forward.batching == "padded"
    assert "a step changes its bert.embeddings.num_steps" in caplog.text
    with torch.inference_mode():
        forward.logits([Encode("", [2, 9, 3])])
    assert not hasattr(module.bert.embeddings, "num_steps")


def test_a_model_that_cannot_run_a_text_is_refused_in_one_sentence() -> None:
    # Landmarks of segments of a fixed length: transformers runs texts of that length alone.
    config = AutoConfig.for_model(
        "nystromformer", **BERT, vocab_size=VOCAB_SIZE, segment_means_seq_len=64, num_landmarks=8
    )
    module = AutoModelForSequenceClassification.from_config(config).eval()
    with pytest.raises(
        ConfigurationError, match=r"^This nystromformer model cannot run a text of 3 tokens \(.*\)\. Serve"
    ) as error:
        trial_of(module)
    assert error.value.exit_code == EXIT_MODEL
