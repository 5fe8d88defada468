"""Words become the text that a person would write, in every script."""

from __future__ import annotations

import pytest

from server.text.scripts import join_words

TEXTS = {
    "Chinese by character": ("我 在 北 京 。", "我在北京。"),
    "Chinese by word": ("我 在 北京 工作 ， 很 好", "我在北京工作，很好"),
    "Chinese with a name and a number": ("我 用 iPhone 12 手机 拍照", "我用iPhone 12手机拍照"),
    "letters and digits one by one": ("他 1 9 9 8 年 用 G E 机", "他1998年用GE机"),
    "Japanese": ("東京 タワー に 行く 。", "東京タワーに行く。"),
    "Thai": ("ผม รัก กรุงเทพ", "ผมรักกรุงเทพ"),
    "Korean": ("김철수 씨를 만났다 .", "김철수 씨를 만났다 ."),
    "English": ("He lives in New York .", "He lives in New York ."),
    "English with Chinese names": (
        "Mr Smith from 北京 met 张 三 in London today",
        "Mr Smith from 北京 met 张三 in London today",
    ),
    "Arabic": ("محمد علي يعيش", "محمد علي يعيش"),
    "Russian": ("Анна живёт здесь", "Анна живёт здесь"),
    "digits alone": ("1 2 3", "1 2 3"),
}


@pytest.mark.parametrize("script", TEXTS)
def test_words_are_joined_as_their_script_is_written(script: str) -> None:
    words, text = TEXTS[script]
    assert join_words(words.split()) == (text, starts(words.split(), text))


def starts(words: list[str], text: str) -> list[int]:
    found, place = [], 0
    for word in words:
        place = text.index(word, place)
        found.append(place)
        place += len(word)
    return found
