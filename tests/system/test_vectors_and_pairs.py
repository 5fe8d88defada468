"""Folders of models for embeddings and for text pairs, as they lie, for huggingface_hub's client and over HTTP."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, running_server
from tests.tiny_encoders import TEXTS, tiny_encoder, tiny_tokenizer, write_encoder
from tests.tiny_models import write_tiny_decoder

NLI = ("contradiction", "neutral", "entailment")


def write_sentence_model(folder: Path) -> Path:
    """As sentence-transformers saves it: the mean, normalised, of 24 tokens at most."""
    tiny_encoder("bert", "fill-mask").base_model.save_pretrained(folder)
    tiny_tokenizer("wordpiece").save_pretrained(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {
        "vectors": write_sentence_model(root / "vectors"),
        "decoder": write_tiny_decoder(root / "decoder", "qwen3"),
        "nli": write_encoder(root / "nli", "bert", "classify", labels=NLI),
        "ranker": write_encoder(root / "ranker", "roberta", "classify", labels=("relevance",)),
    }


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    tables = [f'[[models]]\nname = "{name}"\npath = "{folder}"\n' for name, folder in folders.items()]
    config = tmp_path_factory.mktemp("settings") / "sluice.toml"
    config.write_text("".join(tables).replace('name = "decoder"', 'name = "decoder"\ntask = "embed"'))
    with running_server("--config", str(config), *TINY_SETTINGS) as process:
        yield process


def embeddings(server: ServerProcess, model: str, texts: list[str]) -> np.ndarray:
    """As OpenAI's client asks and reads."""
    body = {"input": texts, "model": model, "encoding_format": "base64"}
    answer = httpx2.post(server.url + "/v1/embeddings", json=body, timeout=60).raise_for_status().json()
    return np.array([np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer["data"]])


def states(folder: Path, text: str, tokenizer: PreTrainedTokenizerFast | None = None) -> np.ndarray:
    """Each token's vector after the last layer, in float32."""
    ids = (tokenizer or AutoTokenizer.from_pretrained(folder))(
        text, return_tensors="pt", truncation=True, max_length=24
    )
    module = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return module(input_ids=ids["input_ids"]).last_hidden_state[0].numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


SHORT = [text for text in TEXTS if len(tiny_tokenizer("wordpiece")(text)["input_ids"]) <= 24]


def test_a_sentence_models_folder_gives_its_normalised_means(server: ServerProcess, folders: dict[str, Path]) -> None:
    expected = [unit(states(folders["vectors"], text).mean(0)) for text in SHORT]
    np.testing.assert_allclose(embeddings(server, "vectors", SHORT), expected, atol=1e-5)


def test_a_decoder_gives_its_last_tokens_state_where_the_settings_ask(
    server: ServerProcess, folders: dict[str, Path]
) -> None:
    texts = ["The mill runs.", "河边的磨坊"]
    expected = [states(folders["decoder"], text)[-1] for text in texts]
    np.testing.assert_allclose(embeddings(server, "decoder", texts), expected, atol=1e-4, rtol=1e-4)


def test_a_killed_worker_costs_no_vector(server: ServerProcess) -> None:
    before = embeddings(server, "vectors", SHORT)
    os.kill(server.worker_pid("vectors"), signal.SIGKILL)
    assert embeddings(server, "vectors", SHORT).tolist() == before.tolist()


def test_hugging_faces_client_gets_features_and_similarities(server: ServerProcess, folders: dict[str, Path]) -> None:
    first, second = (unit(states(folders["vectors"], text).mean(0)) for text in SHORT[:2])
    features = InferenceClient(model=f"{server.url}/embed", token="none").feature_extraction(SHORT[0], truncate=True)
    np.testing.assert_allclose(features, [first], atol=1e-5)
    client = InferenceClient(model=f"{server.url}/similarity", token="none")
    assert client.sentence_similarity(SHORT[0], [SHORT[1]]) == pytest.approx([float(first @ second)], abs=1e-5)


@pytest.mark.parametrize("is_multi", [False, True])
def test_hugging_faces_client_gets_zero_shot_labels_as_the_pipeline_gives_them(
    server: ServerProcess, folders: dict[str, Path], is_multi: bool
) -> None:
    topics = ["a letter", "a journey", "the weather"]
    client = InferenceClient(model=f"{server.url}/zero-shot-classification", token="none")
    found = client.zero_shot_classification(
        TEXTS[0], topics, multi_label=is_multi, hypothesis_template="It is about {}."
    )
    oracle = pipeline("zero-shot-classification", model=str(folders["nli"]), device="cpu")
    expected = oracle(TEXTS[0], topics, multi_label=is_multi, hypothesis_template="It is about {}.")
    assert [label.label for label in found] == expected["labels"]
    assert [label.score for label in found] == pytest.approx(expected["scores"], abs=1e-5)


def test_a_reranker_is_found_without_being_named(server: ServerProcess) -> None:
    body = {"query": "Who met Bob?", "documents": TEXTS, "top_n": 2}
    answer = httpx2.post(server.url + "/v1/rerank", json=body, timeout=60).raise_for_status().json()
    assert answer["model"] == "ranker" and len(answer["results"]) == 2


def test_every_model_is_listed_and_its_vectors_are_described(server: ServerProcess) -> None:
    models = json.loads(server.get("/v1/models")[1])["data"]
    assert {model["id"]: (model["task"], model["max_model_len"]) for model in models} == {
        "vectors": ("embed", 24),
        "decoder": ("embed", 512),
        "nli": ("classify", 64),
        "ranker": ("classify", 64),
    }
    described = {model["name"]: model for model in json.loads(server.get("/info")[1])["models"]}
    assert (described["vectors"]["pooling"], described["vectors"]["is_normalized"]) == ("mean", True)
    assert (described["decoder"]["pooling"], described["decoder"]["is_normalized"]) == ("lasttoken", False)
