"""Sentiment data from the source archive of vaderSentiment 0.5, as JSONL that `sluice finetune classify` takes.

    python -m server.finetune.vader vaderSentiment-0.5.zip --out sentiment.jsonl

The archive (MIT licence) holds sentences that about twenty people each rated from -4 to 4. A mean of at most -1
is negative, of at least 1 positive, between them neutral. Get the archive with

    pip download --no-deps --no-binary=:all: vaderSentiment==0.5
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import json
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
SETS = ("movieReviewSnippets", "amazonReviewSnippets", "tweets")
THRESHOLD = 1.0


def label(mean_rating: float) -> str:
    """
    >>> [label(rating) for rating in (-1, -0.9, 0, 1)]
    ['negative', 'neutral', 'neutral', 'positive']
    """
    if abs(mean_rating) < THRESHOLD:
        return "neutral"
    return "positive" if mean_rating > 0 else "negative"


def rated_texts(archive: bytes) -> Iterator[tuple[str, float]]:
    """Text and mean rating of every sentence of the chosen sets, HTML entities resolved."""
    with zipfile.ZipFile(io.BytesIO(archive)) as package:
        inner = next(name for name in package.namelist() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        resources = package.read(inner)
    with tarfile.open(fileobj=io.BytesIO(resources), mode="r:gz") as files:
        for name in SETS:
            member = files.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            if member is None:
                raise SystemExit(f"The archive has no {name}_GroundTruth.txt.")
            for line in member.read().decode("utf-8").splitlines():
                _, rating, text = line.split("\t", 2)
                yield html.unescape(text).strip(), float(rating)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sentiment data from vaderSentiment 0.5.")
    parser.add_argument("archive", type=Path, help="vaderSentiment-0.5.zip")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    args = parser.parse_args()
    archive = args.archive.read_bytes()
    if hashlib.sha256(archive).hexdigest() != SHA256:
        raise SystemExit(f"{args.archive} is not the source archive of vaderSentiment 0.5 (sha256 {SHA256}).")
    counts: Counter[str] = Counter()
    with args.out.open("w", encoding="utf-8") as out:
        for text, rating in rated_texts(archive):
            if text:
                out.write(json.dumps({"text": text, "label": label(rating)}) + "\n")
                counts[label(rating)] += 1
    sys.stdout.write(", ".join(f"{count} {name}" for name, count in sorted(counts.items())) + f" in {args.out}\n")


if __name__ == "__main__":
    main()
