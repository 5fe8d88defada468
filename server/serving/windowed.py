"""What tasks share that read texts of any length, in windows that overlap."""

from __future__ import annotations

from server.client.worker_client import WorkerClient
from server.config import ModelConfig, ServeConfig
from server.length_errors import RequestTooLong
from server.protocol import Ready
from server.sentences import Words
from server.serving.admission import Admission
from server.serving.encoder_client import ServedEncoder


class WindowedEncoder(ServedEncoder):
    """A model whose inputs have no length of their own: one request has, with all its windows."""

    def __init__(
        self, config: ServeConfig, model: ModelConfig, ready: Ready, worker: WorkerClient, admission: Admission
    ) -> None:
        super().__init__(config, model, ready, worker, admission)
        self._max_tokens = max(config.max_queued_tokens, ready.max_model_len)

    def _check_size(self, num_tokens: int, advice: Words) -> None:
        """A stride of almost a window would make a window of every token."""
        if num_tokens > self._max_tokens:
            raise RequestTooLong(num_tokens, self._max_tokens, advice)

    def _check_least(self, *texts: str) -> None:
        """Any length has its windows, up to the limit of a request."""
        num_tokens = sum(self.tokenizer.at_least(text, self._max_tokens) for text in texts)
        if num_tokens > self._max_tokens:
            raise RequestTooLong(num_tokens, self._max_tokens, "Send less text.", is_least=True)
