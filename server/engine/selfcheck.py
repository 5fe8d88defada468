"""Does a runner give the model's own logits? A few short sequences against a plain forward pass of the same weights.

Three begin at position 0. Others stand at far positions: on both sides of every length at which the model changes how
it computes, and at the end of what is served. They are as short, since positions can be set. Two more leave every
sliding window and attention chunk behind, which are made short for them.

Dimension key: T tokens of one sequence, V vocabulary size.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from server.engine.batch_inputs import Row
from server.engine.context import NO_CONTEXT, Context
from server.engine.lengths import LengthRule
from server.engine.model_runner import ModelRunner
from server.engine.short_windows import SHORTEST, ShortWindows, named_windows
from server.engine.sources import held_source
from server.modules.attention import LayerSpec
from server.modules.unsupported import FORWARD_FAILURES, Unsupported
from server.out_of_memory import raise_if_memory

log = logging.getLogger("sluice.engine")

MAX_CHECKED_WINDOW = 512
"""A longer window is exceeded only when it is made short: the check would take longer than loading the model."""

WINDOWED_LENGTH = 70
"""Most tokens of a sequence that is tried with short windows."""

FAR_LENGTH = 12
"""Tokens of a sequence at far positions."""

FLOAT32_TOLERANCE = 1e-4
"""Largest difference of logits, as a part of their range."""

MIN_COSINE = 0.98
"""In 16 bits: between the centred logits of a row."""

TOP_TOLERANCE = 0.05
"""In 16 bits: how far our most likely token may lie below the reference's, as a part of the logits' range."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Token ids and what the plain model makes of them."""

    token_ids: list[int]
    logits_TV: Tensor
    """float32, on the CPU"""
    first_position: int = 0
    deciding_length: int = 0
    source_ids: list[int] = field(default_factory=list)
    """What the encoder reads; empty for models without one."""

    def num_blocks(self, block_size: int) -> int:
        """Of its tokens and its source."""
        return -(-len(self.token_ids) // block_size) - (-len(self.source_ids) // block_size)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the plain model makes of a few sequences."""

    samples: list[Sample]
    """Three, from position 0 on."""
    far: list[Sample]
    rule: LengthRule | None
    windowed: Sequence[Sample] = ()
    """What the module makes of the last two of `samples`, with the windows that `short` gives it."""
    short: ShortWindows = field(default_factory=ShortWindows)
    """Empty where there are no windows, or where they cannot be made short."""

    @property
    def sequences(self) -> list[list[int]]:
        """Of the samples that begin at position 0."""
        return [sample.token_ids for sample in self.samples]

    @property
    def vocab_size(self) -> int:
        return self.samples[0].logits_TV.shape[1]

    def num_blocks(self, block_size: int) -> int:
        return max(_num_blocks(samples, block_size) for samples in (self.samples, self.far))

    def require_tried(self, specs: Sequence[LayerSpec], max_model_len: int) -> None:
        """Raise `Unsupported` for layers with a window that a served sequence can leave and that no sample leaves."""
        if self.short:
            return
        longest = max(map(len, self.sequences))
        for window in (spec.window for spec in specs if spec.window is not None):
            if longest <= window < max_model_len:
                raise Unsupported(f"its window of {window} tokens cannot be checked")


def sequence_lengths(max_model_len: int, window: int | None) -> list[int]:
    """A short one, one of two blocks, and one that leaves the sliding window behind."""
    longest = 70 if window is None or window > MAX_CHECKED_WINDOW else window + 40
    return [min(length, max_model_len) for length in (6, 41, longest)]


@torch.inference_mode()
def reference(
    module: PreTrainedModel,
    max_model_len: int,
    rule: LengthRule | None = None,
    restore: Callable[[], Any] = lambda: None,
) -> Reference:
    """Run the plain module. Only before its linears are packed is this an independent witness.

    ``restore`` undoes what a forward pass changes in the module.
    """
    config = module.config.get_text_config(decoder=True)
    windows = named_windows(config)
    lengths = sequence_lengths(max_model_len, max(windows, default=None))
    vocab_size = module.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)

    def sample(length: int, first: int = 0) -> Sample:
        token_ids = torch.randint(vocab_size, (length,), generator=generator).tolist()
        logits_TV = _plain_logits(module, token_ids, first)
        restore()
        return Sample(
            token_ids=token_ids,
            logits_TV=logits_TV,
            first_position=first,
            deciding_length=0 if rule is None else rule.deciding_length(first + length, first + length),
        )

    samples = [sample(length) for length in lengths]
    far = []
    if "position_ids" in inspect.signature(module.forward).parameters:
        try:
            far = [sample(FAR_LENGTH, first) for first in far_positions(switches(config, rule), max_model_len)]
        except FORWARD_FAILURES as error:
            raise_if_memory(error)
            log.info("far positions are not checked: the model does not run there (%s)", error)
    short = ShortWindows(window for window in windows if SHORTEST < window < max_model_len)
    windowed = _windowed(module, samples[1:], short, restore)
    if not windowed:
        short = ShortWindows()
    return Reference(samples=samples, far=far, rule=rule, windowed=windowed, short=short)


def _windowed(
    module: PreTrainedModel, samples: Sequence[Sample], short: ShortWindows, restore: Callable[[], Any]
) -> list[Sample]:
    """``samples`` with short windows; none where these change nothing, or where the module does not run with them."""
    if not short:
        return []
    found = []
    for sample in samples:
        token_ids = sample.token_ids[:WINDOWED_LENGTH]
        try:
            with short.set_in(module):
                logits_TV = _plain_logits(module, token_ids, 0)
        except FORWARD_FAILURES as error:
            raise_if_memory(error)
            log.info("windows are not made short: the model does not run with short ones (%s)", error)
            return []
        finally:
            restore()
        found.append(replace(sample, token_ids=token_ids, logits_TV=logits_TV))
    if torch.equal(found[0].logits_TV, samples[0].logits_TV):
        log.info("windows are not made short: the model takes no notice of its config's")
        return []
    return found


def switches(config: Any, rule: LengthRule | None) -> list[int]:
    """Lengths at which the model changes how it computes, by its config and as measured."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = [value for value in parameters.values() if isinstance(value, dict)]
    named = [rope.get("original_max_position_embeddings") for rope in (parameters, *by_layer)]
    named += [getattr(config, name, None) for name in ("floor_scale", "log_scaling_n_floor")]
    found = {int(length) for length in named if length}
    return sorted(found if rule is None else found | {rule.switch})


def far_positions(switches: Sequence[int], max_model_len: int) -> list[int]:
    """First positions of sequences just before each switch, across it, and at the end.

    >>> far_positions([4096], 131072)
    [4084, 4090, 131060]
    """
    around = [first for switch in switches for first in (switch - FAR_LENGTH, switch - FAR_LENGTH // 2)]
    last = max_model_len - FAR_LENGTH
    return sorted({first for first in (*around, last) if 0 < first <= last})


def _plain_logits(module: PreTrainedModel, token_ids: list[int], first: int) -> Tensor:
    ids = torch.tensor([token_ids], device=module.device)
    options = {"position_ids": torch.arange(first, first + len(token_ids), device=module.device)[None]} if first else {}
    logits: Tensor = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **options).logits
    return logits[0].float().cpu()


@torch.inference_mode()
def difference(runner: ModelRunner, expected: Reference) -> str | None:
    """Run the sequences packed together, in chunks and token by token. None if all is right, else what is wrong."""
    problem = _difference(runner, expected.samples, _targets([len(ids) for ids in expected.sequences]))
    if problem or not expected.far:
        return problem
    targets = [[count] * len(expected.far) for count in (FAR_LENGTH - 5, FAR_LENGTH - 2, FAR_LENGTH)]
    problem = _difference(runner, expected.far, targets)
    return problem and f"at far positions, {problem}"


@torch.inference_mode()
def windowed_difference(
    make_runner: Callable[[ShortWindows], ModelRunner], module: PreTrainedModel, expected: Reference
) -> str | None:
    """The same with short windows. ``make_runner`` gives them to a runner, and the module has them meanwhile."""
    if not expected.short:
        return None
    lengths = [len(sample.token_ids) for sample in expected.windowed]
    targets = [
        [max(1, target) for target in targets]
        for targets in (
            [length // 2 - 3 for length in lengths],
            [length - 2 for length in lengths],
            [length - 1 for length in lengths],
            lengths,
        )
    ]
    with expected.short.set_in(module):
        runner = make_runner(expected.short)
        problems = _problems(runner, expected.windowed, targets)
    found = [problem for problem in problems if problem is not None]
    # In 16 bits single rows differ where rounding decides between two experts; a wrong window shows in many rows.
    num_allowed = 0 if runner.dtype == torch.float32 else len(problems) // 2 - 1
    return f"with short windows, {found[0]}" if len(found) > num_allowed else None


def _difference(runner: ModelRunner, samples: Sequence[Sample], targets: Sequence[Sequence[int]]) -> str | None:
    """``targets`` are the numbers of tokens that are computed after each step."""
    return next(filter(None, _problems(runner, samples, targets)), None)


def _problems(runner: ModelRunner, samples: Sequence[Sample], targets: Sequence[Sequence[int]]) -> list[str | None]:
    """Of each row of each step."""
    tables = _block_tables(samples, runner.block_size)
    contexts = [_context(i, sample, tables[i], runner.block_size) for i, sample in enumerate(samples)]
    done = [0] * len(samples)
    problems = []
    for targets_now in targets:
        rows = list(_rows(samples, tables, contexts, done, targets_now))
        logits = runner.forward(rows).cpu()
        for context in contexts:
            if context.source is not None:
                context.source.held.is_computed = True
        for row, ours in zip(rows, logits, strict=True):
            done[row.key] = targets_now[row.key]
            theirs = samples[row.key].logits_TV[done[row.key] - 1]
            problems.append(_compare(ours, theirs, runner.dtype))
    for i in range(len(tables)):
        runner.release(i)
        runner.release_source(i)
    return problems


def _rows(
    samples: Sequence[Sample],
    tables: Sequence[list[int]],
    contexts: Sequence[Context],
    done: Sequence[int],
    targets: Sequence[int],
) -> Iterator[Row]:
    for i, (sample, target) in enumerate(zip(samples, targets, strict=True)):
        if target > done[i]:
            yield Row(
                key=i,
                token_ids=sample.token_ids[done[i] : target],
                num_computed=done[i],
                block_table=tables[i],
                deciding_length=sample.deciding_length,
                context=contexts[i],
                position_offset=sample.first_position,
            )


def _targets(lengths: Sequence[int]) -> list[list[int]]:
    """How many tokens of each sequence are computed after each step: prefill, resume, then two single tokens each."""
    return [
        [max(1, lengths[0] - 2), max(1, lengths[1] // 2 - 3), max(1, lengths[2] - 12)],
        [max(1, lengths[0] - 1), max(1, lengths[1] - 2), max(1, lengths[2] - 2)],
        [lengths[0], max(1, lengths[1] - 1), max(1, lengths[2] - 1)],
        list(lengths),
    ]


def _context(key: int, sample: Sample, table: Sequence[int], block_size: int) -> Context:
    """With the sample's source in the last blocks of its table."""
    if not sample.source_ids:
        return NO_CONTEXT
    of_source = table[-(-len(sample.token_ids) // block_size) :]
    return Context(source=held_source(sample.source_ids, key, of_source))


def _num_blocks(samples: Sequence[Sample], block_size: int) -> int:
    return sum(sample.num_blocks(block_size) for sample in samples)


def _block_tables(samples: Sequence[Sample], block_size: int) -> list[list[int]]:
    """Tables with the blocks of all sequences interleaved, backwards."""
    free = list(range(_num_blocks(samples, block_size)))
    tables: list[list[int]] = [[] for _ in samples]
    while free:
        for table, sample in zip(tables, samples, strict=True):
            if len(table) < sample.num_blocks(block_size):
                table.append(free.pop())
    return tables


def _compare(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> str | None:
    if not ours.isfinite().all():
        return "logits are not finite"
    spread = float(theirs.max() - theirs.min())
    if dtype == torch.float32:
        worst = float((ours - theirs).abs().max())
        return (
            None if worst <= FLOAT32_TOLERANCE * spread else f"logits differ by {worst:.2g} of a range of {spread:.2g}"
        )
    cosine = float(torch.cosine_similarity(ours - ours.mean(), theirs - theirs.mean(), dim=0))
    missed = float(theirs.max() - theirs[ours.argmax()])
    if cosine < MIN_COSINE or missed > TOP_TOLERANCE * spread:
        return f"logits have a cosine of {cosine:.4f} and the top token misses by {missed:.2g} of {spread:.2g}"
    return None
