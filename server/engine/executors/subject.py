"""The module that an executor is sought for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel

from server.config import ModelConfig
from server.engine import memory
from server.engine.attention.backend import AttentionBackend
from server.engine.attention.choose import bytes_per_block, choose_attention
from server.engine.executors.lengthwise import Lengthwise
from server.engine.memory import CudaShare
from server.engine.model_runner import ModelRunner
from server.engine.selfcheck import Reference
from server.errors import EXIT_MODEL, ConfigurationError
from server.modules.attention import LayerSpec
from server.modules.unsupported import Unsupported
from server.number_types import KvDtype

log = logging.getLogger("sluice.engine")

TokenIds = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The module that an executor is sought for, and what every attempt has to know."""

    module: PreTrainedModel
    config: ModelConfig
    max_model_len: int
    max_source_len: int
    expected: Reference
    quality_ids: TokenIds
    lengthwise: Lengthwise | None
    """The module's rotary parts, where they follow from sequences' lengths."""
    share: CudaShare

    @property
    def is_on_gpu(self) -> bool:
        return str(self.module.device.type) == "cuda"

    def num_blocks(self, block_bytes: int, make_runner: Callable[[int], ModelRunner], kept_bytes: int = 0) -> int:
        """Of the cache that serves, beside ``kept_bytes`` that the runner keeps between steps.

        ``make_runner`` makes a runner with few blocks, to measure a step on a GPU.
        """
        block_size, room = self.config.block_size, None
        if self.is_on_gpu:
            room = partial(self.share.measure, make_runner, self.max_model_len, block_size)
        max_tokens = self.max_model_len + self.max_source_len
        return memory.num_blocks(self.config, block_bytes, max_tokens, room, kept_bytes=kept_bytes)

    def block_bytes(self, specs: Sequence[LayerSpec]) -> int:
        """Of the cache that serves."""
        module, config = self.module, self.config
        return bytes_per_block(specs, config.block_size, module.dtype, module.device, kv_dtype=config.kv_dtype)

    def backend(self, specs: Sequence[LayerSpec], num_blocks: int, kv_dtype: KvDtype = "auto") -> AttentionBackend:
        """Checks compare numbers with the module's, so their caches are in its own type."""
        module, config = self.module, self.config
        return choose_attention(
            specs,
            num_blocks,
            config.block_size,
            module.dtype,
            module.device,
            deterministic=config.deterministic,
            kv_dtype=kv_dtype,
        )

    def refused(self, executor: str, error: Unsupported) -> None:
        """Raise where ``executor`` was asked for by name, else say why another one is tried."""
        config = self.config
        if config.executor == executor:
            raise ConfigurationError(
                f"Model {config.name} cannot run in the {executor} executor: {error}. Set executor to auto.",
                exit_code=EXIT_MODEL,
            )
        log.info("model %s does not run in the %s executor: %s", config.name, executor, error)
