"""What the stream of text deltas promises, for every kind of tokenizer."""

from __future__ import annotations

import itertools

import msgspec
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from server.protocol import TokenizerFiles
from server.text.detokenizer import Detokenizer
from server.text.stop_strings import StopStrings
from server.text.tokenizer import Tokenizer
from tests.tiny_tokenizers import KINDS, tokenizer_files

TEXTS = [
    "The river runs past the mill, and the miller counts.",
    "今天天气很好，我们去公园散步。你好，世界！",
    "مرحبا بالعالم",
    "😀🚀 family: 👨‍👩‍👧 heart ❤️ flag 🇩🇪 end",
    "naïve cafés — Über den Flüssen",
    "  two  spaces\n\nand\tlines  ",
    "zażółć gęślą jaźń, ｆｕｌｌ ｗｉｄｔｈ, ไทย",
]
TOKENIZERS = {kind: Tokenizer(tokenizer_files(kind)) for kind in KINDS}
FALLBACK = [kind for kind in KINDS if "ByteFallback" in TOKENIZERS[kind].decoder_types]
# A decoder of several steps gives characters, not bytes: a run of bytes that are no text is cut elsewhere.
EXACT_FOR_ANY_IDS = [kind for kind in KINDS if kind not in FALLBACK and kind != "byte_level_in_a_sequence"]


def deltas(tokenizer: Tokenizer, ids: list[int], prompt_ids: list[int] = (), stop: list[str] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt_ids, stop)
    result = []
    for id_ in ids:
        result.append(detokenizer.push(id_))
        if detokenizer.stop_string is not None:
            return result
    return [*result, detokenizer.finish()]


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    size = tokenizer.backend.get_vocab_size()
    # Ids above the vocabulary exist in models with padded embeddings.
    return st.lists(st.integers(0, size + 3), max_size=40)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_deltas_joined_are_the_decoded_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text).ids
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_in_a_sequence", "byte_fallback"])
@pytest.mark.parametrize("text", TEXTS)
def test_every_delta_is_whole_characters_and_text_comes_back_unchanged(kind: str, text: str) -> None:
    parts = deltas(TOKENIZERS[kind], TOKENIZERS[kind].encode(text).ids)
    assert "".join(parts) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


@pytest.mark.parametrize("kind", EXACT_FOR_ANY_IDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_deltas_joined_are_the_decoded_text_for_any_ids(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(ids_of(tokenizer))
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_deltas_continue_the_prompt(kind: str, data: st.DataObject) -> None:
    """A word that the model begins is parted from the prompt by its space, as where both are decoded together."""
    tokenizer = TOKENIZERS[kind]
    texts = st.text(alphabet="The river mill 今天好 😀é,.", min_size=1, max_size=20).filter(str.strip)
    prompt_ids = tokenizer.encode(data.draw(texts)).ids
    ids = tokenizer.encode(data.draw(texts)).ids
    whole = tokenizer.decode(prompt_ids + ids)
    assert tokenizer.decode(prompt_ids) + "".join(deltas(tokenizer, ids, prompt_ids)) == whole


@pytest.mark.parametrize("kind", FALLBACK)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_byte_tokens_among_words_become_their_characters(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    id_of = {value: id_ for id_, value in tokenizer.fallback_bytes.items()}
    words = tokenizer.encode("The mill runs past the river").ids
    ids: list[int] = []
    for piece in data.draw(st.lists(st.one_of(st.text(min_size=1, max_size=3), st.sampled_from(words)), max_size=12)):
        ids += [piece] if isinstance(piece, int) else [id_of[bytes([byte])] for byte in piece.encode()]
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", FALLBACK)
def test_whole_characters_of_a_broken_run_of_byte_tokens_stay(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    id_of = {value: id_ for id_, value in tokenizer.fallback_bytes.items()}
    ids = [id_of[bytes([byte])] for byte in "好".encode() + "😀".encode()[:2]]
    after = tokenizer.encode("The mill").ids[-1]
    parts = deltas(tokenizer, [*ids, after])
    assert parts[:5] == ["", "", "好", "", ""]
    assert parts[5].startswith("\N{REPLACEMENT CHARACTER}") and parts[5][1:].strip()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_stop_string_is_ever_seen_and_all_text_before_it_is(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.one_of(ids_of(tokenizer), st.sampled_from(TEXTS).map(lambda text: tokenizer.encode(text).ids)))
    whole = "".join(deltas(tokenizer, ids))
    piece = st.tuples(st.integers(0, max(len(whole) - 1, 0)), st.integers(1, 12)).map(
        lambda at: whole[at[0] : at[0] + at[1]] or "zzz"
    )
    stop = data.draw(st.lists(st.one_of(piece, st.text(min_size=1, max_size=4)), min_size=1, max_size=4))
    sent = ""
    for delta in deltas(tokenizer, ids, stop=stop):
        sent += delta
        assert not any(string in sent for string in stop)
    assert sent == before_first_stop(whole, stop)


def before_first_stop(text: str, stop: list[str]) -> str:
    """By definition: cut at the stop string that is complete first, the longest of those that end together."""
    for end in range(len(text) + 1):
        complete = [string for string in stop if text[:end].endswith(string)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text(alphabet="abc", max_size=6), max_size=12),
    stop=st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4),
)
def test_where_the_text_was_cut_changes_no_stop(pieces: list[str], stop: list[str]) -> None:
    watched = StopStrings(stop)
    sent = "".join(watched.push(piece) for piece in pieces)
    assert sent + watched.finish() == before_first_stop("".join(pieces), stop)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    watched = StopStrings(["\nUser:", "###"])
    assert [watched.push(piece) for piece in ["Hi", "\nUs", "ing ", "#", "#", " x#", "##"]] == [
        "Hi",
        "",
        "\nUsing ",
        "",
        "",
        "## x",
        "",
    ]
    assert watched.found == "###"
    assert watched.push("more") == ""


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_no_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    special = sorted(tokenizer.special_ids)
    assert special
    ids = tokenizer.encode("The mill runs").ids
    mixed = [id_ for pair in zip(ids, (special * len(ids))[: len(ids)], strict=True) for id_ in pair]
    assert "".join(deltas(tokenizer, special + mixed)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_in_a_sequence", "byte_fallback_strip"])
def test_halves_of_characters_without_end_are_sent_not_hoarded(kind: str) -> None:
    """A model that has lost its way may emit first bytes for ever: the stream still moves, and memory stays flat."""
    tokenizer = TOKENIZERS[kind]
    half = next(
        id_
        for id_ in range(tokenizer.backend.get_vocab_size())
        if (tokenizer.fallback_bytes.get(id_) or tokenizer.token_bytes(id_)) == b"\xe4"
    )
    detokenizer = Detokenizer(tokenizer)
    parts = [detokenizer.push(half) for _ in range(2000)]
    assert len("".join(parts)) >= 1990


def test_a_long_text_costs_as_much_per_token_as_a_short_one() -> None:
    """The work is counted in tokens that were decoded."""
    tokenizer = Tokenizer(tokenizer_files("byte_fallback"))
    decoded: list[int] = []
    decode = tokenizer.decode

    def counting(ids: list[int], skip_special_tokens: bool = True) -> str:
        decoded.append(len(ids))
        return decode(ids, skip_special_tokens)

    tokenizer.decode = counting  # type: ignore[method-assign]
    ids = tokenizer.encode(" ".join(TEXTS) * 20).ids
    deltas(tokenizer, ids, stop=["zzzz", "\nUser:"])
    assert sum(decoded) <= 6 * len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_written_special_tokens_stand_in_the_text_where_they_came(kind: str) -> None:
    backend = tokenizers.Tokenizer.from_str(TOKENIZERS[kind].backend.to_str())
    backend.add_special_tokens([tokenizers.AddedToken("<mark>", special=True)])
    files = msgspec.structs.replace(TOKENIZERS[kind].files, tokenizer_json=backend.to_str())
    tokenizer, mark = Tokenizer(files), backend.token_to_id("<mark>")
    before, after = tokenizer.encode("the mill").ids, tokenizer.encode("the river").ids
    for ids in ([mark, *before, mark, *after], [*before, *before[-1:], mark, *after, mark]):
        detokenizer = Detokenizer(tokenizer, before, ["mill river"], [mark])
        wanted = tokenizer.decode([*before, *ids], skip_special_tokens=False)
        # Decoders differ in whether a space stands beside a special token; the order is what counts.
        found = "".join([*map(detokenizer.push, ids), detokenizer.finish()])
        assert tokenizer.decode(before).replace(" ", "") + found.replace(" ", "") == wanted.replace(" ", "")


def test_a_text_that_is_stripped_has_no_white_space_at_its_ends() -> None:
    """However the tokens are cut; white space between words stays."""
    tokens = {"\u2581": 0, "\u2581a": 1, "b": 2, "\u2581\u2581": 3, "<s>": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(tokens, unk_token="<s>"))
    backend.add_special_tokens(["<s>"])
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("\u2581", " "), tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(TokenizerFiles(backend.to_str(), strips_text=True))
    for ids in itertools.product(range(5), repeat=5):
        detokenizer = Detokenizer(tokenizer)
        assert "".join([*map(detokenizer.push, ids), detokenizer.finish()]) == tokenizer.decode(ids).strip()
