"""Translators out of Bergamot's binaries: what is read, what is converted, what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, MarianMTModel

from server.defaults.translator import bergamot
from server.defaults.translator.attention import (
    Batch,
    Student,
    agreement,
    feed_forward_errors,
    joint_losses,
    layer_losses,
    metrics,
    padded,
)
from server.defaults.translator.marian import complete_folder
from server.defaults.translator.teacher import Teacher
from server.defaults.translator.train import weights_of
from tests.defaults.tiny_bergamot import MULTIPLIER, VOCABULARY, float32, int8, write, write_translator

SOURCES = [[5, 9, 17, 33, 2, 0], [41, 8, 0]]
TARGETS = [[7, 7, 12, 0], [30, 3, 4, 21, 11, 0]]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bergamot") / "model.enpt.intgemm.alphas.bin"
    write_translator(path)
    return path


@pytest.fixture(scope="module")
def teacher(binary: Path) -> Teacher:
    return Teacher(bergamot.read(binary))


@pytest.fixture
def folder(binary: Path, teacher: Teacher, tmp_path: Path) -> Path:
    """A converted folder whose attention is that of an untrained student."""
    pieces = [("</s>", 0.0), ("<unk>", 0.0), *((chr(0x61 + index), -float(index)) for index in range(VOCABULARY - 2))]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 1, "vocab": pieces, "byte_fallback": False},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    save_file(weights_of(student(teacher)), tmp_path / "attention.safetensors")
    complete_folder(binary, tmp_path)
    return tmp_path


def student(teacher: Teacher) -> Student:
    """With weights that bfloat16 holds exactly."""
    torch.manual_seed(1)
    made = Student(teacher)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(weight.bfloat16())
    return made


def test_reads_floats_and_eight_bit_matrices_as_they_were_before_storage(tmp_path: Path):
    random = np.random.default_rng(2)
    codes = random.integers(-127, 128, (6, 4), dtype=np.int8)
    bias = random.normal(size=(1, 4)).astype(np.float32)
    tensors = {"Wemb": int8(codes, transposed=False), "W": int8(codes), "b": float32(bias)}
    write(tmp_path / "m.bin", tensors | {"special:model.yml": (0x101, (3,), b"a:1")})
    found = bergamot.read(tmp_path / "m.bin")
    assert found.keys() == {"Wemb", "W", "b"}
    assert np.array_equal(found["W"], codes / np.float32(MULTIPLIER))
    assert np.array_equal(found["Wemb"], codes / np.float32(MULTIPLIER))
    assert np.array_equal(found["b"], bias)
    assert all(values.dtype == np.float32 for values in found.values())


def test_refuses_another_version(tmp_path: Path):
    write(tmp_path / "m.bin", {}, version=2)
    with pytest.raises(ValueError, match=r"m\.bin is no Marian model of version 1: it begins with 2"):
        bergamot.read(tmp_path / "m.bin")


def test_refuses_a_cut_file_with_both_sizes(tmp_path: Path):
    write(tmp_path / "m.bin", {"b": float32(np.zeros((1, 4), np.float32))})
    whole = (tmp_path / "m.bin").read_bytes()
    (tmp_path / "m.bin").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"is cut: it has {len(whole) - 1} bytes and needs at least {len(whole)}"):
        bergamot.read(tmp_path / "m.bin")


def test_refuses_an_unknown_type_by_name(tmp_path: Path):
    write(tmp_path / "m.bin", {"W": (0x402, (1, 1), b"\0\0")})
    with pytest.raises(ValueError, match="W has the type 0x402"):
        bergamot.read(tmp_path / "m.bin")


def test_the_converted_encoder_gives_the_originals_states(folder: Path, teacher: Teacher):
    model = MarianMTModel.from_pretrained(folder).eval()
    ids, mask = padded(SOURCES)
    with torch.inference_mode():
        found = model.model.encoder(ids, attention_mask=mask).last_hidden_state
        wanted = teacher.encode(ids, mask)
    assert torch.allclose(found[mask.bool()], wanted[mask.bool()], atol=1e-3)


def test_the_converted_model_gives_the_students_logits(folder: Path, teacher: Teacher):
    model = MarianMTModel.from_pretrained(folder).eval()
    (ids, mask), (target, counts) = padded(SOURCES), padded(TARGETS)
    begun = torch.cat([torch.full_like(target[:, :1], VOCABULARY), target[:, :-1]], dim=1)
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask, decoder_input_ids=begun).logits
        wanted = teacher.logits(student(teacher)(teacher, target, teacher.encode(ids, mask), mask))
    assert torch.allclose(found[counts.bool()][:, :VOCABULARY], wanted[counts.bool()], atol=1e-3)
    assert (found[..., VOCABULARY] < -1000).all()


def test_a_converted_folder_names_its_languages_ends_texts_and_begins_with_padding(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("ab").input_ids == [2, 3, 0]
    assert tokenizer("</s>").input_ids == [0, 0]
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (0, 1, VOCABULARY)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (settings["source_lang"], settings["target_lang"]) == ("en", "pt")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["num_beams"] == 4
    assert generation["bad_words_ids"] == [[VOCABULARY]]
    assert generation["decoder_start_token_id"] == VOCABULARY
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == VOCABULARY + 1
    assert not (folder / "attention.safetensors").exists()


def test_a_greedy_translation_is_what_the_teacher_gives_when_it_is_forced(teacher: Teacher):
    ids, mask = padded(SOURCES)
    encoded = teacher.encode(ids, mask)
    alone = [teacher.translate(*padded([source]), max_ratio=20)[0] for source in SOURCES]
    assert teacher.translate(ids, mask, max_ratio=20) == alone
    for row, target in enumerate(alone):
        if target is not None:
            states = teacher.forced(torch.tensor([target]), encoded[row : row + 1], mask[row : row + 1])
            assert teacher.logits(states[-1].outputs[0]).argmax(-1).tolist() == target


def test_training_brings_each_layer_and_both_together_nearer_to_the_teacher(teacher: Teacher):
    learner = student(teacher)
    batch = Batch.of(teacher, SOURCES, TARGETS, torch.float32)
    errors = metrics(teacher, [batch])
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)

    def losses() -> torch.Tensor:
        alone = [next(layer_losses(learner, layer, metric, [batch])) for layer, metric in enumerate(errors)]
        return torch.stack([*alone, next(joint_losses(learner, teacher, [batch]))])

    before = losses().detach()
    for _ in range(30):
        optimizer.zero_grad()
        losses().sum().backward()
        optimizer.step()
    assert (losses().detach() < 0.7 * before).all()
    assert 0 <= agreement(learner, teacher, [batch]) <= 1


def test_the_second_layer_is_trained_on_what_follows_from_the_first_ones_errors(teacher: Teacher):
    learner = student(teacher)
    batch = Batch.of(teacher, SOURCES, TARGETS, torch.float32)
    feed_forward_errors(learner, teacher, 0, [batch])
    with torch.inference_mode():
        source, mask = teacher.source(batch.encoded_BSD)[1], batch.mask_BS[:, None, None, :].bool()
        found = teacher.after_cell(2, learner.layers[1](batch.inputs[1]), source, mask)
        wanted = learner(teacher, batch.target_BT, batch.encoded_BSD, batch.mask_BS)
    assert torch.allclose(found[batch.counts_BT], wanted[batch.counts_BT], atol=1e-5)


def test_agreement_counts_the_teachers_choices_even_where_the_target_differs(teacher: Teacher):
    learner = student(teacher)
    batch = Batch.of(teacher, SOURCES, TARGETS, torch.float32)
    with torch.inference_mode():
        batch.outputs_BTD = learner(teacher, batch.target_BT, batch.encoded_BSD, batch.mask_BS)
    assert agreement(learner, teacher, [batch]) == 1
