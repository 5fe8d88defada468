"""Fifty classifiers on one encoder: requests a second and memory, beside one classifier merged into a copy of it.

    python loadtest/classifiers.py
    python loadtest/classifiers.py --number 10

Each of the fifty is the default `/classify` adapter with other numbers and labels of its own. Texts of 10 to 200
tokens, 32 at once, the same ones to every side in turn, round by round; on the side of the fifty each text goes to
another one. `base` is a server with the encoder alone, which shows what the fifty add to memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from encoder import CONCURRENCY, post_all, texts_of
from report import percentile, save, table
from rounds import interleave, median, medians, ratio
from served import ROOT, Served, server
from tokenizers import Tokenizer

ADAPTER = ROOT / "server/defaults/sentiment"
BASE = ROOT / "models/minilm-l6"
NOISE = 0.05
"""Of an adapter's numbers: the part by which those of another one differ."""


@contextmanager
def adapters(number: int) -> Iterator[list[Path]]:
    """Folders of as many adapters of one base."""
    from safetensors.torch import load_file, save_file

    weights = load_file(ADAPTER / "adapter_model.safetensors")
    config = json.loads((ADAPTER / "config.json").read_text())
    with tempfile.TemporaryDirectory(prefix="classifiers-") as root:
        folders = []
        for index in range(number):
            folder = Path(root) / f"mood-{index}"
            shutil.copytree(ADAPTER, folder)
            save_file(_varied(weights, index), folder / "adapter_model.safetensors")
            settings = json.loads((ADAPTER / "adapter_config.json").read_text())
            settings["base_model_name_or_path"] = str(BASE)
            (folder / "adapter_config.json").write_text(json.dumps(settings))
            labels = {str(place): f"{label} {index}" for place, label in config["id2label"].items()}
            own = {**config, "id2label": labels, "label2id": {label: int(place) for place, label in labels.items()}}
            (folder / "config.json").write_text(json.dumps(own))
            folders.append(folder)
        yield folders


def _varied(weights: dict[str, Any], seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor * (1 + NOISE * torch.randn(tensor.shape, generator=generator)) for name, tensor in weights.items()
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Reads ``rounds``, ``seed`` and ``is_quick`` of a plan; ``number``, ``requests`` and ``dtype`` where given."""
    is_quick = getattr(args, "is_quick", False)
    number = 2 if is_quick else getattr(args, "number", 50)
    num_texts = CONCURRENCY if is_quick else getattr(args, "requests", 320)
    rng = random.Random(args.seed)
    texts = partial(texts_of, Tokenizer.from_file(str(BASE / "tokenizer.json")), num_texts, rng)
    with ExitStack() as stack:
        folders = stack.enter_context(adapters(number))
        bases = [word for folder in folders for word in ("--model", f"{folder.name}={folder}")]
        sides: dict[str, tuple[Served, list[str]]] = {}
        for name, models, flags in (
            ("merged", ["merged"], ["--model", f"merged={folders[0]}"]),
            ("one", [folders[0].name], ["--model", f"base={BASE}", *bases[:2]]),
            ("many", [folder.name for folder in folders], ["--model", f"base={BASE}", *bases]),
            ("base", [], ["--model", f"base={BASE}"]),
        ):
            sides[name] = stack.enter_context(server([*flags, "--dtype", getattr(args, "dtype", "float32")])), models
        senders = {name: partial(_send_all, served.url, models) for name, (served, models) in sides.items() if models}
        for sender in senders.values():
            sender(texts())
        before = _memory(sides["base"][0])
        rounds = interleave(senders, texts, args.rounds)
        return {
            "number": number,
            "x_merged": ratio(rounds, "requests_per_s", "many", "merged"),
            "x_one": ratio(rounds, "requests_per_s", "many", "one"),
            "one_x_merged": ratio(rounds, "requests_per_s", "one", "merged"),
            "sides": medians(rounds),
            "rounds": rounds,
            "weight_mb": _weights_mb(sides["many"][0]),
            "memory_mb": {name: _memory(served) for name, (served, _) in sides.items()} | {"base": before},
        }


def _memory(served: Served) -> float:
    """Of all its processes, in MB."""
    return sum(served.memory_bytes().values()) / 1e6


def _weights_mb(served: Served) -> float:
    """Of the base and of what the adapters add, as the server reports them."""
    models = json.loads(served.get("/info"))["models"]
    return float(models[0]["weight_bytes"] + sum(model.get("adapter_bytes", 0) for model in models)) / 1e6


def _send_all(url: str, models: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    bodies = [{"inputs": text, "model": models[place % len(models)]} for place, text in enumerate(texts)]
    _, seconds, elapsed_s = asyncio.run(post_all(f"{url}/classify", bodies))
    return {
        "requests_per_s": len(texts) / elapsed_s,
        "p50_s": median(seconds) or 0.0,
        "p95_s": percentile(seconds, 95) or 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Many classifiers on one encoder beside one.")
    parser.add_argument("--number", type=int, default=50)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=320, help="of a round, to every side")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = measure(args)
    rows = [
        [name, f"{side['requests_per_s']:.1f}", f"{side['p50_s'] * 1000:.0f}", f"{side['p95_s'] * 1000:.0f}"]
        for name, side in results["sides"].items()
    ]
    print(table(["side", "requests/s", "p50 ms", "p95 ms"], rows))
    print({key: results[key] for key in ("x_merged", "x_one", "one_x_merged", "weight_mb", "memory_mb")})
    print(f"saved to {save('classifiers', {'arguments': vars(args), 'results': results})}")


if __name__ == "__main__":
    main()
