"""A prompt with all its outputs as they grow; knows neither HTTP nor workers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from server.protocol import FinishReason, PromptLogprobs, Tokens
from server.serving.output_text import OutputText, OutputToken, ToldToken, told_token
from server.serving.prompt import Prompt
from server.text.tokenizer import Tokenizer


class Generation:
    """One prompt and all its outputs."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt) -> None:
        self.prompt = prompt
        self.outputs = [OutputText(tokenizer, prompt, i) for i in range(prompt.params.num_return_sequences)]
        self.ranked = self.outputs
        """Best first, once they are ranked; until then by number. Hypotheses of a beam search come ranked."""
        self.cached_tokens = 0
        self.has_failed = False
        self.timings = Timings()
        self.tokenizer = tokenizer
        self.prompt_logprobs: PromptLogprobs | None = None
        """Of the prompt's tokens, once the first tokens came, if asked for."""

    @property
    def is_finished(self) -> bool:
        # A loop, for this is asked for every token.
        for output in self.outputs:  # noqa: SIM110
            if output.finish_reason is None:
                return False
        return True

    @property
    def samples_at_end(self) -> list[int]:
        """Numbers of the samples that have ended here, some of them with a text that the engine knows nothing of."""
        if self.prompt.params.num_beams > 1:
            return []
        return [output.number for output in self.outputs if output.finish_reason is not None]

    @property
    def finish_reason(self) -> FinishReason:
        """Of the first answer; ``abort`` if it has none yet."""
        return "error" if self.has_failed else self.ranked[0].finish_reason or "abort"

    @property
    def num_tokens(self) -> int:
        return sum(output.num_tokens for output in self.outputs)

    @property
    def answers(self) -> Sequence[OutputText]:
        return self.ranked[: self.prompt.num_answers]

    def add(self, replies: Sequence[Tokens]) -> list[OutputToken]:
        """New tokens with their texts, each output's in order."""
        tokens = []
        for reply in replies:
            self.cached_tokens = reply.num_cached_tokens or self.cached_tokens
            self.prompt_logprobs = reply.prompt_logprobs or self.prompt_logprobs
            output = self.outputs[reply.index]
            # An output that has ended here may go on in the engine while others of its prompt do.
            if output.finish_reason is None:
                tokens += output.add(reply)
                self.timings.note_end(output)
        return tokens

    def end_in_time(self) -> list[OutputToken]:
        """Every output that has not ended is answered as it is."""
        numbers = [output.number for output in self.outputs if output.finish_reason is None]
        return self.add([Tokens("", [], "max_time", index=number) for number in numbers])

    @property
    def prefill(self) -> list[ToldToken]:
        """The prompt's tokens with their log-probabilities, if asked for; nothing comes before the first."""
        if self.prompt_logprobs is None:
            return []
        logprobs = [None, *self.prompt_logprobs.logprobs]
        pairs = zip(self.prompt.ids, logprobs, strict=True)
        return [told_token(self.tokenizer, id_, logprob) for id_, logprob in pairs]


class Timings:
    """When one prompt's generation reached what, in seconds from its admission."""

    def __init__(self) -> None:
        self._start_s = time.perf_counter()
        self.queue_s: float | None = None
        """Until a step computed some of it."""
        self.first_token_s: float | None = None
        self.total_s: float | None = None
        """Until the output that ended last had ended."""

    def note_start(self) -> None:
        self.queue_s = self._elapsed_s() if self.queue_s is None else self.queue_s

    def note_tokens(self) -> None:
        self.first_token_s = self._elapsed_s() if self.first_token_s is None else self.first_token_s

    def note_end(self, output: OutputText) -> None:
        if output.finish_reason is not None:
            self.total_s = self._elapsed_s()

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._start_s
