"""CTranslate2 in a process of its own: a line of JSON with token ids comes in, a line with seconds goes out.

Runs in CTranslate2's environment, which has neither this project nor its other scripts.

    python loadtest/ctranslate2_process.py convert MODEL FOLDER
    python loadtest/ctranslate2_process.py serve FOLDER THREADS
"""

from __future__ import annotations

import json
import sys
from time import perf_counter, process_time
from typing import Any

Answer = dict[str, Any]


def word(token_id: int) -> str:
    """CTranslate2 knows tokens by their names."""
    return f"t{token_id}"


def convert(model: str, folder: str) -> None:
    """Weights in int8. The vocabulary's names are made up; padding, the last token, is left out as for any Marian."""
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)

    class Names:
        eos_token, unk_token = word(config.eos_token_id), word(1)

        @staticmethod
        def get_vocab() -> dict[str, int]:
            last = config.vocab_size - 1
            return {**{word(i): i for i in range(last)}, "<pad>": last}

    class Converter(TransformersConverter):  # type: ignore[misc]
        def load_tokenizer(self, *_args: Any, **_options: Any) -> Names:
            return Names()

    Converter(model).convert(folder, quantization="int8")


def serve(folder: str, threads: str) -> None:
    import ctranslate2

    translator = ctranslate2.Translator(folder, "cpu", compute_type="int8", inter_threads=1, intra_threads=int(threads))

    def translate(source_ids: list[list[int]], num_beams: int, new_tokens: int) -> Answer:
        sources = [[word(id_) for id_ in ids] for ids in source_ids]
        limits = {"max_decoding_length": new_tokens, "min_decoding_length": new_tokens}
        start, cpu = perf_counter(), process_time()
        results = translator.translate_batch(sources, beam_size=num_beams, **limits)
        numbers = {"seconds": perf_counter() - start, "cpu_s": process_time() - cpu}
        return {**numbers, "new_tokens": [len(result.hypotheses[0]) for result in results]}

    facts = {"ctranslate2": ctranslate2.__version__, "compute_type": translator.compute_type, "threads": int(threads)}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        print(json.dumps(translate(**json.loads(line))), flush=True)


if __name__ == "__main__":
    {"convert": convert, "serve": serve}[sys.argv[1]](*sys.argv[2:])
