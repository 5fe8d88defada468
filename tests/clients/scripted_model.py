"""A real model that says what is written down for it: a call of a tool, and once it has the result, a sentence.

A token depends on its position alone: positions are one-hot vectors, and the output layer maps each to a token. The
chat template makes prompts as long as it takes to stand where a script begins.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

NUM_POSITIONS = 512
END, FILL = "<|end|>", "<|x|>"
CALL = (
    "<think>\nI have to look.\n</think>\n\nLet me look.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "note": "not </tool_call> yet"}}\n</tool_call>'
)
ANSWER = "It is sunny in Rome."
TEMPLATE = (
    "{#- As <tool_call> and <think></think>. -#}{%- if tools %}{% endif %}"
    "{%- for _ in range(ANSWER if messages[-1].role == 'tool' else CALL) %}FILL{% endfor %}"
)


def write_caller(folder: Path) -> Path:
    tokenizer = _tokenizer()
    end_id = tokenizer.token_to_id(END)
    scripts = [tokenizer.encode(text, add_special_tokens=False).ids for text in (CALL, ANSWER)]
    starts = [4, 4 + len(scripts[0]) + 2]
    token_at = {}
    for start, ids in zip(starts, scripts, strict=True):
        token_at |= dict(enumerate([*ids, end_id], start - 1))
    _model(tokenizer.get_vocab_size(), token_at, end_id).save_pretrained(folder)
    GenerationConfig(eos_token_id=end_id).save_pretrained(folder)
    template = TEMPLATE.replace("FILL", FILL).replace("ANSWER", str(starts[1])).replace("CALL", str(starts[0]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, chat_template=template).save_pretrained(folder)
    return folder


def _tokenizer() -> Tokenizer:
    """A token for each byte, and the marks as special tokens."""
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = (END, FILL, "<tool_call>", "</tool_call>")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def _model(vocab_size: int, token_at: dict[int, int], end_id: int) -> GPT2LMHeadModel:
    """``token_at``: what comes after a position."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=NUM_POSITIONS,
        n_embd=NUM_POSITIONS,
        n_layer=1,
        n_head=8,
        n_inner=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end_id,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1)
        model.transformer.wpe.weight.copy_(torch.eye(NUM_POSITIONS))
        # So much that a token is certain at any temperature that people use.
        model.lm_head.weight[list(token_at.values()), list(token_at)] = 8
    return model
