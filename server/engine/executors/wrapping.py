"""A runner around another one, whose cache and sequences it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.model_runner import ModelRunner


class WrappingRunner(ModelRunner):
    """Everything but `forward` is that of ``runner``."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.name = runner.name
        self.attention = runner.attention
        self.device = runner.device
        self.dtype = runner.dtype
        self.vocab_size = runner.vocab_size
        self.block_size = runner.block_size
        self.num_blocks = runner.num_blocks
        self.kv_cache_bytes = runner.kv_cache_bytes
        self.weight_bytes = runner.weight_bytes
        self.can_reuse_blocks = runner.can_reuse_blocks
        self.is_row_invariant = runner.is_row_invariant
        self.length_rule = runner.length_rule
        self.quantization_kl = runner.quantization_kl
        self.kv_cache_kl = runner.kv_cache_kl
        self.parts = runner.parts
        self.kv_shapes = runner.kv_shapes

    def release(self, key: int) -> None:
        self._runner.release(key)

    def fork(self, parent_key: int, child_key: int) -> None:
        self._runner.fork(parent_key, child_key)

    def rewind(self, key: int, num_tokens: int) -> int:
        return self._runner.rewind(key, num_tokens)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._runner.copy_blocks(pairs)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        self._runner.clear_blocks(blocks)
