"""The messages between front and worker, and nothing else that both know.

`framing` lays them on the wire: length-prefixed msgpack arrays. The front sends one `Load`, then `Command`s; the worker
answers one `Ready`, then one frame of `Reply`s per step; adapters may come and go meanwhile. Token ids cross here, text
never does.
"""

from __future__ import annotations

from server.protocol.commands import (
    Abort,
    Command,
    Encode,
    Generate,
    Load,
    LoadAdapter,
    MaskQuery,
    Output,
    Ping,
    PromptContext,
    UnloadAdapter,
    WeightedAdapter,
)
from server.protocol.parameters import SamplingParams
from server.protocol.ready import (
    Batching,
    Embedding,
    GenerationValue,
    Pooling,
    ProblemType,
    Ready,
    Refused,
    SharedAdapter,
    TokenizerFiles,
)
from server.protocol.replies import (
    AdapterState,
    Failed,
    FinishReason,
    Pong,
    PromptLogprobs,
    Reply,
    Residence,
    Scores,
    Stats,
    TokenLogprob,
    Tokens,
)

__all__ = [
    "Abort",
    "AdapterState",
    "Batching",
    "Command",
    "Embedding",
    "Encode",
    "Failed",
    "FinishReason",
    "Generate",
    "GenerationValue",
    "Load",
    "LoadAdapter",
    "MaskQuery",
    "Output",
    "Ping",
    "Pong",
    "Pooling",
    "ProblemType",
    "PromptContext",
    "PromptLogprobs",
    "Ready",
    "Refused",
    "Reply",
    "Residence",
    "SamplingParams",
    "Scores",
    "SharedAdapter",
    "Stats",
    "TokenLogprob",
    "TokenizerFiles",
    "Tokens",
    "UnloadAdapter",
    "WeightedAdapter",
]
