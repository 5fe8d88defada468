"""Converted tokenizers beside transformers' own slow ones, on texts of many scripts."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from server.errors import ConfigurationError
from server.models.tokenizer_files import load_tokenizer, tokenizer_files
from server.serving.source_text import AS_TOKENIZED
from server.text.detokenizer import Detokenizer
from server.text.source_tokens import cut, source_tokens
from server.text.tokenizer import Tokenizer
from tests.fuzz.scale import SCALE
from tests.many_scripts import random_texts
from tests.tiny_sentencepiece import train, write_json, write_m2m100, write_marian, write_plbart, write_prophetnet
from tests.tiny_tokenizers import tokenizer_files as tokenizer_files_of

TAGS = [">>fra<<", ">>por_BR<<"]
M2M100_TAGS = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
NUM_TEXTS = 100 if SCALE == 1 else 1000 * SCALE
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no normalisation": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "case folding": {"normalization_rule_name": "nfkc_cf"},
    "byte fallback": {"byte_fallback": True, "vocab_size": 700},
    "symbols": {"user_defined_symbols": ("<sep>", "mill", "\u516c\u56ed", "#"), "control_symbols": ("<ctl>", "<x>")},
    "no dummy prefix": {"add_dummy_prefix": False},
    "space behind words": {"treat_whitespace_as_suffix": True},
    "whole spaces": {"split_by_whitespace": False, "allow_whitespace_only_pieces": True},
}


def marian(kind: str, **settings: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        source, target = train("unigram", **VARIANTS[kind]), train("unigram", vocab_size=200)
        return write_marian(folder, source, target, TAGS, **settings)

    return write


def write_byt5(folder: Path) -> Path:
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 20})
    write_json(folder / "config.json", {"model_type": "t5"})
    return folder


def prophetnet(**settings: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        return write_prophetnet(folder, clean_up_tokenization_spaces=False, **settings)

    return write


FOLDERS: dict[str, Callable[[Path], Path]] = {
    **{f"marian, {kind}": marian(kind) for kind in VARIANTS},
    **{
        f"m2m100, {kind}": lambda folder, options=options: write_m2m100(
            folder, train("bpe", **options), additional_special_tokens=M2M100_TAGS, src_lang="en"
        )
        for kind, options in VARIANTS.items()
    },
    "plbart": lambda folder: write_plbart(folder, train("bpe"), src_lang="python", clean_up_tokenization_spaces=False),
    "byt5": write_byt5,
    "prophetnet": prophetnet(),
    "prophetnet, cased": prophetnet(do_lower_case=False, tokenize_chinese_chars=False),
    "prophetnet, accents": prophetnet(strip_accents=False),
}


def loaded(folder: Path) -> tuple[Any, Tokenizer]:
    """transformers' own, and ours as the front makes it of what the worker sends."""
    with warnings.catch_warnings():
        # Without sacremoses Marian's texts stay as they are.
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        return AutoTokenizer.from_pretrained(folder), Tokenizer(tokenizer_files(load_tokenizer(folder)))


def written(ours: Tokenizer, ids: list[int]) -> str:
    """As an answer is written, a token at a time."""
    detokenizer = Detokenizer(ours)
    return "".join([*map(detokenizer.push, ids), detokenizer.finish()])


def differences(
    slow: Any, ours: Tokenizer, texts: list[str], *, decodes: bool = True, as_target: bool = False
) -> list[str]:
    """Texts that become other tokens, and tokens that become another text."""
    found = []
    for text in texts:
        expected = (slow(text_target=text) if as_target else slow(text)).input_ids
        ids = ours.encode(text).ids
        if ids != expected:
            found.append(f"{text!r}: {ids} and not {expected}")
        if not decodes:
            continue
        right = slow.decode(expected, skip_special_tokens=True)
        if (got := written(ours, expected)) != right:
            found.append(f"{text!r}: {got!r} and not {right!r}")
        right = slow.decode(expected, skip_special_tokens=False)
        got = ours.decode(expected, skip_special_tokens=False)
        if (got.strip() if ours.files.strips_text else got) != right:
            found.append(f"{text!r}, special tokens kept: {got!r} and not {right!r}")
    return found


@pytest.mark.parametrize("kind", FOLDERS)
def test_reads_and_writes_what_the_slow_tokenizer_does(kind: str, tmp_path: Path) -> None:
    slow, ours = loaded(FOLDERS[kind](tmp_path))
    # ByT5 alone adds no end token to a text that spells one at its end; a tokenizer of the library always adds it.
    texts = [text for text in random_texts(NUM_TEXTS, seed=1) if kind != "byt5" or not text.rstrip().endswith("</s>")]
    found = differences(slow, ours, texts)
    assert found == [], f"{len(found)} differences, such as {found[0]}"


@pytest.mark.parametrize("settings", [{}, {"separate_vocabs": True}], ids=["one vocabulary", "two vocabularies"])
def test_reads_sources_and_targets_of_marian_apart(settings: dict[str, Any], tmp_path: Path) -> None:
    slow, ours = loaded(marian("plain", **settings)(tmp_path))
    texts = random_texts(NUM_TEXTS, seed=2)
    found = differences(slow, ours, texts, decodes=False) + differences(slow, ours.target, texts, as_target=True)
    assert found == [], f"{len(found)} differences, such as {found[0]}"


@pytest.mark.parametrize("kind", ["plbart", "prophetnet"])
def test_cleans_up_spaces_where_the_folder_says_so(kind: str, tmp_path: Path) -> None:
    options = {"clean_up_tokenization_spaces": True}
    plbart = kind == "plbart"
    folder = write_plbart(tmp_path, train("bpe"), **options) if plbart else write_prophetnet(tmp_path, **options)
    slow, ours = loaded(folder)
    for text in random_texts(NUM_TEXTS, seed=3):
        ids = slow(text).input_ids
        assert ours.decode(ids).strip() == slow.decode(ids, skip_special_tokens=True)


def test_offsets_name_the_characters_of_the_text_as_given(tmp_path: Path) -> None:
    _, ours = loaded(marian("plain")(tmp_path))
    text = ">>fra<<The  river runs past the mill"
    encoding = ours.encode(text)
    pieces = [(token, text[start:end]) for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True)]
    assert pieces[0] == (">>fra<<", ">>fra<<")
    assert all(token.removeprefix("\u2581") == part.strip() for token, part in pieces[1:-1] if token != "<unk>")


def test_other_threads_run_while_a_long_text_is_cut(tmp_path: Path) -> None:
    _, ours = loaded(marian("plain")(tmp_path))
    text = " ".join(random_texts(2000, seed=4))
    is_done = threading.Event()
    thread = threading.Thread(target=lambda: (ours.encode(text), is_done.set()))
    thread.start()
    turns = 0
    while not is_done.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 5


@pytest.mark.parametrize("kind", [kind for kind in FOLDERS if kind.startswith(("marian", "m2m100", "plbart"))])
def test_the_beginning_of_a_long_text_has_the_tokens_to_which_the_slow_tokenizer_cuts_it(
    kind: str, tmp_path: Path
) -> None:
    slow, ours = loaded(FOLDERS[kind](tmp_path))
    texts = random_texts(500, seed=7)
    plain = [text for text in texts if not any(token in text for token in ("</s>", "<unk>", "__fr__", "<pad>", "<s>"))]
    for text, is_plain in ((" ".join(texts), False), (">>fra<<" + "".join(plain), True)):
        wanted = slow(text, add_special_tokens=False, truncation=True, max_length=800).input_ids
        for count in (1, 7, 800):
            part = ours.beginning(text, count)
            assert ours.encode(part, add_special_tokens=False).ids[:count] == wanted[:count]
            _, ids, num_last = source_tokens(ours, AS_TOKENIZED, text, count + 2)
            cut_by_slow = slow.build_inputs_with_special_tokens(wanted[:count])[: count + 2]
            assert cut(ids, num_last, len(cut_by_slow)) == cut_by_slow
            # A model that writes spaces behind words adds one to a part.
            assert len(part) < len(text) or not is_plain or "behind" in kind


def test_a_short_text_and_one_of_another_tokenizer_are_their_own_beginning(tmp_path: Path) -> None:
    _, ours = loaded(marian("plain")(tmp_path / "marian"))
    assert ours.beginning("word " * 100, 5) == "word " * 100
    _, ours = loaded(write_byt5(tmp_path))
    assert ours.beginning("word " * 10_000, 5) == "word " * 10_000


@pytest.mark.parametrize("kind", ["marian, plain", "m2m100, plain", "byt5"])
def test_never_counts_more_tokens_in_a_long_text_than_it_has(kind: str, tmp_path: Path) -> None:
    _, ours = loaded(FOLDERS[kind](tmp_path))
    for text in ("\u6f22" * 20_000, "word " * 5000, "river" * 5000, " ".join(random_texts(300, seed=5))):
        assert ours.at_least(text, 10**9) <= len(ours.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("tokenizer_class", ["T5Tokenizer", "MBart50Tokenizer"])
def test_reads_a_folder_whose_tokenizer_is_a_sentencepiece_model_alone(tokenizer_class: str, tmp_path: Path) -> None:
    name, model_type = ("spiece.model", "mt5") if tokenizer_class[0] == "T" else ("sentencepiece.bpe.model", "mbart")
    (tmp_path / name).write_bytes(train("unigram"))
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": tokenizer_class})
    write_json(tmp_path / "config.json", {"model_type": model_type})
    expected, ours = loaded(tmp_path)
    assert all(ours.encode(text).ids == expected(text).input_ids for text in random_texts(50, seed=6))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("source.spm", b""),
        ("source.spm", b"not a model"),
        ("target.spm", train("unigram")[:-100]),
        ("vocab.json", b"{"),
        ("vocab.json", b"[]"),
        ("vocab.json", b'{"a": 0}'),
        ("vocab.json", b'{"<unk>": "x", "</s>": 0, "<pad>": 1}'),
        ("vocab.json", b'{"<unk>": -1, "</s>": 0, "<pad>": 1}'),
        ("vocab.json", b'{"<unk>": 1, "</s>": 0, "<pad>": 1.5}'),
        ("vocab.json", b'{"<unk>": 1, "</s>": 0, "<pad>": 99999999999}'),
    ],
)
def test_refuses_a_damaged_file_in_one_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    folder = marian("plain")(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_names_a_tokenizer_that_has_no_fast_form(tmp_path: Path) -> None:
    write_prophetnet(tmp_path, do_basic_tokenize=False)
    with pytest.raises(ConfigurationError, match="is a ProphetNetTokenizer, which has no fast form"):
        load_tokenizer(tmp_path)
    # What the message advises.
    (tmp_path / "tokenizer.json").write_text(tokenizer_files_of("word_piece").tokenizer_json)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert load_tokenizer(tmp_path).backend_tokenizer is not None


def test_names_a_tokenizer_of_blenderbot_small_and_what_one_of_fsmt_lacks(tmp_path: Path) -> None:
    small, fsmt = tmp_path / "small", tmp_path / "fsmt"
    for folder in (small, fsmt):
        folder.mkdir()
        (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    write_json(small / "vocab.json", {"__null__": 0, "__start__": 1, "__end__": 2, "__unk__": 3, "ab": 4})
    write_json(small / "tokenizer_config.json", {"tokenizer_class": "BlenderbotSmallTokenizer"})
    write_json(small / "config.json", {"model_type": "blenderbot-small"})
    with pytest.raises(ConfigurationError, match=r"is a BlenderbotSmallTokenizer.* Add a tokenizer.json to the folder"):
        load_tokenizer(small)
    for name in ("vocab-src.json", "vocab-tgt.json"):
        write_json(fsmt / name, {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "ab</w>": 4})
    write_json(fsmt / "tokenizer_config.json", {"tokenizer_class": "FSMTTokenizer", "langs": ["en", "de"]})
    write_json(fsmt / "config.json", {"model_type": "fsmt"})
    with pytest.raises(ConfigurationError, match=r"cannot be loaded .*sacremoses.* Save it again as tokenizer.json"):
        load_tokenizer(fsmt)
