"""Writes numbers with their words in English, and an untrained tiny T5 that learns them in minutes.

    python -m server.finetune.number_words numbers
    sluice finetune seq2seq --model numbers/tiny-t5 --data numbers/numbers.csv --out spelling --method full \
        --learning-rate 3e-3 --batch-size 64 --epochs 15 --threads 1

`words_of` checks every answer.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPECIAL = (PAD, END, UNKNOWN)
DIGITS = "0123456789"
MAX_BELOW = 1_000_000
BELOW_TWENTY = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def words_of(number: int) -> str:
    """In English, for numbers below a million.

    >>> words_of(1234)
    'one thousand, two hundred and thirty-four'
    """
    if number < 20:
        return BELOW_TWENTY[number]
    if number < 100:
        return TENS[number // 10] + (f"-{BELOW_TWENTY[number % 10]}" if number % 10 else "")
    unit, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    count, rest = divmod(number, unit)
    link = ", " if rest >= 100 else " and "
    return f"{words_of(count)} {name}" + (link + words_of(rest) if rest else "")


def sample(count: int, below: int, seed: int) -> list[int]:
    """``count`` different numbers in a random order. Short ones are as frequent as long ones while they last."""
    rng = random.Random(seed)
    found: set[int] = set()
    while len(found) < count:
        found.add(rng.randrange(10 ** rng.randint(1, len(str(below - 1)))) % below)
    numbers = sorted(found)
    rng.shuffle(numbers)
    return numbers


def write_data(path: Path, numbers: Sequence[int]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "target"])
        writer.writerows((number, words_of(number)) for number in numbers)


def write_tokenizer(folder: Path, texts: Sequence[str]) -> int:
    """One token per digit and per word of the texts. Returns the number of tokens."""
    cutter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    pieces = {piece for text in (*texts, DIGITS) for piece, _ in cutter.pre_tokenize_str(text)}
    tokens = {token: number for number, token in enumerate([*SPECIAL, *sorted(pieces)])}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = cutter
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, tokens[END])])
    names: dict[str, Any] = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names
    ).save_pretrained(folder)
    return len(tokens)


def write_base(folder: Path, vocab_size: int, *, width: int = 64, layers: int = 2, seed: int = 0) -> None:
    """A T5 with random weights. Tied embeddings keep its first logits small, and so it learns at once."""
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=vocab_size,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write numbers with their words, and a tiny T5 to train on them.")
    parser.add_argument("folder", type=Path, help="folder to write numbers.csv and tiny-t5 to")
    parser.add_argument("--count", type=int, default=8000, help="number of examples (default: %(default)s)")
    parser.add_argument(
        "--below", type=int, default=100_000, help="all numbers are smaller, at most a million (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    transformers.logging.disable_progress_bar()
    if not 200 <= args.below <= MAX_BELOW:
        parser.error(f"--below is {args.below}: it must be from 200 to {MAX_BELOW}.")
    if not 100 <= args.count <= args.below // 2:
        parser.error(f"--count is {args.count}: it must be from 100 to half of --below ({args.below // 2}).")
    numbers = sample(args.count, args.below, args.seed)
    base = args.folder / "tiny-t5"
    base.mkdir(parents=True, exist_ok=True)
    write_data(args.folder / "numbers.csv", numbers)
    write_base(base, write_tokenizer(base, [words_of(number) for number in numbers]), seed=args.seed)
    sys.stdout.write(f"{len(numbers)} numbers in {args.folder / 'numbers.csv'}, an untrained model in {base}\n")


if __name__ == "__main__":
    main()
