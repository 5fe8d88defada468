"""The tokenizer as the front needs it: one serialised string and a few names. No text is tokenised here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer

from server.models.configs import first_line
from server.models.describe import refuse
from server.models.seq2seq_tokenizers import convert
from server.models.tokenizer_trial import try_tokenizer
from server.protocol import TokenizerFiles

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model"),
    *("source.spm", "sentencepiece.bpe.model", "prophetnet.tokenizer"),
)


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def load_tokenizer(folder: Path) -> Any:
    """A transformers tokenizer with a fast back end."""
    if not has_tokenizer(folder):
        raise refuse(f"{folder} has no tokenizer. Save it there with tokenizer.save_pretrained.")
    try_tokenizer(folder)
    try:
        tokenizer = read_tokenizer(folder)
        converted = tokenizer if getattr(tokenizer, "backend_tokenizer", None) is not None else convert(tokenizer)
    except StrictDataclassError as error:
        raise refuse(f"The config.json in {folder} is wrong ({first_line(error)}). Correct the field.") from error
    except (MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        # A broken file raises anything, and where the tokenizers library panics, no Exception.
        raise refuse(
            f"The tokenizer in {folder} cannot be loaded ({_line(error)}). Save it again as tokenizer.json."
        ) from error
    if converted is None:
        kind = type(tokenizer).__name__
        raise refuse(
            f"The tokenizer in {folder} is a {kind}, which has no fast form. Add a tokenizer.json to the folder."
        )
    return converted


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of transformers, which may be one in Python only."""
    with warnings.catch_warnings():
        # Marian's texts stay as they are without it.
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def tokenizer_files(tokenizer: Any) -> TokenizerFiles:
    """Of a tokenizer that is not used to read texts afterwards: it neither truncates nor pads any more."""
    serialised = _serialised(tokenizer)
    prefix_ids, suffix_ids = _around(tokenizer.backend_tokenizer.encode("a"))
    return TokenizerFiles(
        tokenizer_json=serialised,
        chat_template=one_template(tokenizer.chat_template),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        mask_token=tokenizer.mask_token,
        mask_token_id=None if tokenizer.mask_token is None else int(tokenizer.mask_token_id),
        num_special_tokens=tokenizer.num_special_tokens_to_add(pair=False),
        num_special_tokens_pair=tokenizer.num_special_tokens_to_add(pair=True),
        prefix_ids=prefix_ids,
        suffix_ids=suffix_ids,
        gives_token_types="token_type_ids" in tokenizer.model_input_names,
        truncation_side="left" if tokenizer.truncation_side == "left" else "right",
        padding_side="left" if tokenizer.padding_side == "left" else "right",
        sentencepiece=getattr(tokenizer, "sentencepiece", b""),
        reads_language_tags=getattr(tokenizer, "reads_language_tags", False),
        strips_text=getattr(tokenizer, "strips_text", False),
        target=tokenizer_files(target) if (target := getattr(tokenizer, "target", None)) is not None else None,
    )


def one_template(template: str | Mapping[str, str] | None) -> str | None:
    """Of named templates transformers takes ``tool_use`` where there are tools, else ``default``: so does this one."""
    if not isinstance(template, Mapping):
        return template
    default, with_tools = template.get("default"), template.get("tool_use")
    if default is None or with_tools is None:
        return default
    # The sandbox trims the line feed behind a tag, and the plus sign keeps the space before it.
    parts = [text.removesuffix("\n") for text in (with_tools, default)]
    return f"{{%+ if tools %}}\n{parts[0]}{{%+ else %}}\n{parts[1]}{{%+ endif %}}"


def _serialised(tokenizer: Any) -> str:
    """Without truncation and padding, which belong to a call and not to a tokenizer."""
    backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    serialised: str = backend.to_str()
    return serialised


def _around(encoding: tokenizers.Encoding) -> tuple[list[int], list[int]]:
    """The special tokens before a text and behind it. A text without tokens of its own shows neither."""
    is_text = [sequence is not None for sequence in encoding.sequence_ids]
    if not any(is_text):
        return [], []
    ids = encoding.ids
    return ids[: is_text.index(True)], ids[len(ids) - is_text[::-1].index(True) :]


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
