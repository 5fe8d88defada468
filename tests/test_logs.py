"""Log lines are whole, harmless and never waited for."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

from server import logs


class StuckSink(io.StringIO):
    """Nobody reads the other end of this pipe."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.released.wait(30)
        return super().write(text)


class FullSink(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def written(form: str, message: str, **fields: object) -> str:
    sink = io.StringIO()
    handler = logs.set_up(form, "info", on_drop=lambda: None, sink=sink)
    logging.getLogger("sluice.test").info(message, extra={"fields": fields})
    handler.close()
    return sink.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_stays_one_line_whatever_a_client_sent(form):
    hostile = "a\r\nb\x1b[31m\u2028c\u202e"
    line = written(form, hostile, field=hostile, number=3)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert all(c.isprintable() for c in line[:-1])


def test_json_lines_hold_the_fields_beside_the_message():
    line = json.loads(written("json", "hello", model="tiny", ttft_ms=1.5))
    assert (line["message"], line["level"], line["model"], line["ttft_ms"]) == ("hello", "info", "tiny", 1.5)
    assert line["time"].endswith("+00:00")


def test_a_long_field_is_cut():
    assert len(json.loads(written("json", "hello", field="x" * 5000))["field"]) == 1024


def test_a_sink_that_is_stuck_holds_nobody_and_the_lost_lines_are_counted(monkeypatch):
    monkeypatch.setattr(logs, "MAX_QUEUED_LINES", 10)
    sink, dropped = StuckSink(), []
    handler = logs.set_up("json", "info", on_drop=lambda: dropped.append(1), sink=sink)
    for i in range(100):
        logging.getLogger("sluice.test").info("line %d", i)
    assert 85 <= len(dropped) <= 90
    sink.released.set()
    handler.close()
    assert 10 <= sink.getvalue().count("\n") <= 15


def test_a_sink_that_is_full_fails_nobody():
    dropped: list[int] = []
    handler = logs.set_up("json", "info", on_drop=lambda: dropped.append(1), sink=FullSink())
    logging.getLogger("sluice.test").info("lost")
    handler.close()
    assert dropped == [1]


def test_a_traceback_is_in_the_line_of_its_error():
    sink = io.StringIO()
    handler = logs.set_up("json", "info", on_drop=lambda: None, sink=sink)
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logging.getLogger("sluice.test").exception("failed")
    handler.close()
    assert "RuntimeError: boom" in json.loads(sink.getvalue())["traceback"]


def test_lines_that_come_while_others_are_written_are_written_together():
    sink, calls = StuckSink(), []
    sink.flush = lambda: calls.append(sink.getvalue())
    handler = logs.set_up("json", "info", on_drop=lambda: None, sink=sink)
    for i in range(100):
        logging.getLogger("sluice.test").info("line %d", i)
    sink.released.set()
    handler.close()
    assert sink.getvalue().count("\n") == 100
    assert len(calls) <= 3


def test_waiting_for_the_lines_returns_when_they_are_written(monkeypatch):
    monkeypatch.setattr(logs, "PAUSE_S", 0.2)
    sink = io.StringIO()
    handler = logs.set_up("json", "info", on_drop=lambda: None, sink=sink)
    for i in range(3):
        logging.getLogger("sluice.test").info("line %d", i)
        handler.wait_written(30)
        assert sink.getvalue().count("\n") == i + 1
    handler.close()


def test_a_sink_that_is_stuck_is_waited_for_no_longer_than_the_limit():
    sink = StuckSink()
    handler = logs.set_up("json", "info", on_drop=lambda: None, sink=sink)
    logging.getLogger("sluice.test").info("stuck")
    handler.wait_written(0.01)
    assert sink.getvalue() == ""
    sink.released.set()
    handler.close()


def test_lines_are_written_in_order_from_all_threads():
    sink = io.StringIO()
    handler = logs.set_up("json", "info", on_drop=lambda: None, sink=sink)
    threads = [threading.Thread(target=_log_numbers, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.close()
    messages = [json.loads(line)["message"] for line in sink.getvalue().splitlines()]
    for name in "ab":
        assert [m for m in messages if m.startswith(name)] == [f"{name} {i}" for i in range(500)]


def _log_numbers(name: str) -> None:
    for i in range(500):
        logging.getLogger("sluice.test").info("%s %d", name, i)
