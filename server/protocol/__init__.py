"""The messages between front and worker, and nothing else that both know.

`framing` lays them on the wire: length-prefixed msgpack arrays. The front sends one `Load`, then `Command`s; the worker
answers one `Ready`, then one frame of `Reply`s per step. Token ids cross here, text never does.
"""

from __future__ import annotations

from server.protocol.commands import (
    Abort,
    Command,
    Encode,
    Generate,
    Load,
    MaskQuery,
    Output,
    Ping,
    PromptContext,
)
from server.protocol.parameters import SamplingParams
from server.protocol.ready import (
    Batching,
    Embedding,
    GenerationValue,
    Pooling,
    Ready,
    Refused,
    SharedAdapter,
    TokenizerFiles,
)
from server.protocol.replies import (
    Failed,
    FinishReason,
    Pong,
    PromptLogprobs,
    Reply,
    Scores,
    Stats,
    TokenLogprob,
    Tokens,
)

__all__ = [
    "Abort",
    "Batching",
    "Command",
    "Embedding",
    "Encode",
    "Failed",
    "FinishReason",
    "Generate",
    "GenerationValue",
    "Load",
    "MaskQuery",
    "Output",
    "Ping",
    "Pong",
    "Pooling",
    "PromptContext",
    "PromptLogprobs",
    "Ready",
    "Refused",
    "Reply",
    "SamplingParams",
    "Scores",
    "SharedAdapter",
    "Stats",
    "TokenLogprob",
    "TokenizerFiles",
    "Tokens",
]
