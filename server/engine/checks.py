"""What makes a command impossible. The front has checked all of it: this is the second line."""

from __future__ import annotations

from collections.abc import Container

from server.protocol import Generate


def problem(
    command: Generate,
    *,
    vocab_size: int,
    max_model_len: int,
    has_vocabulary: bool,
    adapters: Container[str] = (),
    max_source_len: int = 0,
    source_vocab_size: int = 0,
) -> str | None:
    """Why the command cannot be served, as a sentence."""
    params = command.params
    if not command.prompt_ids:
        return "The prompt has no tokens."
    if command.adapter and command.adapter not in adapters:
        return "The adapter that the request names is not loaded, or its files have changed since."
    if params.max_new_tokens < 1:
        return f"max_new_tokens is {params.max_new_tokens}: it must be at least 1."
    outputs = [output.token_ids for output in command.outputs]
    for token_ids in (command.prompt_ids, command.negative_prompt_ids, *outputs):
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
            return f"A token id is outside the model's vocabulary of {vocab_size}."
    num_tokens = len(command.prompt_ids) + max(map(len, outputs), default=0)
    longest_prompt = max(len(command.prompt_ids), len(command.negative_prompt_ids))
    if num_tokens > max_model_len or longest_prompt >= max_model_len:
        return f"The request has {max(num_tokens, longest_prompt)} tokens and the model takes at most {max_model_len}."
    has_text_rules = params.banned_phrases or params.phrase_penalties or params.stop_strings or params.grammar
    if has_text_rules and not has_vocabulary:
        return "The engine does not know the bytes of this model's tokens: it cannot follow rules on text."
    return _problem_of_source(command, max_source_len, source_vocab_size) or _problem_of_outputs(command)


def _problem_of_source(command: Generate, max_len: int, vocab_size: int) -> str | None:
    ids = command.source_ids
    if bool(ids) != bool(max_len):
        return "This model reads no source text." if ids else "The source text has no tokens."
    if not ids:
        return None
    if len(ids) > max_len:
        return f"The source text has {len(ids)} tokens and the model reads at most {max_len}."
    if not (min(ids) >= 0 and max(ids) < vocab_size):
        return f"A token id of the source text is outside the encoder's vocabulary of {vocab_size}."
    if command.params.guidance_scale != 1.0:
        return "Encoder-decoder models do not support guidance."
    if command.template_spans:
        return "Penalties of an encoder-decoder model cannot leave out what a template wrote."
    return None


def _problem_of_outputs(command: Generate) -> str | None:
    outputs = command.outputs
    if not outputs:
        return None
    if command.params.num_beams > 1:
        return "A beam search cannot continue outputs."
    if len(outputs) != command.params.num_return_sequences:
        return f"There are {len(outputs)} outputs to continue and {command.params.num_return_sequences} are asked for."
    if all(output.is_finished for output in outputs):
        return "Every output is already finished."
    return None
