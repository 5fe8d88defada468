"""Adapters with heads of their own in the worker of their base: what PEFT computes, whatever else is in the batch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.config import ModelConfig
from server.encoder.adapter_heads import ChainedHead
from server.encoder.engine import EncoderEngine
from server.native import kernels
from server.protocol import Encode, Failed, LoadAdapter, Ready, Scores, UnloadAdapter
from server.worker.__main__ import build
from tests.models.folders import edit
from tests.tiny_adapters import change_tensors
from tests.tiny_encoder_adapters import KINDS, peft_logits, write_encoder_adapter, write_tiny_base
from tests.tiny_encoders import tiny_tokenizer

torch.set_num_threads(1)

TEXTS = ([2, 50, 61, 72, 83, 94, 3], [2, 100, 3], [2, *range(40, 75), 3], [2, 77, 78, 79, 3])
TOLERANCE = 1e-4
WORDS = len(tiny_tokenizer("wordpiece"))
LABELS = {
    "classify": ("bad", "fair", "good"),
    "ner": ("O", "B-X", "I-X", "B-Y", "I-Y"),
    "question-answering": ("s", "e"),
}
TASKS = tuple(LABELS)


def built(base: Path, adapters: Sequence[Path], **settings: Any) -> tuple[EncoderEngine, Ready]:
    options = {"threads": 1, **settings}
    models = [
        LoadAdapter(folder.name, ModelConfig(name=folder.name, path=str(folder), **options)) for folder in adapters
    ]
    engine, ready = build(ModelConfig(name="base", path=str(base), **options), adapters=models)
    assert isinstance(engine, EncoderEngine)
    return engine, ready


def scores(engine: EncoderEngine, commands: Sequence[Encode]) -> dict[str, np.ndarray]:
    """By request."""
    for command in commands:
        engine.add(command)
    found = {}
    while engine.has_work:
        for reply in engine.step():
            assert not isinstance(reply, Failed), reply
            if isinstance(reply, Scores):
                found[reply.request_id] = np.frombuffer(reply.data, "<f4").reshape(reply.shape)
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By family: the base, and its adapters by task and kind."""
    root, made = tmp_path_factory.mktemp("adapters"), {}

    def of(family: str) -> tuple[Path, dict[tuple[Any, str], Path]]:
        if family not in made:
            base = write_tiny_base(root / family, family)
            # Every kind with one task, every task with one kind.
            pairs = [*(("classify", kind) for kind in KINDS), ("ner", "lora"), ("question-answering", "lora")]
            made[family] = (
                base,
                {
                    (task, kind): write_encoder_adapter(
                        root / f"{family} {task} {kind}", base, kind, family, task, LABELS[task], seed
                    )
                    for seed, (task, kind) in enumerate(pairs)
                },
            )
        return made[family]

    return of


def mixed(digests: Mapping[Any, str]) -> list[Encode]:
    """Every text with every adapter, and with none."""
    return [
        Encode(f"{key}/{i}", ids, [0] * len(ids), adapter=digest)
        for i, ids in enumerate(TEXTS)
        for key, digest in {"base": "", **digests}.items()
    ]


@pytest.mark.parametrize("kernels_name", ["native", "torch"])
@pytest.mark.parametrize(
    ("family", "executor"),
    [
        ("bert", "fused"),
        ("bert", "generic"),
        ("roberta", "fused"),
        ("distilbert", "fused"),
        ("modernbert", "generic"),
    ],
)
def test_scores_in_a_mixed_batch_equal_those_of_peft(
    folders: Any, family: str, executor: str, kernels_name: str
) -> None:
    if kernels_name == "native" and kernels.use("auto", 1) == "torch":
        pytest.skip("no kernels for this processor")
    base, adapters = folders(family)
    engine, ready = built(base, list(adapters.values()), executor=executor, kernels=kernels_name)
    facts = dict(zip(adapters, ready.adapters, strict=True))
    assert {key: fact.problem for key, fact in facts.items() if fact.problem} == {}
    assert ready.executor == executor
    assert {key: fact.task for key, fact in facts.items()} == {key: key[0] for key in facts}
    assert facts["ner", "lora"].labels == list(LABELS["ner"])
    found = scores(engine, mixed({key: fact.digest for key, fact in facts.items()}))
    for (task, kind), folder in adapters.items():
        for i, ids in enumerate(TEXTS):
            theirs = peft_logits(
                base, folder, task, ids, len(LABELS[task]), [0] * len(ids) if family == "bert" else None
            )
            ours = found[f"{(task, kind)}/{i}"]
            spread = max(1.0, float(theirs.abs().max()))
            assert float(np.abs(ours - theirs.numpy()).max()) <= TOLERANCE * spread, (task, kind, i)


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"quantize": "int8"}], ids=str)
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_text_has_the_same_bits_alone_and_among_texts_of_other_adapters(
    folders: Any, family: str, settings: dict[str, Any]
) -> None:
    if kernels.use("auto", 1) == "torch":
        pytest.skip("no kernels for this processor")
    base, adapters = folders(family)
    engine, ready = built(base, list(adapters.values()), **settings)
    assert all(fact.problem is None for fact in ready.adapters)
    commands = mixed({key: fact.digest for key, fact in zip(adapters, ready.adapters, strict=True)})
    together = scores(engine, commands)
    for command in commands:
        assert np.array_equal(together[command.request_id], scores(engine, [command])[command.request_id]), command


def test_an_adapter_has_the_pooler_of_its_base_whatever_another_brings(folders: Any, tmp_path: Path) -> None:
    base, adapters = folders("bert")
    brings = tmp_path / "brings"
    write_encoder_adapter(brings, base, "saved pooler", "bert", "classify")
    ids = list(TEXTS[0])
    both = [brings, adapters["classify", "dora"], adapters["classify", "lora"]]
    engine, ready = built(base, both)
    for folder, fact in zip(both, ready.adapters, strict=True):
        assert fact.problem is None
        theirs = peft_logits(base, folder, "classify", ids, 3, [0] * len(ids))
        ours = scores(engine, [Encode("r", ids, [0] * len(ids), adapter=fact.digest)])["r"]
        assert ours == pytest.approx(theirs.numpy(), abs=1e-3)


def problem(base: Path, adapter: Path, **settings: Any) -> str:
    _, ready = built(base, [adapter], **settings)
    return str(ready.adapters[0].problem)


def test_texts_that_are_padded_have_no_adapters(folders: Any) -> None:
    base, adapters = folders("bert")
    assert problem(base, adapters["classify", "lora"], executor="compat").startswith("texts are batched padded")


def test_names_a_part_that_is_no_head(folders: Any, tmp_path: Path) -> None:
    base, adapters = folders("bert")
    folder = Path(shutil.copytree(adapters["classify", "lora"], tmp_path / "adapter"))
    names = ["classifier", "word_embeddings"]
    edit(folder, "adapter_config.json", lambda config: config.update(modules_to_save=names))
    table = "bert.embeddings.word_embeddings.weight"
    change_tensors(folder, lambda found: found.update({f"base_model.model.{table}": torch.zeros(WORDS, 32)}))
    assert problem(base, folder) == f"it brings {table}, which is no part of a head"


def test_names_a_weight_of_a_head_that_no_folder_has(folders: Any, tmp_path: Path) -> None:
    base, adapters = folders("roberta")
    folder = Path(shutil.copytree(adapters["classify", "lora"], tmp_path / "adapter"))
    name = "classifier.dense.weight"
    change_tensors(folder, lambda found: found.pop(f"base_model.model.{name}"))
    assert problem(base, folder) == f"it lacks {name}"


def test_layers_of_a_head_that_are_the_base_s_are_held_once(folders: Any) -> None:
    base, adapters = folders("bert")
    engine, ready = built(base, [adapters["classify", kind] for kind in ("some layers", "lora")])
    held = [engine._adapters._table.get(fact.digest) for fact in ready.adapters]
    heads = [adapter.head for adapter in held if adapter is not None]
    assert all(type(head) is ChainedHead and head.reads_first_only for head in heads)
    # The pooler's products, which one of the adapters changes.
    assert heads[0].num_bytes < heads[1].num_bytes


def test_adapters_that_do_not_fit_together_are_read_again_and_give_the_same_scores(folders: Any) -> None:
    base, adapters = folders("bert")
    chosen = [adapters["classify", "lora"], adapters["classify", "dora"], adapters["ner", "lora"]]
    engine, ready = built(base, chosen)
    commands = mixed({fact.name: fact.digest for fact in ready.adapters})
    expected = scores(engine, commands)
    limit = 1.5 * max(fact.num_bytes for fact in ready.adapters) / 1024**3
    small, _ = built(base, chosen, max_adapter_gib=limit)
    found = scores(small, commands)
    assert found.keys() == expected.keys()
    assert all(np.abs(found[name] - expected[name]).max() < 1e-5 for name in expected)


def test_requests_of_an_adapter_that_is_unloaded_while_they_wait_are_failed(folders: Any) -> None:
    base, adapters = folders("bert")
    chosen = [adapters["classify", "lora"], adapters["classify", "dora"]]
    _, ready = built(base, chosen)
    limit = 1.1 * max(fact.num_bytes for fact in ready.adapters) / 1024**3
    engine, ready = built(base, chosen, max_adapter_gib=limit)
    # The second one took the first one's room.
    engine.add(Encode("waits", TEXTS[0], adapter=ready.adapters[0].digest))
    engine.change_adapters(UnloadAdapter(ready.adapters[0].digest))
    replies = [reply for _ in range(4) for reply in engine.step()]
    failed = [reply for reply in replies if isinstance(reply, Failed)]
    assert [reply.message for reply in failed] == ["The adapter cannot be loaded: it was unloaded."]
    assert not engine.has_work
