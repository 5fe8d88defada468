"""The messages between front and worker, and nothing else that both know.

`framing` lays them on the wire: length-prefixed msgpack arrays. The front sends one `Load`, then `Command`s; the worker
answers one `Ready`, then one frame of `Reply`s per step. Token ids cross here, text never does.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from server.config import KvDtype, ModelConfig

FinishReason = Literal["stop", "length", "max_time", "banned_phrase", "abort", "error"]
Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How the vectors of a text's tokens become the text's, under sentence-transformers' names."""
Batching = Literal["end to end", "padded", "equal lengths", "one by one"]
"""How an encoder's texts share a forward pass: in one row without padding, padded, only with texts of equal length, or
not at all."""
GenerationValue = int | float | bool | str | list[Any] | None
"""A field of a generation_config as JSON has it."""

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""A longer frame means that the stream is out of step: the connection is closed."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one request's tokens are chosen and when it ends. Complete: the worker adds no defaults.

    Each value is in range and the combination has been checked; names are those of transformers'
    `GenerationConfig` where it has the rule. A neutral value means that the rule does not exist for the request.
    """

    max_new_tokens: int
    """At least 1; prompt and new tokens together fit the model."""
    min_new_tokens: int = 0
    """Below this many new tokens no end token or stop token can be chosen."""
    num_return_sequences: int = 1
    """Independent samples from one prefill or, with beams, how many of the best hypotheses are answered.
    Where a search found fewer, because all others were forbidden, its last is answered again in their places."""
    seed: int = 0
    """Always set: chosen by the front where the client gave none. 0 to 2**63 - 1."""

    # The draw, in the order in which the rules apply.
    do_sample: bool = False
    """False takes the most likely token and uses none of the rules of this part."""
    temperature: float = 1.0
    """Above 0."""
    top_n_sigma: float = 0.0
    """Keep logits within so many standard deviations of the greatest; 0 keeps every token."""
    top_k: int = 0
    """0 keeps every token."""
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    xtc_probability: float = 0.0
    """How often the likeliest tokens are excluded (XTC); 0 never."""
    xtc_threshold: float = 0.1
    """XTC excludes tokens of at least this probability, but for the least likely of them."""

    # Beam search.
    num_beams: int = 1
    num_beam_groups: int = 1
    """A divisor of ``num_beams``; above 1 is diverse beam search."""
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    # Penalties.
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    encoder_repetition_penalty: float = 1.0
    penalty_scope: Literal["prompt", "output", "both"] | int | None = None
    """What repetition, presence and frequency penalties count; an integer is the last so many tokens of both.
    None: both for the repetition penalty, as in transformers, and the output for the other two, as in OpenAI's API."""
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 0
    """Looks at the last so many tokens; 0 at all."""
    dry_breaker_ids: tuple[int, ...] = ()
    """Tokens that a repetition does not reach across."""

    # Biases and bans by token.
    logit_bias: dict[int, float] = {}
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    """A bias on the last token of a token sequence once the tokens before it are there; -inf bans it."""
    allowed_token_ids: tuple[int, ...] | None = None
    """No other token, but for those that end the sequence."""
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    """Not as the first new token."""
    forced_bos_token_id: int | None = None
    """The first new token."""
    forced_eos_token_ids: tuple[int, ...] = ()
    """One of these is the last token if the output reaches its greatest length."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """From so many new tokens on, end tokens grow more likely by this factor per token."""
    renormalize_logits: bool = False
    guidance_scale: float = 1.0
    """Classifier-free guidance against `Generate.negative_prompt_ids`; 1 is none."""

    # Rules on text, which the engine follows by the tokens' bytes.
    banned_phrases: tuple[str, ...] = ()
    """Never in the output, in no case and however tokenised. Stripped, not empty."""
    max_rewinds: int = 64
    """How often the sequence may go back to before a banned phrase; after that it ends as ``banned_phrase``."""
    phrase_penalties: tuple[tuple[str, float], ...] = ()
    """Amount taken from the logit of each token that begins or goes on with the phrase, in any case."""
    stop_strings: tuple[str, ...] = ()
    """Only with beams, where the front cannot know which hypothesis will have them. Else the front finds them."""
    grammar: str | None = None
    """A grammar in llguidance's JSON form; the output is a member of its language or a beginning of one."""

    # Ends.
    end_token_ids: tuple[int, ...] = ()
    """The model's end tokens. They end the sequence unless ``ignore_eos``."""
    stop_token_ids: tuple[int, ...] = ()
    """The client's own stop tokens. They end the sequence always."""
    ignore_eos: bool = False
    """End tokens may be chosen and end nothing."""

    # What is told.
    logprobs: bool = False
    """Send the log-probability of each chosen token."""
    top_n_tokens: int = 0
    """Send so many of the most likely tokens at each place; implies ``logprobs``."""
    logprob_token_ids: tuple[int, ...] = ()
    """Send these tokens' log-probabilities at each place of the output, in place of the most likely tokens'; implies
    ``logprobs``. No id occurs twice."""
    prompt_logprobs: bool = False
    """Send the log-probability of each prompt token; no part of the prompt comes from the prefix cache then."""
    logprobs_mode: Literal["raw", "processed"] = "raw"
    """Of the model's own distribution, or of the one that is drawn from."""

    @property
    def tells_others(self) -> bool:
        """Whether the log-probabilities of tokens other than the chosen ones are sent."""
        return bool(self.top_n_tokens or self.logprob_token_ids)

    @property
    def tells_logprobs(self) -> bool:
        return self.logprobs or self.tells_others


class Load(msgspec.Struct, frozen=True, tag=True):
    """First message to a worker: the model that it holds for its whole life."""

    model: ModelConfig
    num_loading: int = 1
    """Workers that load at the same time, this one among them."""
    num_on_gpu: int = 1
    """Models that share this one's GPU if it goes to one, this one among them."""


class Output(msgspec.Struct, frozen=True):
    """One sample of a request as far as it was delivered."""

    token_ids: list[int] = []
    is_finished: bool = False
    num_rewinds: int = 0


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Start a request's sequences, or continue those that another worker began.

    The tokens of ``outputs`` were sent to the client already; they count as new tokens for every limit, penalty and
    random number, so that the continuation is the one that would have come. A beam search has none: it begins
    anew, and the front leaves out what it delivered before.
    """

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    outputs: list[Output] = []
    """Empty, or one for each of ``num_return_sequences`` samples."""
    negative_prompt_ids: list[int] = []
    """For guidance: what to lead away from; empty means the prompt's last token, as in transformers."""
    template_spans: list[tuple[int, int]] = []
    """Ranges ``[start, stop)`` of ``prompt_ids`` that come from a template and that penalties shall not count."""
    cache_salt: str = ""
    """Requests with different salts share no block of the prefix cache."""
    tenant: str = ""
    """Different tenants share no block either, and each keeps a share of those that are cached."""
    caller: str = ""
    """Whom the request counts against where requests wait for their turn."""
    deadline_s: float | None = None
    """On the monotonic clock, which all processes of the machine share. When it passes, every output ends as
    ``max_time``; before the first token the request fails instead."""


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
    caller: str = ""
    """Whom the request counts against where requests wait for their turn."""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget a request, whatever its state. Nothing is answered; an unknown id is no error."""

    request_id: str
    index: int | None = None
    """Only this sample; the others of its request go on. Hypotheses of a beam search cannot be forgotten one by one:
    nothing happens then."""


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


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """How a model for embeddings makes a text's vector, as its folder says."""

    size: int
    pooling: Pooling
    is_normalized: bool
    """Vectors are given the length 1: by the front, for a client may want them as they come."""
    prompts: dict[str, str] = {}
    """By name, what is put before a text."""
    default_prompt: str | None = None


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
    """Most tokens of one sequence, special tokens included."""
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
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None
    embedding: Embedding | None = None
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


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One token and its log-probability."""

    token_id: int
    logprob: float


class PromptLogprobs(msgspec.Struct, frozen=True):
    """Of each prompt token after the first, given those before it."""

    logprobs: list[float]
    top_logprobs: list[list[TokenLogprob]] | None = None


class Tokens(msgspec.Struct, frozen=True, tag=True):
    """New token ids of one sequence of a request, in order; its last message carries the finish reason.

    A token that was sent is never taken back. Several steps' tokens may come in one message where the engine had to
    hold them (beams, banned phrases).
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[float] | None = None
    """One per token id, if asked for."""
    num_cached_tokens: int | None = None
    """With the first tokens: how many prompt tokens came from the prefix cache."""
    index: int = 0
    """Which of the request's ``num_return_sequences``."""
    top_logprobs: list[list[TokenLogprob]] | None = None
    """Per token id the most likely ones, in falling order, if asked for."""
    prompt_logprobs: PromptLogprobs | None = None
    """With the first tokens of index 0."""
    score: float | None = None
    """With the finish reason of a hypothesis: its summed log-probability over its length to the length penalty."""
    num_rewinds: int = 0
    """How often the sequence has gone back to before a banned phrase so far."""


class Scores(msgspec.Struct, frozen=True, tag=True):
    """An encoder's answer: raw logits, float32, little-endian, row by row.

    Shape ``[labels]`` for a classifier, ``[tokens, labels]`` for a tagger. For a mask query the rows are
    probabilities, ``[masks, candidates]``, and ``candidate_ids`` names the tokens. A model for embeddings answers a
    vector, ``[size]``, of whatever length it has.
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
    num_drafted: int = 0
    """Of ``batch_tokens``, guesses at next tokens."""
    num_accepted: int = 0
    """Guesses that came true."""
    token_budget: int = 0
    """Most tokens of prompts or texts that a step computes by now, as learned; 0 where it is ``max_batch_tokens``."""
    step_s: float = 0.0
    forward_s: float = 0.0
    """Of ``step_s``, the model's forward pass."""
    started: list[str] = []
    """Requests whose first tokens were computed in this step: the end of their time in the queue."""


class Pong(msgspec.Struct, frozen=True, tag=True):
    """The worker's loop turns."""


Command = Load | Generate | Encode | Abort | Ping
Reply = Ready | Refused | Tokens | Scores | Failed | Stats | Pong
