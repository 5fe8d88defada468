"""Whatever happened to a folder's files: it is loaded, or refused in one sentence by plan and load alike."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from server.commands.planned import plan_or_problem
from server.config import ModelConfig
from server.errors import EXIT_MODEL, ConfigurationError
from server.models.loader import load
from tests.fuzz.scale import SCALE
from tests.tiny_encoders import write_encoder
from tests.tiny_models import write_tiny_decoder

NUM_DAMAGES = 15 * SCALE
FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
HEADER_BYTES = 3000


@pytest.fixture(scope="module", params=["decoder", "classifier"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    if request.param == "decoder":
        return write_tiny_decoder(folder, "llama")
    return write_encoder(folder, "bert", "classify", labels=("a", "b"))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut anywhere, or with one to three bits flipped near the beginning."""
    if rng.random() < 0.4:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        changed[rng.randrange(min(len(changed), HEADER_BYTES))] ^= 1 << rng.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_loaded_or_refused_in_one_sentence(sound: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    content = (sound / name).read_bytes() if (sound / name).is_file() else b"{}"
    rng = random.Random(name)
    model = ModelConfig(name="tiny", path=str(folder))
    for number in range(NUM_DAMAGES):
        (folder / name).write_bytes(damaged(content, rng))
        problem = plan_or_problem(model)
        try:
            load(model)
        except ConfigurationError as error:
            assert error.exit_code == EXIT_MODEL
            assert "\n" not in str(error), number
            assert isinstance(problem, str), f"{number}: plan does not say {error}"
        else:
            assert not isinstance(problem, str), f"{number}: {problem}"


@pytest.mark.parametrize(
    "content", ["[", '{"model_type": "llama", "hidden_size": "\\n", "architectures": ["LlamaForCausalLM"]}']
)
def test_a_config_without_numbers_is_refused_in_one_sentence(sound: Path, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigurationError) as refused:
        load(ModelConfig(name="tiny", path=str(folder)))
    assert refused.value.exit_code == EXIT_MODEL
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)
