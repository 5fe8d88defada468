"""What a folder of topics promises, whatever is written into it while the server runs."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from server.errors import ConfigurationError
from server.serving import topics as topics_module
from server.serving.topics import Topics


def write(folder: Path, name: str, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    # As an editor does: the new file takes the old one's place.
    new = folder / f".{name}.new"
    new.write_bytes(data)
    new.replace(folder / name)


def loaded(folder: Path) -> Topics:
    topics = Topics(str(folder))
    topics.load()
    return topics


def error_of(topics: Topics, name: str) -> str | None:
    [found] = [topic["error"] for topic in topics.describe() if topic["name"] == name]
    return found


def test_a_file_is_a_topic_and_a_line_a_phrase(tmp_path: Path) -> None:
    write(tmp_path, "weapons.txt", "\ufeff# Arms\n gun \r\n\nhand grenade\n# rifle\n枪\ngun\n")
    write(tmp_path, "天气.txt", "天气\n")
    write(tmp_path, "README.md", "no topic")
    topics = loaded(tmp_path)
    assert topics.phrases == {"weapons": ("gun", "hand grenade", "枪"), "天气": ("天气",)}
    assert [(t["name"], t["num_phrases"], t["error"]) for t in topics.describe()] == [
        ("weapons", 3, None),
        ("天气", 1, None),
    ]


def test_without_a_folder_there_are_no_topics() -> None:
    topics = Topics(None)
    topics.load()
    assert topics.phrases == {}
    assert topics.describe() == []


BAD_FILES = {
    "empty": ("\n# nothing\n", "has no phrase"),
    "bytes": (b"fine\n\xff\xfe", "is not UTF-8 in line 2"),
    "long": ("a\n" + "x" * 257, "more than 256 characters in line 2"),
    "control": ("a\x1b[31m", "no plain text in line 1"),
    "dot": ("fine\n\u0307", "no plain text in line 2"),
    "large": ("x" * (1024 * 1024 + 1), "has more than 1048576 bytes"),
    "many": ("\n".join(map(str, range(5_001))), "has more than 5000 phrases"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_ends_the_start_and_says_why(tmp_path: Path, kind: str) -> None:
    content, reason = BAD_FILES[kind]
    write(tmp_path, "bad.txt", content)
    with pytest.raises(ConfigurationError, match=reason) as error:
        loaded(tmp_path)
    assert str(tmp_path / "bad.txt") in str(error.value)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_turns_bad_leaves_the_topic_as_it_was(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "war.txt", "war\n")
    topics = loaded(tmp_path)
    [before] = topics.describe()
    content, reason = BAD_FILES[kind]
    write(tmp_path, "war.txt", content)
    with caplog.at_level(logging.ERROR, logger="sluice.topics"):
        topics.reload()
        topics.reload()
    assert topics.phrases == {"war": ("war",)}
    [after] = topics.describe()
    assert reason in after["error"]
    assert {**after, "error": None} == before
    assert len(caplog.records) == 1
    write(tmp_path, "war.txt", "war\nwars\n")
    topics.reload()
    assert topics.phrases == {"war": ("war", "wars")}
    assert topics.describe()[0]["error"] is None
    assert topics.describe()[0]["version"] != before["version"]


def test_a_file_that_is_written_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "war.txt", "war\n")
    topics = loaded(tmp_path)
    write(tmp_path, "war.txt", "software\nsoft")
    signature = topics_module._signature

    def written_after(file: BinaryIO) -> tuple[int, ...]:
        found = signature(file)
        with (tmp_path / "war.txt").open("a") as more:
            more.write("ware house")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(topics_module, "_signature", written_after)
        topics.reload()
    assert topics.phrases == {"war": ("war",)}
    assert topics.describe()[0]["error"] == "is being written"
    write(tmp_path, "war.txt", "software\nsoftware house\n")
    topics.reload()
    assert topics.phrases == {"war": ("software", "software house")}
    assert topics.describe()[0]["error"] is None


def test_files_that_come_and_go_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "war.txt", "war\n")
    topics = loaded(tmp_path)
    write(tmp_path, "peace.txt", "peace\n")
    (tmp_path / "war.txt").unlink()
    topics.reload()
    assert topics.phrases == {"peace": ("peace",)}


def test_a_new_file_that_is_bad_is_told_and_cannot_be_named(tmp_path: Path) -> None:
    topics = loaded(tmp_path)
    write(tmp_path, "war.txt", "")
    write(tmp_path, "a.b.txt", "war")
    topics.reload()
    assert topics.phrases == {}
    assert error_of(topics, "war") == "has no phrase"
    assert "has an invalid name" in error_of(topics, "a.b")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "topics"
    folder.mkdir()
    write(tmp_path, "secret.txt", "password")
    (folder / "leak.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up.txt").symlink_to("../secret.txt")
    topics = Topics(str(folder))
    topics.reload()
    assert topics.phrases == {}
    assert {topic["error"] for topic in topics.describe()} == {"is outside the folder"}
    with pytest.raises(ConfigurationError):
        topics.load()


def test_the_links_of_a_kubernetes_volume_are_followed_when_they_change(tmp_path: Path) -> None:
    for version, content in (("..v1", "war"), ("..v2", "peace")):
        (tmp_path / version).mkdir()
        write(tmp_path / version, "topic.txt", content)
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "topic.txt").symlink_to("..data/topic.txt")
    topics = loaded(tmp_path)
    assert topics.phrases == {"topic": ("war",)}
    (tmp_path / "..new").symlink_to("..v2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    topics.reload()
    assert topics.phrases == {"topic": ("peace",)}


def test_what_is_no_file_is_neither_read_nor_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "dangling.txt").symlink_to("nowhere")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    topics = Topics(str(tmp_path))
    topics.reload()
    assert topics.phrases == {}
    assert len(topics.describe()) == 4
    assert all(topic["error"] for topic in topics.describe())


def test_a_folder_that_is_away_takes_no_topic_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "topics"
    folder.mkdir()
    write(folder, "war.txt", "war")
    topics = loaded(folder)
    folder.rename(tmp_path / "elsewhere")
    topics.reload()
    assert topics.phrases == {"war": ("war",)}
    assert "cannot be listed" in error_of(topics, "war")
    (tmp_path / "elsewhere").rename(folder)
    topics.reload()
    assert error_of(topics, "war") is None


def test_all_topics_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics_module, "MAX_PHRASES", 3)
    write(tmp_path, "a.txt", "1\n2\n")
    write(tmp_path, "b.txt", "3\n4\n")
    topics = Topics(str(tmp_path))
    topics.reload()
    assert set(topics.phrases) == {"a"}
    assert "all topics together" in error_of(topics, "b")
    write(tmp_path, "a.txt", "1\n")
    topics.reload()
    assert set(topics.phrases) == {"a", "b"}


def test_changes_are_read_in_a_thread_and_not_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "war.txt", "war")
    topics = loaded(tmp_path)
    threads: list[int] = []
    reload = topics.reload

    async def follow() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def watched() -> None:
            threads.append(threading.get_ident())
            reload()
            if topics.phrases["war"] == ("wars",):
                loop.call_soon_threadsafe(done.set)

        monkeypatch.setattr(topics, "reload", watched)
        watching = asyncio.create_task(topics.watch(interval_s=0.005))
        write(tmp_path, "war.txt", "wars")
        await asyncio.wait_for(done.wait(), timeout=10)
        watching.cancel()
        await asyncio.wait([watching])

    asyncio.run(follow())
    assert threads
    assert threading.get_ident() not in threads
