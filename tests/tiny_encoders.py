"""Random, seeded encoder folders, small enough to run in milliseconds, with tokenizers of the three common kinds.

The weights are larger than a real initialisation, so that labels differ between tokens and depend on what stands around
them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from server.protocol import TokenizerFiles
from server.tasks import TASKS
from tests.fixed_vocabulary import train_unigram, train_word_piece

CORPUS = """
My name is Maria Gonzalez and I live at 742 Evergreen Terrace, Springfield, IL 62704. Call me at (555) 123-4567 or
write to maria.gonzalez@example.com. Alice Johnson, Bob Smith and Carol O'Neil-Jones met in San Francisco; "How much for
a sack?" asks the baker.
Hans-Peter M\u00fcller sings na\u00efvely near the old stone bridge in Chicago and New York City.
今天天气很好，张三和李四住在北京。欧阳娜娜去上海见王小明。你好，世界！
مرحبا بالعالم، محمد علي يعيش في القاهرة مع أحمد حسن.
서울에서 김철수 씨를 만났다. 😀🚀 👨‍👩‍👧 ❤️ 🇩🇪
"""
TEXTS = [
    "My name is Maria Gonzalez and I live at 742 Evergreen Terrace, Springfield, IL 62704.",
    "Call (555) 123-4567 or write to maria.gonzalez@example.com; Hans-Peter M\u00fcller sings, na\u00efvely.",
    "张三和李四住在北京，欧阳娜娜去上海见王小明。",
    "محمد علي يعيش في القاهرة مع أحمد حسن.",
    "서울에서 김철수 씨를 만났다.",
    "😀 Bob 🚀Smith👨‍👩‍👧 met 张三 in New York City ❤️",
    "  Alice   Johnson\n\n\tBob Smith ",
    "x",
]
PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(5)
ROBERTA_SPECIALS = {CLS: "<s>", PAD: "<pad>", SEP: "</s>", UNK: "<unk>", MASK: "<mask>"}
MAX_MODEL_LEN = 64
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")

Kind = Literal["wordpiece", "bytes", "metaspace"]
TaskClass = Literal["classify", "ner", "fill-mask", "question-answering"]

_BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": MAX_MODEL_LEN,
}  # fmt: skip
FAMILIES: dict[str, tuple[Kind, dict[str, Any]]] = {
    "bert": ("wordpiece", _BERT),
    "distilbert": ("wordpiece", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
                                 "max_position_embeddings": MAX_MODEL_LEN}),
    # Positions of a text begin after the padding index: a table of N rows takes N - 2 tokens.
    "roberta": ("bytes", {**_BERT, "max_position_embeddings": MAX_MODEL_LEN + 2, "type_vocab_size": 1}),
    "xlm-roberta": ("metaspace", {**_BERT, "max_position_embeddings": MAX_MODEL_LEN + 2, "type_vocab_size": 1}),
    "deberta-v2": ("wordpiece", {**_BERT, "relative_attention": True, "position_buckets": 16,
                                 "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "type_vocab_size": 0}),
    "modernbert": ("bytes", {**_BERT, "num_hidden_layers": 3, "global_attn_every_n_layers": 3, "local_attention": 16}),
}  # fmt: skip
"""Model type -> its tokenizer, and the config fields that make it tiny."""
_CLASSES = {
    "classify": AutoModelForSequenceClassification,
    "ner": AutoModelForTokenClassification,
    "fill-mask": AutoModelForMaskedLM,
    "question-answering": AutoModelForQuestionAnswering,
}


def special_tokens(kind: Kind) -> dict[str, str]:
    """How the tokenizer writes the five special tokens."""
    return {name: name if kind == "wordpiece" else ROBERTA_SPECIALS[name] for name in (PAD, UNK, CLS, SEP, MASK)}


@cache
def tiny_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """A tokenizer trained on `CORPUS`; its special tokens have the same ids for every kind."""
    specials = special_tokens(kind)
    backend = {"wordpiece": _wordpiece, "bytes": _byte_level, "metaspace": _metaspace}[kind](list(specials.values()))
    cls, sep = (specials[CLS], CLS_ID), (specials[SEP], SEP_ID)
    if kind == "wordpiece":
        backend.post_processor = processors.BertProcessing(sep, cls)
    elif kind == "bytes":
        backend.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)
    else:
        a, b = f"{cls[0]} $A {sep[0]}", f"{cls[0]} $A {sep[0]} {sep[0]} $B {sep[0]}"
        backend.post_processor = processors.TemplateProcessing(single=a, pair=b, special_tokens=[cls, sep])
    names = {"pad_token": PAD, "unk_token": UNK, "cls_token": CLS, "sep_token": SEP, "mask_token": MASK}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_MODEL_LEN,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"]
        if kind == "wordpiece"
        else ["input_ids", "attention_mask"],
        **{key: specials[name] for key, name in names.items()},
    )


def _wordpiece(specials: list[str]) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token=UNK))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    train_word_piece(backend, [CORPUS], vocab_size=380, special_tokens=specials)
    return backend


def _byte_level(specials: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([CORPUS], trainer)
    return backend


def _metaspace(specials: list[str]) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    train_unigram(backend, [CORPUS], vocab_size=300, special_tokens=specials, unk_token=specials[UNK_ID])
    return backend


def tiny_encoder(
    family: str, task: TaskClass, *, labels: tuple[str, ...] = TAGS, problem_type: str | None = None, seed: int = 0
) -> PreTrainedModel:
    """A model in float32 and eval mode."""
    kind, fields = FAMILIES[family]
    ids = {"pad_token_id": PAD_ID, "bos_token_id": CLS_ID, "eos_token_id": SEP_ID}
    if family == "modernbert":
        ids |= {"cls_token_id": CLS_ID, "sep_token_id": SEP_ID}
    config = AutoConfig.for_model(
        family, vocab_size=len(tiny_tokenizer(kind)), **fields, **ids, **_label_fields(task, labels)
    )
    if task == "classify":
        config.problem_type = problem_type
    torch.manual_seed(seed)
    module = _CLASSES[task].from_config(config).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                # The token itself outweighs its place and its neighbours, or all tokens would get one label.
                parameter.normal_(
                    std=1.0 if name.endswith(("word_embeddings.weight", "tok_embeddings.weight")) else 0.3
                )
        if TASKS[task].has_labels:
            _balance(module)
    return module


def _balance(module: PreTrainedModel) -> None:
    """Over random tokens every label's mean logit becomes 0: none outweighs the others everywhere."""
    token_ids = torch.randint(5, module.config.vocab_size, (16, 24), generator=torch.Generator().manual_seed(1))
    logits = module(token_ids).logits
    last = module.classifier if isinstance(module.classifier, torch.nn.Linear) else module.classifier.out_proj
    last.bias -= logits.flatten(0, -2).mean(dim=0)


def _label_fields(task: TaskClass, labels: tuple[str, ...]) -> dict[str, Any]:
    if not TASKS[task].has_labels:
        return {}
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def write_encoder(folder: Path, family: str, task: TaskClass, **options: Any) -> Path:
    """A folder that transformers and the server load."""
    tiny_encoder(family, task, **options).save_pretrained(folder)
    tiny_tokenizer(FAMILIES[family][0]).save_pretrained(folder)
    return folder


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> TokenizerFiles:
    """What a worker sends the front of a tokenizer."""
    return TokenizerFiles(
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token,
        mask_token=tokenizer.mask_token,
        mask_token_id=tokenizer.mask_token_id,
        num_special_tokens=tokenizer.num_special_tokens_to_add(pair=False),
        num_special_tokens_pair=tokenizer.num_special_tokens_to_add(pair=True),
        gives_token_types="token_type_ids" in tokenizer.model_input_names,
        truncation_side=tokenizer.truncation_side,
    )
