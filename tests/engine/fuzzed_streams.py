"""Streams whose model keeps trying to say what is banned: the text, the runner that favours it, and a front.

Dimension key
    R  rows of a step
    V  vocabulary size
"""

from __future__ import annotations

import codecs
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
import torch

from server.engine import batch_inputs
from server.engine.batch_inputs import Row
from server.engine.engine import DecoderEngine
from server.phrases import PhraseMatcher, folded
from server.protocol import Failed, Generate, Output, SamplingParams, Tokens
from server.text.detokenizer import Detokenizer
from server.text.safe_text import SafeText
from server.text.tokenizer import Tokenizer
from server.vocabulary import TokenBytes
from tests.engine.fake_runner import FakeRunner

WORDS = [
    "foo", "Bar", "the mill", "river", "Straße", "STRASSE", "İstanbul", "ısı", "naïve", "a", "aa", "ab",
    "ba", "天气", "天", "今天天气", "你好", "磨坊", "世界！", "😀", "🚀",
    "👨‍👩‍👧", "❤️", "🇩🇪", "café", "ﬃ", "Σας", "x1", "1.5", "</b>", "##",
]  # fmt: skip
JOINTS = ["", "", " ", " ", "\n", ".", "，", "\n\n"]


@dataclass
class Script:
    """What one stream's request is, and what its model would like to say."""

    token_ids: list[int]
    banned: list[str]
    stop: list[str]
    params: SamplingParams


@dataclass
class Kind:
    """A tokenizer, with every token that can stand at a place of a text."""

    tokenizer: Tokenizer
    vocabulary: TokenBytes
    eos_id: int
    by_first_byte: dict[int, list[tuple[bytes, int]]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Kind:
        vocab_size = tokenizer.backend.get_vocab_size()
        kind = cls(tokenizer, TokenBytes(tokenizer.files, vocab_size), tokenizer.backend.token_to_id("</s>"))
        for token_id, data in enumerate(kind.vocabulary.all_bytes()):
            if data:
                kind.by_first_byte[data[0]].append((data, token_id))
        return kind

    def spell(self, text: str, rng: random.Random) -> list[int]:
        """Token ids for a text, in any of the ways there are; what no token begins with is left out."""
        data, token_ids = text.encode(), []
        while data:
            fitting = [(token, id_) for token, id_ in self.by_first_byte[data[0]] if data.startswith(token)]
            token, token_id = rng.choice(fitting) if fitting else (data[:1], None)
            data = data[len(token) :]
            if token_id is not None:
                token_ids.append(token_id)
        return token_ids


def phrase(rng: random.Random) -> str:
    words = rng.choices(WORDS, k=rng.choice([1, 1, 2, 3]))
    return (words[0] + "".join(rng.choice(JOINTS) + word for word in words[1:])).strip()


def in_another_case(text: str, rng: random.Random) -> str:
    return rng.choice([text, text, text.upper(), text.lower(), text.swapcase(), text.title()])


def script(kind: Kind, rng: random.Random, **params: object) -> Script:
    """A request for few tokens, of a model that says fillers, banned phrases and stop strings, whole and in part."""
    banned = [phrase(rng) for _ in range(rng.choice([1, 1, 2, 5]))]
    stop = [rng.choice(JOINTS) + phrase(rng) for _ in range(rng.choice([0, 1, 1, 2]))]
    parts: list[str] = []
    for _ in range(rng.randint(1, 4)):
        wanted = rng.choice([in_another_case(rng.choice(banned), rng), *stop, phrase(rng)])
        # Whole, or as much of it as will make the stream hold text for nothing.
        parts.append(wanted[: rng.choice([None, None, len(wanted) // 2])])
        parts.append(rng.choice(JOINTS))
    token_ids = kind.spell("".join(parts), rng)[:24]
    for _ in range(rng.choice([0, 0, 1])):
        # A special token, or any token, or half a character.
        token_ids.insert(rng.randint(0, len(token_ids)), rng.randrange(kind.tokenizer.backend.get_vocab_size()))
    if params.get("num_beams"):
        params["stop_strings"] = tuple(stop)
    sampling = SamplingParams(
        max_new_tokens=rng.choice([len(token_ids) or 1, 20]),
        banned_phrases=tuple(phrase.strip() for phrase in banned),
        max_rewinds=rng.choice([0, 2, 64, 64]),
        do_sample=rng.random() < 0.5,
        seed=rng.randrange(2**31),
        end_token_ids=(kind.eos_id,),
        **params,  # type: ignore[arg-type]
    )
    return Script(token_ids, banned, stop, sampling)


class ScriptRunner(FakeRunner):
    """Favours the next token of each stream's script, whose number is the prompt, over others that may do as well."""

    def __init__(self, kind: Kind, scripts: Sequence[Script], num_blocks: int) -> None:
        super().__init__(num_blocks, block_size=4)
        self.vocab_size = kind.tokenizer.backend.get_vocab_size()
        self._scripts = scripts
        self._eos_id = kind.eos_id
        self._salts_V = np.arange(1, self.vocab_size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    def prompt_of(self, number: int) -> list[int]:
        return [*divmod(number, self.vocab_size)]

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        inputs = batch_inputs.build(rows, self.block_size, self.device)
        slots = inputs.slots_T.numpy()
        self.slots[slots, 0] = inputs.token_ids_T.numpy()
        self.slots[slots, 1] = inputs.position_ids_T.numpy()
        prefixes = [self._prefix(row, row.num_computed + len(row.token_ids)) for row in rows]
        assert all((prefix[:, 1] == np.arange(len(prefix))).all() for prefix in prefixes), "a token is not where it was"
        wanted = [prefix[:, 0] for row, prefix in zip(rows, prefixes, strict=True) if row.num_logits]
        return torch.from_numpy(self.scores(wanted)) if wanted else torch.empty(0, self.vocab_size)

    def scores(self, prefixes: Sequence[np.ndarray]) -> np.ndarray:
        """Logits after each of the prefixes, which are token ids."""
        seeds_R = np.array([crc32(prefix.tobytes()) for prefix in prefixes], dtype=np.uint64)
        mixed_RV = (seeds_R[:, None] ^ self._salts_V) * np.uint64(0xD6E8FEB86659FD93)
        mixed_RV = (mixed_RV ^ (mixed_RV >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
        logits_RV = (mixed_RV >> np.uint64(40)).astype(np.float32) / np.float32(2**24) * 4
        for row, prefix in enumerate(prefixes):
            if len(prefix) < 2:
                continue
            place = len(prefix) - 2
            token_ids = self._scripts[prefix[0] * self.vocab_size + prefix[1]].token_ids
            logits_RV[row, token_ids] += 2
            logits_RV[row, token_ids[place] if place < len(token_ids) else self._eos_id] += 6
        return logits_RV

    def release(self, key: int) -> None:
        """Nothing is kept by key."""

    def fork(self, parent_key: int, child_key: int) -> None:
        """Nothing is kept by key."""

    def _prefix(self, row: Row, stop: int) -> np.ndarray:
        places = np.arange(stop)
        return self.slots[np.asarray(row.block_table)[places // 4] * 4 + places % 4]


class Front:
    """One stream's way from token ids to deltas, as a client sees them."""

    def __init__(self, kind: Kind, script: Script) -> None:
        self.token_ids: list[int] = []
        self.deltas: list[str] = []
        self.reply: Tokens | Failed | None = None
        """The last one."""
        self.num_rewinds = 0
        self.text = SafeText(kind.tokenizer, (), script.stop, PhraseMatcher(script.banned, fold=True))

    @property
    def output(self) -> Output:
        """What another engine has to know to go on."""
        return Output(self.token_ids, self.has_ended, self.num_rewinds)

    @property
    def is_cut(self) -> bool:
        return self.text.has_banned or self.text.stop_string is not None

    @property
    def has_ended(self) -> bool:
        return self.reply is not None or self.is_cut

    def take(self, reply: Tokens | Failed) -> None:
        for token_id in reply.token_ids if isinstance(reply, Tokens) else []:
            self.token_ids.append(token_id)
            self.deltas.append(self.text.push(token_id))
            if self.is_cut:
                break
        if isinstance(reply, Tokens):
            self.num_rewinds = reply.num_rewinds
        if isinstance(reply, Failed) or reply.finish_reason is not None:
            self.reply = reply
        if self.has_ended:
            self.deltas.append(self.text.finish())


def run(
    kind: Kind,
    scripts: Sequence[Script],
    *,
    num_blocks: int = 512,
    max_running: int = 64,
    fronts: list[list[Front]] | None = None,
    max_steps: int = 5000,
) -> list[list[Front]]:
    """Every request's outputs, all in one engine; a request is aborted when its front has ended all of them.

    With ``fronts``, the requests go on that another engine left there; after ``max_steps`` this one leaves them too.
    """
    runner = ScriptRunner(kind, scripts, num_blocks)
    engine = DecoderEngine(
        runner,
        max_model_len=64,
        max_batch_tokens=256,
        max_running=max_running,
        prefix_cache=True,
        vocabulary=kind.vocabulary,
    )
    outputs: list[list[Output]] = [[] for _ in scripts]
    if fronts is None:
        fronts = [[Front(kind, one) for _ in range(one.params.num_return_sequences)] for one in scripts]
    else:
        outputs = [[front.output for front in several] for several in fronts]
    for number, one in enumerate(scripts):
        if not all(front.has_ended for front in fronts[number]):
            engine.add(Generate(str(number), runner.prompt_of(number), one.params, outputs[number]))
    for _ in range(max_steps):
        for reply in engine.step():
            if isinstance(reply, Tokens | Failed):
                _deliver(reply, fronts[int(reply.request_id)], engine)
        if not engine.has_work:
            assert engine.blocks.num_used == 0
            break
    return fronts


def _deliver(reply: Tokens | Failed, fronts: list[Front], engine: DecoderEngine) -> None:
    front = fronts[reply.index if isinstance(reply, Tokens) else 0]
    if front.has_ended:
        return
    front.take(reply)
    if all(front.has_ended for front in fronts):
        engine.abort(reply.request_id)


def greedy_by_definition(kind: Kind, scripts: Sequence[Script], number: int) -> tuple[list[int], str]:
    """A stream's tokens and how it ends, one token after the other, every phrase looked for in the whole text."""
    runner, params = ScriptRunner(kind, scripts, num_blocks=1), scripts[number].params
    token_ids: list[int] = []
    banned_at: dict[int, set[int]] = {}
    num_rewinds = num_sent = 0
    while True:
        logits_V = runner.scores([np.array(runner.prompt_of(number) + token_ids)])[0]
        logits_V[list(banned_at.get(len(token_ids), ()))] = -np.inf
        token_ids.append(int(logits_V.argmax()))
        text = OwnedText([kind.vocabulary.token_bytes(id_) for id_ in token_ids])
        place = text.start_of(params.banned_phrases)
        if place is None:
            num_sent = max(num_sent, text.start_of_beginning(params.banned_phrases))
            if token_ids[-1] == kind.eos_id or len(token_ids) == params.max_new_tokens:
                return token_ids, "stop" if token_ids[-1] == kind.eos_id else "length"
            continue
        # What was sent while it was harmless is not taken back: then the token after it goes.
        place = max(place, num_sent)
        banned_at = {at: ids for at, ids in banned_at.items() if at <= place}
        banned_at.setdefault(place, set()).add(token_ids[place])
        del token_ids[place:]
        num_rewinds += 1
        if num_rewinds > params.max_rewinds:
            return token_ids, "banned_phrase"


class OwnedText:
    """The folded text of tokens, and which token each of its characters began with."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.text, self.owners = "", []
        pending, began = b"", 0
        for token, data in enumerate(tokens):
            for i in range(len(data)):
                began = began if pending else token
                decoded, num_bytes = codecs.utf_8_decode(pending + data[i : i + 1], "replace", False)
                pending = (pending + data[i : i + 1])[num_bytes:]
                for character in decoded:
                    self.owners += [began] * len(folded(character))
                    self.text += folded(character)
                    began = token
        self.stop = began if pending else len(tokens)
        """The token of an unfinished character, or the number of tokens."""

    def start_of(self, phrases: Sequence[str]) -> int | None:
        """The first token that has a part of any phrase."""
        starts = [self.text.find(folded(phrase)) for phrase in phrases]
        return min((self.owners[start] for start in starts if start >= 0), default=None)

    def start_of_beginning(self, phrases: Sequence[str]) -> int:
        """The first token of what may still become a phrase, or of an unfinished character."""
        beginnings = {folded(phrase)[:length] for phrase in phrases for length in range(1, len(folded(phrase)))}
        lengths = [len(beginning) for beginning in beginnings if self.text.endswith(beginning)]
        return min([self.stop, *(self.owners[-length] for length in lengths)])


def text_by_definition(kind: Kind, front: Front, script: Script) -> str:
    """What a stream of these tokens shows: their text, to the first stop string."""
    text = kind.tokenizer.decode(front.token_ids)
    if kind.tokenizer.fallback_bytes:
        # Decoded all at once, a run of byte tokens that breaks off in a character has no text at all.
        plain = Detokenizer(kind.tokenizer)
        text = "".join(map(plain.push, front.token_ids)) + plain.finish()
    for end in range(len(text) + 1):
        complete = [string for string in script.stop if text[:end].endswith(string)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def banned_in(text: str, script: Script) -> list[str]:
    return [phrase for phrase in script.banned if folded(phrase.strip()) in folded(text)]
