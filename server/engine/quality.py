"""What quantised weights lose, in numbers: how far the next token's distribution moves on a few plain texts.

Knows token ids; who has a tokenizer makes them of `TEXTS`.

Dimension key: T tokens of a text, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.batch_inputs import Row
from server.engine.context import NO_CONTEXT, Context
from server.engine.model_runner import ModelRunner
from server.engine.sources import held_source

TEXTS = (
    "The bridge was closed in the spring of 1911, when the river rose higher than anyone in the town could remember. "
    "For three weeks the ferry carried the mail, the bread and the doctor. When the water fell, the engineers found "
    "that two of the seven piers had moved by the width of a hand, and the council had to decide whether to repair "
    "them or to build again a little further upstream, where the ground was better and the road shorter.",
    "Die Werkstatt lag hinter dem Bahnhof, und wer sie suchte, fand sie am Geruch von Leim und frischem Holz. Der "
    "Meister sprach wenig; er zeigte, was zu tun war, und liess die Lehrlinge so lange probieren, bis die Fuge dicht "
    "war. Abends fegten sie gemeinsam den Boden.",
    "La plupart des recettes demandent de laisser reposer la p\u00e2te une heure. Ce n'est pas un caprice: la farine "
    "boit l'eau lentement, et une p\u00e2te qui a dormi se laisse \u00e9tendre sans se d\u00e9chirer. Ajoutez le "
    "sel \u00e0 la fin, puis chauffez le four.",
    "\u6bcf\u5929\u65e9\u4e0a\uff0c\u6211\u5148\u70e7\u6c34\u6ce1\u8336\uff0c\u7136\u540e\u6253\u5f00"
    "\u7a97\u6237\u3002\u8857\u4e0a\u7684\u4eba\u8fd8\u4e0d\u591a\uff0c\u53ea\u6709\u5356\u83dc\u7684"
    "\u8001\u4eba\u548c\u51e0\u4e2a\u8dd1\u6b65\u7684\u5b66\u751f\u3002",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n    total = 0.0\n    for value in "
    "values:\n        total += value\n    return total / len(values)\n\nprint(mean([1, 2, 3, 4]))  # 2.5\n",
)
"""Prose in four languages and a little code."""

MAX_TOKENS = 64
"""Most tokens of one text: the logits of all of them are kept for a moment."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Of quantised weights against those they were made of, over all tokens of all texts."""

    kl: float
    """Mean Kullback-Leibler divergence of the next token's distribution, in nats."""
    same_top: float
    """Share of places with the same most likely token."""


def token_ids(encode: Callable[[str], list[int]], max_model_len: int) -> list[list[int]]:
    """The texts as prompts."""
    return [ids[: min(MAX_TOKENS, max_model_len)] for text in TEXTS if (ids := encode(text))]


def num_blocks(sequences: Sequence[Sequence[int]], block_size: int) -> int:
    """Blocks that `logprobs` needs, with those of a source."""
    return 2 * max(-(-len(ids) // block_size) for ids in sequences)


@torch.inference_mode()
def logprobs(runner: ModelRunner, sequences: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Log-probabilities ``[T, V]`` after every token of each sequence; an encoder-decoder reads it and writes it."""
    for ids in sequences:
        table = range(-(-len(ids) // runner.block_size))
        context = NO_CONTEXT
        if runner.source_vocab_size:
            context = Context(source=held_source(ids, 0, range(table.stop, 2 * table.stop)))
        rule = runner.length_rule
        row = Row(
            key=0,
            token_ids=list(ids),
            num_computed=0,
            block_table=table,
            num_logits=len(ids),
            deciding_length=0 if rule is None else rule.deciding_length(len(ids), len(ids)),
            context=context,
        )
        yield runner.forward([row]).log_softmax(-1)
        runner.release(0)
        runner.release_source(0)


def loss(before: Iterable[Tensor], after: Iterable[Tensor]) -> Loss:
    """Of log-probabilities of the same sequences."""
    kl, same = [], []
    for before_TV, after_TV in zip(before, after, strict=True):
        kl.append((before_TV.exp() * (before_TV - after_TV)).sum(-1))
        same.append(before_TV.argmax(-1) == after_TV.argmax(-1))
    return Loss(kl=float(torch.cat(kl).mean()), same_top=float(torch.cat(same).float().mean()))
