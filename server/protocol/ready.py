"""The first reply: the loaded model, or why there is none."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from server.languages import Languages
from server.number_types import KvDtype

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How the vectors of a text's tokens become the text's, under sentence-transformers' names."""
Batching = Literal["end to end", "padded", "equal lengths", "one by one"]
"""How an encoder's texts share a forward pass: in one row without padding, padded, only with texts of equal length, or
not at all."""
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
GenerationValue = int | float | bool | str | list[Any] | None
"""A field of a generation_config as JSON has it."""


class TokenizerFiles(msgspec.Struct, frozen=True):
    """What the front needs to speak the model's tokens; read by the worker, so that the front needs no transformers."""

    tokenizer_json: str
    """The fast tokenizer's own serialisation, without truncation or padding."""
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    mask_token: str | None = None
    mask_token_id: int | None = None
    num_special_tokens: int = 0
    """Special tokens added around a single text."""
    num_special_tokens_pair: int = 0
    prefix_ids: list[int] = []
    """Special tokens before a single text."""
    suffix_ids: list[int] = []
    """Special tokens behind a single text."""
    gives_token_types: bool = False
    """Whether token types are among what the tokenizer gives a model. If not, the model's default applies."""
    truncation_side: Literal["right", "left"] = "right"
    """Where tokens go from if a text is cut and the client names no side."""
    padding_side: Literal["right", "left"] = "right"
    """Models whose texts are padded on the left are trained to read a context before the question."""
    sentencepiece: bytes = b""
    """A model of SentencePiece that cuts texts into the tokens of ``tokenizer_json``; empty: that one cuts them."""
    reads_language_tags: bool = False
    """Whether a tag such as ``>>fra<<`` at the start of a text is one token."""
    strips_text: bool = False
    """Whether a text that the model writes loses white space at both ends."""
    target: TokenizerFiles | None = None
    """Of an encoder-decoder model that writes another vocabulary than it reads, or cuts its texts in another way."""


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """How a model for embeddings makes a text's vector, as its folder says."""

    size: int
    pooling: Pooling
    is_normalized: bool
    """Vectors are given the length 1: by the front, for a client may want them as they come."""
    prompts: dict[str, str] = {}
    """By name, what is put before a text."""
    default_prompt: str | None = None


class SharedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that the worker was asked to serve beside its model. Fields that `Ready` has too are as there."""

    name: str
    """Of the served model."""
    digest: str = ""
    """Of its files: what requests name it by."""
    problem: str | None = None
    """Why it cannot share the worker, as the end of a sentence; the other fields then say nothing."""
    task: str = ""
    architecture: str = ""
    max_model_len: int = 0
    labels: list[str] = []
    problem_type: ProblemType | None = None
    embedding: Embedding | None = None
    num_parameters: int = 0
    num_bytes: int = 0
    """Of its weights as they are held."""
    num_virtual_tokens: int = 0
    """Tokens that it puts before every prompt: the others have so much less room."""
    tokenizer: TokenizerFiles | None = None
    """None where it is the model's."""
    generation_config: dict[str, GenerationValue] = {}
    attribution: str | None = None


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The model is loaded and checked; everything the front must know of it."""

    task: str
    """A key of `tasks.TASKS`."""
    architecture: str
    """The class name in the model's config, such as ``LlamaForCausalLM``."""
    tokenizer: TokenizerFiles
    vocab_size: int
    """Width of the logits: a legal token id is below it."""
    max_model_len: int
    """Most tokens of one sequence, special tokens included; of an encoder-decoder model, of what its decoder writes."""
    max_source_len: int = 0
    """Of an encoder-decoder model: most tokens of a text that its encoder reads, special tokens included; else 0."""
    source_vocab_size: int = 0
    """Of an encoder-decoder model: a legal token id of such a text is below it."""
    start_ids: list[int] = []
    """Of an encoder-decoder model: the tokens that every output follows."""
    languages: Languages | None = None
    """Of a model that translates, where its folder names some."""
    rewriting_tasks: list[str] = []
    """Which of ``translation`` and ``summarization`` an encoder-decoder model does."""
    translation_prefix: str = ""
    """Words before every text that an encoder-decoder model without languages rewrites."""
    translation_options: dict[str, GenerationValue] = {}
    """Its defaults for translations where no pair of languages has its own; read as `summary_options`."""
    can_answer: bool = False
    """Of an encoder-decoder model: whether its kind was trained to answer questions about texts, asked in words."""
    summary_prefix: str = ""
    """Words before a text that ask an encoder-decoder model for a summary."""
    summary_options: dict[str, GenerationValue] = {}
    """Its defaults for summaries, before those of ``generation_config``; other fields than options among them."""
    device: str
    dtype: str
    dtype_reason: str | None = None
    """Of an encoder: what was measured to choose it, where the settings leave it open."""
    executor: str
    """``fused``, ``generic`` or ``compat``."""
    attention: str
    kernels: str | None = None
    """On a CPU: ``amx``, ``avx512``, ``avxvnni``, ``avx2``, or ``torch`` where none of ours run."""
    batching: Batching | None = None
    """Of an encoder."""
    num_parameters: int
    weight_bytes: int
    """Of the weights as they are held, quantised where they are."""
    kv_cache_bytes: int = 0
    num_blocks: int = 0
    block_size: int = 0
    max_running: int = 0
    max_batch_tokens: int = 0
    token_budget: int = 0
    """Most tokens of prompts or texts in the first step, as in `Stats`."""
    load_s: float = 0.0
    generation_config: dict[str, GenerationValue] = {}
    """The model's own defaults, only the fields that `SamplingParams` knows, under transformers' names; its end
    tokens as ``end_token_ids``."""
    labels: list[str] = []
    """Class names in the order of the logits."""
    problem_type: ProblemType | None = None
    embedding: Embedding | None = None
    adapters: list[SharedAdapter] = []
    """One for each of `Load`'s that no earlier worker served."""
    attribution: str | None = None
    """Licence line that must be shown with the model, from ``ATTRIBUTION`` in its folder."""
    quantization_kl: float | None = None
    """What a decoder's quantised weights lose: mean divergence of the next token's distribution, in nats."""
    kv_dtype: KvDtype | None = None
    """Of a decoder's cache; ``auto`` is ``dtype``."""
    kv_cache_kl: float | None = None
    """What a decoder's quantised cache loses, in the same measure."""
    reproducible: bool | None = None
    """Of a decoder: whether one seed gives one text, whatever else is in the batch."""
    reproducible_reason: str | None = None
    """If not, why, and which setting helps."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Instead of `Ready`: the worker cannot hold the model, and ends with ``exit_code``."""

    message: str
    """One line for the operator, which says what to do."""
    exit_code: int
