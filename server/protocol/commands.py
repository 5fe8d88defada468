"""What the front sends."""

from __future__ import annotations

import msgspec

from server.config import ModelConfig
from server.protocol.parameters import SamplingParams


class WeightedAdapter(msgspec.Struct, frozen=True):
    """One of a sum of adapters."""

    model: ModelConfig
    """As that of `LoadAdapter`."""
    weight: float


class LoadAdapter(msgspec.Struct, frozen=True, tag=True):
    """An adapter that requests may name from now on. `AdapterState` answers."""

    digest: str
    """Of its files: what requests name it by."""
    model: ModelConfig
    """Its folder, whose files nobody changes, and its base; of a sum, the base."""
    is_known: bool = False
    """An earlier worker served it: nothing is read or answered before a request names it."""
    parts: tuple[WeightedAdapter, ...] = ()
    """Of a sum of adapters: these."""


class UnloadAdapter(msgspec.Struct, frozen=True, tag=True):
    """No request names the adapter any more. Those that run keep it."""

    digest: str


class Load(msgspec.Struct, frozen=True, tag=True):
    """First message to a worker: the model that it holds for its whole life."""

    model: ModelConfig
    num_loading: int = 1
    """Workers that load at the same time, this one among them."""
    num_on_gpu: int = 1
    """Models that share this one's GPU if it goes to one, this one among them."""
    adapters: tuple[LoadAdapter, ...] = ()
    """Adapters of the model that may share its worker."""


class Output(msgspec.Struct, frozen=True):
    """One sample of a request as far as it was delivered."""

    token_ids: list[int] = []
    is_finished: bool = False
    num_rewinds: int = 0


class PromptContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt's output depends on beside its tokens and the parameters.

    The front makes it with the prompt. `Generate` has the same fields, so that everything in the worker can read it.
    """

    negative_prompt_ids: list[int] = []
    """For guidance: what to lead away from; empty means the prompt's last token, as in transformers."""
    template_spans: list[tuple[int, int]] = []
    """Ranges ``[start, stop)`` of the prompt's tokens that come from a template and that penalties do not count."""
    cache_salt: str = ""
    """Requests with different salts share no block of the prefix cache."""
    source_ids: list[int] = []
    """Of an encoder-decoder model: the tokens of the text that its encoder reads."""


class Generate(PromptContext, frozen=True, tag=True):
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
    tenant: str = ""
    """Different tenants share no block either, and each keeps a share of those that are cached."""
    adapter: str = ""
    """Digest of one of the worker's adapters, as `SharedAdapter` has it; empty for the model itself."""
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
    adapter: str = ""
    """As that of `Generate`."""
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


Command = Load | LoadAdapter | UnloadAdapter | Generate | Encode | Abort | Ping
