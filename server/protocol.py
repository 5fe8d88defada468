"""The messages between front and worker, and nothing else that both know.

`framing` lays them on the wire: length-prefixed msgpack arrays. The front sends one `Load`, then `Command`s; the worker
answers one `Ready`, then one frame of `Reply`s per step. Token ids cross here, text never does.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from server.config import ModelConfig

FinishReason = Literal["stop", "length", "abort", "error"]
Task = Literal["generate", "classify", "ner", "fill-mask"]

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""A longer frame means that the stream is out of step: the connection is closed."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one sequence's tokens are chosen and when it ends. Complete: the worker adds no defaults.

    Each value is in range and the combination has been checked; names are those of transformers'
    `GenerationConfig`. A neutral value means that the rule does not exist for the sequence.
    """

    max_new_tokens: int
    """At least 1; prompt and new tokens together fit the model."""
    min_new_tokens: int = 0
    """Below this many new tokens no end token or stop token can be chosen."""
    do_sample: bool = False
    """False takes the most likely token and uses none of temperature, top_k, top_p, min_p, typical_p."""
    temperature: float = 1.0
    """Above 0."""
    top_k: int = 0
    """0 keeps every token."""
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    """Counts prompt and output, as in transformers."""
    presence_penalty: float = 0.0
    """Subtracted once from each token of the output, as in OpenAI's API; the prompt does not count."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence in the output; the prompt does not count."""
    seed: int = 0
    """Always set: chosen by the front where the client gave none. 0 to 2**63 - 1."""
    sample_index: int = 0
    """Which of the request's samples this sequence is; part of the random number's key."""
    end_token_ids: tuple[int, ...] = ()
    """The model's end tokens. They end the sequence unless ``ignore_eos``."""
    stop_token_ids: tuple[int, ...] = ()
    """The client's own stop tokens. They end the sequence always."""
    ignore_eos: bool = False
    """End tokens may be chosen and end nothing."""
    logprobs: bool = False
    """Send the log-probability of each chosen token under the model's raw distribution."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """First message to a worker: the model that it holds for its whole life."""

    model: ModelConfig


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Start a sequence, or continue one that another worker began.

    ``output_ids`` are the tokens already sent to the client; they count as new tokens for every limit,
    penalty and random number, so that the continuation is the one that would have come.
    """

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    output_ids: list[int] = []


class MaskQuery(msgspec.Struct, frozen=True):
    """What a fill-mask request wants to know at each of its mask positions."""

    positions: list[int]
    top_k: int
    target_ids: list[int] | None = None
    """Rank only these tokens."""


class Encode(msgspec.Struct, frozen=True, tag=True):
    """Run one text, pair or window, with its special tokens, through an encoder."""

    request_id: str
    token_ids: list[int]
    token_type_ids: list[int] | None = None
    mask: MaskQuery | None = None


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget a request, whatever its state. Nothing is answered; an unknown id is no error."""

    request_id: str


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Answered by `Pong` between steps, so that an idle worker can show that it lives."""


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


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The model is loaded and checked; everything the front must know of it."""

    task: Task
    architecture: str
    """The class name in the model's config, such as ``LlamaForCausalLM``."""
    tokenizer: TokenizerFiles
    vocab_size: int
    """Width of the logits: a legal token id is below it."""
    max_model_len: int
    """Most tokens of one sequence, special tokens included."""
    device: str
    dtype: str
    executor: str
    """``generic``, ``compat`` or, for encoders, ``encoder``."""
    attention: str
    num_parameters: int
    weight_bytes: int
    kv_cache_bytes: int = 0
    num_blocks: int = 0
    block_size: int = 0
    max_running: int = 0
    max_batch_tokens: int = 0
    load_s: float = 0.0
    generation_config: dict[str, int | float | bool | list[int] | None] = {}
    """The model's own defaults, only the fields that `SamplingParams` knows, under the same names."""
    labels: list[str] = []
    """Class names in the order of the logits."""
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None
    attribution: str | None = None
    """Licence line that must be shown with the model, from ``ATTRIBUTION`` in its folder."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Instead of `Ready`: the worker cannot hold the model, and ends with ``exit_code``."""

    message: str
    """One line for the operator, which says what to do."""
    exit_code: int


class Tokens(msgspec.Struct, frozen=True, tag=True):
    """New token ids of one request, in order; the last message carries the finish reason."""

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[float] | None = None
    """One per token id, if asked for."""
    num_cached_tokens: int | None = None
    """With the first tokens: how many prompt tokens came from the prefix cache."""


class Scores(msgspec.Struct, frozen=True, tag=True):
    """An encoder's answer: raw logits, float32, little-endian, row by row.

    Shape ``[labels]`` for a classifier, ``[tokens, labels]`` for a tagger. For a mask query the rows are
    probabilities, ``[masks, candidates]``, and ``candidate_ids`` names the tokens.
    """

    request_id: str
    shape: tuple[int, ...]
    data: bytes
    candidate_ids: list[list[int]] | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """One request ends in an error; the others go on. ``code`` is a key of `errors.FAILURES`."""

    request_id: str
    code: str
    message: str


class Stats(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """State of the engine after a step, and what the step did; one per frame of replies."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks_used: int = 0
    """Blocks that a sequence holds; blocks kept only for prefix reuse count as free."""
    batch_size: int = 0
    """Sequences in the step."""
    batch_tokens: int = 0
    """New tokens computed in the step, without padding."""
    padded_tokens: int = 0
    """Token places that held padding."""
    prompt_tokens: int = 0
    """Of ``batch_tokens``, those of prompts."""
    prefix_hit_tokens: int = 0
    """Prompt tokens that sequences admitted in this step found in the cache."""
    prefix_query_tokens: int = 0
    """Prompt tokens of the sequences admitted in this step."""
    num_preemptions: int = 0
    """Sequences preempted in this step."""
    step_s: float = 0.0
    forward_s: float = 0.0
    """Of ``step_s``, the model's forward pass."""
    started: list[str] = []
    """Requests whose first tokens were computed in this step: the end of their time in the queue."""


class Pong(msgspec.Struct, frozen=True, tag=True):
    """The worker's loop turns."""


Command = Load | Generate | Encode | Abort | Ping
Reply = Ready | Refused | Tokens | Scores | Failed | Stats | Pong
