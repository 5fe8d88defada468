"""How far an encoder's scores or vectors move when its products run in fewer bits, on a few built-in sentences.

Dimension key: S scored places (texts, tokens or masks), L labels or vocabulary, B texts, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from server.encoder.forward import Forward
from server.protocol import Encode, MaskQuery, TokenizerFiles
from server.tasks import TASKS

SENTENCES = (
    "The film was a delight from its first minute to its last.",
    "I waited three weeks for the parcel, and then it was the wrong one.",
    "The train to Edinburgh leaves at nine from platform four.",
    "My name is Maria Gonzalez, I live at 742 Evergreen Terrace in Springfield, and my number is (555) 123-4567.",
    "Nothing about this hotel was worth its price: the room was cold, the breakfast late, and nobody said sorry.",
    "Please send the signed contract to j.smith@example.com before Friday, or call Robert Brown in Chicago.",
    "It is not bad at all, though I would not buy it twice.",
    "The committee published its report on Tuesday. It says that the bridge, which was built in 1934, needs repairs "
    "that will take two years and cost about forty million; until then lorries have to go through the valley.",
    "Best coffee in town!!!",
    "Die Katze sitzt auf dem Dach und schaut den V\u00f6geln zu.",
    "He never answered my letters. Still, when we met again in the spring, it was as if no day had passed.",
    "Error 404: the page that you were looking for does not exist.",
)


@dataclass(frozen=True)
class Quality:
    """Of the scores of one way against those of another."""

    largest_difference: float
    mean_kl: float
    share_equal: float
    """Of the places whose best label is the same."""

    def __str__(self) -> str:
        return (
            f"scores differ by {self.largest_difference:.2g} at most, mean KL {self.mean_kl:.2g}, "
            f"{self.share_equal:.1%} of labels equal"
        )


def sample(files: TokenizerFiles, task: str, max_model_len: int) -> list[Encode]:
    """The sentences as requests for a model of this task; those that are longer than the model takes are cut."""
    tokenizer = Tokenizer.from_str(files.tokenizer_json)
    commands = []
    for number, sentence in enumerate(SENTENCES):
        token_ids = tokenizer.encode(sentence).ids[:max_model_len]
        if not token_ids:
            continue
        mask = None
        if TASKS[task].reads == "masks":
            middle = len(token_ids) // 2
            mask = MaskQuery([middle], top_k=1)
            token_ids[middle] = files.mask_token_id if files.mask_token_id is not None else token_ids[middle]
        commands.append(Encode(str(number), token_ids, mask=mask))
    return commands


@torch.inference_mode()
def scores(forward: Forward, commands: Sequence[Encode]) -> Tensor:
    """``[S, L]`` logarithms of probabilities: of texts, of all their tokens, or of their masks."""
    if commands[0].mask is not None:
        columns = torch.tensor([command.mask.positions[0] for command in commands if command.mask])
        rows = torch.arange(len(commands))
        logits = forward.logits_at(commands, rows.to(forward.device), columns.to(forward.device))
    else:
        logits = forward.logits(commands)
        if logits.dim() == 3:
            pairs = zip(logits, commands, strict=True)
            logits = torch.cat([row[: len(command.token_ids)] for row, command in pairs])
    logits = logits.float().cpu()
    if logits.shape[-1] == 1:
        # A single label is a probability against none.
        logits = torch.cat((logits, torch.zeros_like(logits)), dim=-1)
    return logits.log_softmax(-1)


def compare(ours_SL: Tensor, exact_SL: Tensor) -> Quality:
    """What is not finite differs by infinity."""
    difference = (ours_SL.exp() - exact_SL.exp()).abs().nan_to_num(torch.inf).max()
    kl_S = (exact_SL.exp() * (exact_SL - ours_SL)).nansum(-1)
    equal = (ours_SL.argmax(-1) == exact_SL.argmax(-1)).float().mean()
    return Quality(float(difference), float(kl_S.mean()), float(equal))


@torch.inference_mode()
def vectors(forward: Forward, commands: Sequence[Encode]) -> Tensor:
    """``[B, H]``"""
    return forward.logits(commands).float().cpu()


@dataclass(frozen=True)
class Nearness:
    """Of the vectors of one way to those of another."""

    least_cosine: float

    def __str__(self) -> str:
        return f"the cosine to the exact vector is {self.least_cosine:.5f} at least"


def compare_vectors(ours_BH: Tensor, exact_BH: Tensor) -> Nearness:
    return Nearness(float(torch.cosine_similarity(ours_BH, exact_BH).nan_to_num(-1.0).min()))


@dataclass(frozen=True)
class Measure:
    """What is read of a model, and how two such readings are compared."""

    read: Callable[[Forward, Sequence[Encode]], Tensor]
    compare: Callable[[Tensor, Tensor], Quality | Nearness]


OF_SCORES = Measure(scores, compare)
OF_VECTORS = Measure(vectors, compare_vectors)
