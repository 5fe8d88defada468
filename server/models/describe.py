"""What a model folder says of itself: task, limits, labels, defaults. Reads configs, never weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import transformers
from transformers import GenerationConfig, PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from server.errors import EXIT_MODEL, ConfigurationError
from server.models.configs import token_id
from server.protocol import GenerationValue, ProblemType, SamplingParams
from server.tasks import CLASSIFY, EMBED, GENERATE, SEQ2SEQ, TASKS

HEADS = {ending: task.name for task in TASKS.values() for ending in task.heads}
"""Ending of an architecture's class name -> task. A model without a head makes embeddings."""

OTHER_SHAPES = ("bad_words_ids", "forced_eos_token_id")
"""Fields of transformers' GenerationConfig that `SamplingParams` has under another name."""
LEFT_TO_CLIENTS = ("num_return_sequences", "stop_strings", "num_beam_groups", "diversity_penalty")
"""Fields of both that no model decides."""
GENERATION_FIELDS = (
    *(
        name
        for name in SamplingParams.__struct_fields__
        if hasattr(GenerationConfig(), name) and name not in LEFT_TO_CLIENTS
    ),
    *OTHER_SHAPES,
)
"""Fields of a GenerationConfig that become a model's defaults."""
DECODER_LENGTHS = ("max_length", "min_length")
"""The same, of encoder-decoder models alone, where they count what the decoder writes after the token that starts it
and that token."""

NONE_BELOW_ZERO = (
    "max_new_tokens",
    "min_new_tokens",
    "top_k",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
"""Of these, fields whose -1 means that they are not set."""


def refuse(message: str) -> ConfigurationError:
    return ConfigurationError(message, exit_code=EXIT_MODEL)


def read_json(folder: Path, name: str, kind: type = dict) -> Any:
    """The file's JSON value, which is an object, or what ``kind`` says."""
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise refuse(f"{folder} has no {name}. Give the path of a complete Hugging Face model folder.") from None
    except (OSError, ValueError) as error:
        raise refuse(f"{path} cannot be read as JSON ({error}). Write the folder again.") from error
    except RecursionError:
        raise refuse(f"{path} is nested too deeply. Write the folder again.") from None
    if not isinstance(content, kind):
        raise refuse(f"{path} is not a JSON {'object' if kind is dict else kind.__name__}. Write the folder again.")
    return content


def check_config(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what transformers cannot build with code of its own."""
    model_type = config.get("model_type")
    if model_type in CONFIG_MAPPING:
        return
    if "auto_map" in config:
        raise refuse(
            f"{folder} brings Python code of its own (auto_map in config.json), which is never run. "
            "Serve a model whose architecture transformers has."
        )
    raise refuse(
        f"{folder} is of the type {model_type!r}, which transformers does not know. "
        "Check model_type in config.json, or serve another model."
    )


def task_of(folder: Path, architectures: list[str] | None) -> str:
    """By the head that its weights are for."""
    names = architectures or []
    for name in names:
        for ending, task in HEADS.items():
            if name.endswith(ending) and _is_among(name, TASKS[task].mapping):
                return task
    if any(name in MODEL_MAPPING_NAMES.values() for name in names):
        return EMBED.name
    found = ", ".join(names) if names else "no architecture"
    raise refuse(
        f"{folder} holds {found}, which no route serves. Serve a model with one of these heads: {', '.join(HEADS)}."
    )


def _is_among(name: str, mapping: str | None) -> bool:
    """Whether the class is in the mapping and reads text alone; any class is where there is no mapping."""
    if mapping is None:
        return True
    if name not in getattr(modeling_auto, mapping).values():
        return False
    return getattr(transformers, name).input_modalities in ("text", ("text",))


def labels_of(config: PreTrainedConfig, task: str) -> list[str]:
    """Class names in the order of the logits; none for language models."""
    if not TASKS[task].has_labels:
        return []
    numbers = range(config.num_labels)
    missing = next((number for number in numbers if number not in config.id2label), None)
    if missing is not None:
        raise refuse(
            f"The config's id2label has no label {missing}. Number its {len(numbers)} labels from 0 without gaps."
        )
    return [str(config.id2label[number]) for number in numbers]


def problem_type_of(config: PreTrainedConfig, task: str) -> ProblemType | None:
    return cast("ProblemType | None", getattr(config, "problem_type", None)) if task == CLASSIFY.name else None


def generation_defaults(
    folder: Path, config: GenerationConfig | None, eos_token_id: int | None, task: str = GENERATE.name
) -> dict[str, GenerationValue]:
    """The fields that are set, under transformers' names; ``end_token_ids`` always.

    A field that the folder leaves out stays out: `GenerationConfig` has None there, not a value. Whether a number is
    in range is the front's to judge, as it is for a request's.
    """
    names = (*GENERATION_FIELDS, *DECODER_LENGTHS) if task == SEQ2SEQ.name else GENERATION_FIELDS
    fields = {name: getattr(config, name, None) for name in names}
    fields |= {name: token_id(fields[name]) for name in NONE_BELOW_ZERO}
    set_fields = {name: value for name, value in fields.items() if value is not None}
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        # Whisper's kind writes [-1] for no tokens.
        if set_fields.get(name) == [-1]:
            del set_fields[name]
    end = getattr(config, "eos_token_id", None)
    if end is None:
        end = eos_token_id
    ends = [] if end is None else end if isinstance(end, list | tuple) else [end]
    wrong = [name for name, value in set_fields.items() if not _is_numbers(value) and value != "never"]
    if not all(isinstance(token, int) for token in ends):
        wrong.append("eos_token_id")
    if wrong:
        raise refuse(f"{wrong[0]} in the generation_config of {folder} is not a number. Correct or remove it.")
    # Some configs write -1 for a token that the model does not have.
    return {**set_fields, "end_token_ids": [token for token in ends if token >= 0]}


def start_ids_of(folder: Path, config: PreTrainedConfig, generation: GenerationConfig | None) -> list[int]:
    """The token that every output of an encoder-decoder follows, as transformers finds it."""
    for source in (generation, config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = token_id(getattr(source, name, None))
            if isinstance(token, list | tuple):
                raise refuse(f"{name} of {folder} is a list, and only one token can start an output. Correct it.")
            if token is not None:
                return [int(token)]
    raise refuse(f"{folder} names no decoder_start_token_id. Add it to generation_config.json.")


def _is_numbers(value: Any) -> bool:
    """A number, or lists of them."""
    if isinstance(value, list | tuple):
        return all(_is_numbers(entry) for entry in value)
    return isinstance(value, int | float)


def attribution_of(*folders: Path) -> str | None:
    """The licence line of a model, and of its base where it is an adapter."""
    lines = [
        path.read_text(encoding="utf-8").strip() for folder in folders if (path := folder / "ATTRIBUTION").is_file()
    ]
    return " ".join(dict.fromkeys(lines)) or None
