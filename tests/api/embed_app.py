"""The web application over models for embeddings, and what their vectors have to be."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import numpy as np
import torch
from transformers import PreTrainedModel

from server.models.embedder import Embedder
from server.protocol import Embedding
from tests.encoder_app import EngineWorker
from tests.tiny_encoders import FAMILIES, tiny_encoder, tiny_tokenizer

SIZE = 32


@cache
def base_of(family: str = "bert") -> PreTrainedModel:
    return tiny_encoder(family, "fill-mask").base_model


def embed_worker(name: str = "vectors", family: str = "bert", **facts: Any) -> EngineWorker:
    """``facts`` are fields of `Embedding`."""
    embedding = Embedding(**{"size": SIZE, "pooling": "mean", "is_normalized": False, **facts})
    module = Embedder(base_of(family), embedding.pooling)
    worker = EngineWorker(name, "embed", module, tiny_tokenizer(FAMILIES[family][0]))
    worker.ready = msgspec.structs.replace(worker.ready, embedding=embedding)
    return worker


def mean_vector(text: str, family: str = "bert", **tokenizing: Any) -> np.ndarray:
    """By transformers alone, in float32."""
    ids = tiny_tokenizer(FAMILIES[family][0])(text, return_tensors="pt", **tokenizing)
    with torch.inference_mode():
        return base_of(family)(**ids).last_hidden_state[0].mean(0).numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
