"""The chat as people use it: a real browser before a real server."""

from __future__ import annotations

import json
import os
import signal
import urllib.request

import pytest

from tests.conftest import TINY_SETTINGS
from tests.page.chromium import BrowserError
from tests.page.conftest import RECORD_BODIES, forced, side, sides
from tests.server_process import running_server

pytestmark = pytest.mark.browser

FIELD = ".composer textarea"
ANSWER = ".answer:last-of-type .md"
XSS = "<img src=x onerror=alert(1)> <script>alert(2)</script> [x](javascript:alert(3)) **bold** <b>no</b>"
MARKDOWN = """# Title

A **bold** and *slanted* line with `code` and [a link](https://example.org/a_(b)).

- one
- two
  1. inner

> quoted

| Left | Right |
| :--- | ---: |
| a | 1 |

```python
print("<b>hi</b>")
```
"""
KEPT_ANSWER = """(() => {
  const id = JSON.parse(localStorage['sluice.open']);
  return JSON.parse(localStorage['sluice.conversation.' + id]).turns[0].answers[0];
})()"""


def ask(page, text):
    page.fill(FIELD, text)
    page.press("Enter")


def wait_for_end(page, number=1):
    page.wait(f"document.querySelectorAll('.answer[data-state=done]').length === {number}")
    page.wait_for_frame()


def cpu_seconds(page):
    """What the page's main thread has computed."""
    metrics = page.call("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def generated(server, model, text, **parameters):
    """The same answer over the API."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "parameters": parameters}
    request = urllib.request.Request(
        server.url + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)["generated_text"]


def test_an_answer_is_seen_growing_and_ends_with_its_pace(page_server, opened):
    values = {"max_new_tokens": 3000, "*": {"ignore_eos": True}, "seed": 7, "temperature": 1}
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", **values)))
    ask(page, "Tell me of the mill.")
    length = f"document.querySelector('{ANSWER}')?.textContent.length"
    seen = 0
    for _ in range(3):
        seen = page.wait(f"{length} > {seen} && {length}")
    assert page.count(".answer[data-state=running]") == 1
    wait_for_end(page)
    assert page.text(".answer .note").startswith("3000 tokens")
    assert "tokens/s" in page.text(".answer .note")
    assert "length limit" in page.text(".answer .note")


def test_stop_keeps_what_has_come_and_frees_the_server(page_server, opened):
    values = {"max_new_tokens": 16_000, "*": {"ignore_eos": True}}
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", **values)))
    ask(page, "Go on for ever.")
    page.wait(f"document.querySelector('{ANSWER}')?.textContent.length > 100")
    page.click_button("Stop")
    page.wait("document.querySelector('.answer[data-state=stopped]')")
    assert len(page.text(ANSWER)) > 100
    assert page.text(".answer .note").startswith("stopped after")
    for _ in range(200):
        if page_server.metric("sluice_running_requests") == 0:
            break
        page.run("new Promise((done) => setTimeout(done, 20))")
    assert page_server.metric("sluice_running_requests") == 0


def test_an_edited_turn_is_answered_anew_and_what_followed_is_gone(page_server, opened):
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", max_new_tokens=12)))
    ask(page, "First question")
    wait_for_end(page)
    ask(page, "Second question")
    wait_for_end(page, 2)
    page.click(".turn:first-child .turn-tools button")
    page.fill(".editor textarea", "Another first question")
    page.press("Enter")
    page.wait("document.querySelectorAll('.turn').length === 1")
    wait_for_end(page)
    assert page.text(".said") == "Another first question"
    expected = generated(page_server, "long", "Another first question", max_new_tokens=12)
    assert page.run(f"{KEPT_ANSWER}.text") == expected


def test_answer_again_draws_anew(page_server, opened):
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", max_new_tokens=40, temperature=1.5)))
    ask(page, "Surprise me")
    wait_for_end(page)
    first = page.text(ANSWER)
    page.click_button("Regenerate")
    wait_for_end(page)
    assert page.text(ANSWER) != first
    assert page.count(".turn") == 1


def test_the_whole_conversation_and_the_system_prompt_are_sent(page_server, opened):
    page = opened(page_server.url, "chat", system="Be brief.", sides__chat=sides(side("long", max_new_tokens=5)))
    page.run(RECORD_BODIES)
    ask(page, "One")
    wait_for_end(page)
    ask(page, "Two")
    wait_for_end(page, 2)
    first, second = page.run("bodies")
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert first["messages"][0]["content"] == "Be brief."
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "user"]


def test_enter_that_ends_a_composition_sends_nothing(page_server, opened):
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", max_new_tokens=5)))
    page.click(FIELD)
    page.compose("nihao")
    # What browsers send while an input method takes its candidate: one kind says so, the other has only its key code.
    for extra in ("isComposing: true", "keyCode: 229"):
        page.run(
            f"document.querySelector('{FIELD}').dispatchEvent(new KeyboardEvent('keydown', "
            f"{{key: 'Enter', bubbles: true, cancelable: true, {extra}}}))"
        )
    assert page.count(".turn") == 0
    page.call("Input.insertText", text="你好，世界")
    assert page.run(f"document.querySelector('{FIELD}').value") == "你好，世界"
    page.press("Enter")
    wait_for_end(page)
    assert page.text(".said") == "你好，世界"


def test_shift_and_enter_make_a_line(page_server, opened):
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", max_new_tokens=5)))
    page.fill(FIELD, "one")
    page.press("Enter", modifiers=8)
    page.call("Input.insertText", text="two")
    assert page.run(f"document.querySelector('{FIELD}').value") == "one\ntwo"
    assert page.count(".turn") == 0


def test_what_looks_like_html_is_text_wherever_it_comes_from(page_server, opened):
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", **forced(XSS))))
    page.run("window.alert = () => { window.wasHit = true; }")
    ask(page, XSS)
    wait_for_end(page)
    assert page.text(".said") == XSS
    assert page.text(ANSWER).startswith(
        "<img src=x onerror=alert(1)> <script>alert(2)</script> [x](javascript:alert(3))"
    )
    assert page.text(f"{ANSWER} strong") == "bold"
    assert page.count(".turn img, .turn script, .turn b, .turn a") == 0
    assert page.run("window.wasHit ?? false") is False


def test_markdown_is_laid_out(page_server, opened):
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", **forced(MARKDOWN))))
    ask(page, "Show all")
    wait_for_end(page)
    for selector in ("h3", "strong", "em", "p code", "ul > li", "ul ol > li", "blockquote p", "table td.align-end"):
        assert page.count(f".answer .md {selector}") >= 1, selector
    assert page.run("document.querySelector('.answer .md a').href") == "https://example.org/a_(b)"
    assert page.text(".answer .code-block pre") == 'print("<b>hi</b>")'
    assert page.text(".answer .code-language") == "python"


@pytest.mark.parametrize("step", [1, 3, 17])
def test_markdown_that_streams_ends_as_markdown_that_comes_at_once(page_server, opened, step):
    page = opened(page_server.url, "chat")
    text = MARKDOWN + "\n1. first\n\n2. second\n   more\n\nlast " + "word, and another word. " * 300
    script = """(async () => {
      const app = document.querySelector('script[type=module]').src;
      const { MarkdownView } = await import(app.replace('app.js', 'markdown.js'));
      const [grown, whole] = [document.createElement('div'), document.createElement('div')];
      const text = %s, view = new MarkdownView(grown);
      for (let end = 0; end < text.length; end += %d) view.update(text.slice(0, end));
      view.update(text);
      new MarkdownView(whole).update(text);
      grown.normalize(); whole.normalize();
      return grown.isEqualNode(whole) || [grown.innerHTML, whole.innerHTML];
    })()"""
    assert page.run(script % (json.dumps(text), step)) is True


def test_chinese_and_right_to_left_text_stand_as_they_should(page_server, opened):
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", **forced("مرحبا بالعالم\n\n你好，世界"))))
    ask(page, "مرحبا")
    wait_for_end(page)
    assert page.run("getComputedStyle(document.querySelector('.said')).direction") == "rtl"
    directions = "[...document.querySelectorAll('.answer .md p')].map((p) => getComputedStyle(p).direction)"
    assert page.run(directions) == ["rtl", "ltr"]


def test_two_models_answer_side_by_side(page_server, opened):
    both = sides(side("long", max_new_tokens=20), side("other", max_new_tokens=20))
    page = opened(page_server.url, "chat", sides__chat=both)
    ask(page, "Who are you?")
    wait_for_end(page, 2)
    titles = page.texts(".answer-title")
    assert titles == ["Along", "Bother"]
    texts = page.texts(".answer .md")
    assert texts[0] != texts[1]


def test_a_refused_setting_is_pointed_at_in_plain_words(page_server, opened):
    page = opened(
        page_server.url, "chat", sides__chat=sides(side("long", temperature=0, top_p=0.5, **{"*": {"do_sample": True}}))
    )
    ask(page, "Hello")
    page.wait("document.querySelector('.answer .notice.bad')")
    assert "do_sample" in page.text(".answer .notice.bad") or "temperature" in page.text(".answer .notice.bad")
    assert page.count(".settings [aria-invalid=true]") == 1
    page.complaints.clear()  # The browser itself notes each answer with an error status.


def test_a_message_that_is_too_long_is_refused_in_plain_words_and_in_view(page_server, opened):
    page = opened(page_server.url, "chat", sides__chat=sides(side("long")))
    ask(page, "word " * 9000)
    page.wait("document.querySelector('.answer .notice.bad')")
    assert page.text(".answer .notice.bad").startswith("Too long for this model")
    edges = "['.answer .notice.bad', '.dock'].map((name) => document.querySelector(name).getBoundingClientRect())"
    page.wait(f"(([card, dock]) => card.bottom <= dock.top)({edges})")
    page.complaints.clear()


def test_a_field_that_cannot_be_read_says_so_and_is_not_sent(page_server, opened):
    page = opened(page_server.url, "chat")
    page.fill(".settings input", "900")
    page.press("Tab")
    assert "at most 100" in page.text(".settings .field-error:not([hidden])")
    assert page.run("localStorage['sluice.sides.chat'] ?? ''").count("temperature") == 0


def test_conversations_are_kept_exported_removed_and_imported(page_server, opened):
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", max_new_tokens=8)))
    ask(page, "Remember the mill")
    wait_for_end(page)
    answer = page.text(ANSWER)
    page.open(f"{page_server.url}/?again#chat")
    page.wait("document.querySelector('.answer[data-state=done]')")
    page.wait(f"document.querySelector('{ANSWER}')?.innerText === {json.dumps(answer)}")
    module = "document.querySelector('script[type=module]').src.replace('app.js', 'conversations.js')"
    exported = page.run(f"import({module}).then(({{ Conversations }}) => new Conversations().exported())")
    assert json.loads(exported)["conversations"][0]["turns"][0]["text"] == "Remember the mill"
    page.run("document.querySelector('.conversations .icon-button').click()")
    page.wait("!document.querySelector('.conversation') && document.querySelector('.welcome')")
    page.run(
        "(() => { const files = new DataTransfer();"
        f"files.items.add(new File([{json.dumps(exported)}], 'conversations.json'));"
        "const input = document.querySelector('input[type=file]'); input.files = files.files;"
        "input.dispatchEvent(new Event('change')); })()"
    )
    page.wait("document.querySelector('.conversation')?.innerText === 'Remember the mill'")
    page.wait(f"document.querySelector('{ANSWER}')?.innerText === {json.dumps(answer)}")


def test_an_answer_goes_on_when_its_worker_is_killed(page_server, opened):
    values = {"max_new_tokens": 4000, "seed": 7, "temperature": 1}
    expected = generated(page_server, "long", "Tell me all", ignore_eos=True, **values)
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", **values, **{"*": {"ignore_eos": True}})))
    ask(page, "Tell me all")
    page.wait(f"document.querySelector('{ANSWER}')?.textContent.length > 300")
    assert page.count(".answer[data-state=running]") == 1
    os.kill(page_server.worker_pid("long"), signal.SIGKILL)
    page.wait("document.querySelector('.answer[data-state=done]')", timeout_s=120)
    page.wait(f"{KEPT_ANSWER}.state === 'done'")
    assert page.run(f"{KEPT_ANSWER}.text") == expected
    page_server.wait_until_ready()
    page.complaints.clear()


def test_a_server_that_is_gone_is_told_plainly_and_the_answer_so_far_stays(tiny_llama, opened):
    with running_server("--model", f"chat={tiny_llama}", *TINY_SETTINGS) as server:
        page = opened(server.url, "chat", sides__chat=sides(side("chat", max_new_tokens=8)))
        ask(page, "Hello")
        wait_for_end(page)
    page.fill(FIELD, "Are you there?")
    page.press("Enter")
    page.wait("document.querySelector('.answer .notice.bad')")
    assert "is not responding" in page.text(".answer .notice.bad")
    assert "Try again" in page.text(".answer .notice.bad")
    page.run("dispatchEvent(new Event('online'))")
    page.wait("document.querySelector('.bar-notice:not([hidden])')")
    assert page.count(".turn") == 2
    page.complaints.clear()


def test_ten_thousand_tokens_come_in_smoothly(page_server, opened, shots):
    values = {"max_new_tokens": 10_000, "seed": 3, "temperature": 1, "*": {"ignore_eos": True}}
    page = opened(page_server.url, "chat", sides__chat=sides(side("long", **values)))
    page.run(
        "(() => { window.longTasks = []; new PerformanceObserver((list) => longTasks.push(...list.getEntries()"
        ".map((entry) => Math.round(entry.duration)))).observe({ entryTypes: ['longtask'] }); })()"
    )
    # Times of the page's main thread alone: whoever else uses the machine does not count.
    page.call("Performance.enable", timeDomain="threadTicks")
    before = cpu_seconds(page)
    ask(page, "Write a book")
    page.wait("document.querySelector('.answer[data-state=done]')", timeout_s=240)
    assert page.text(".answer .note").startswith("10000 tokens")
    tasks = page.run("longTasks")
    report = {"tokens": 10_000, "limit_ms": 50, "num_over_limit": len(tasks), "longest_ms": max(tasks, default=0)}
    report["main_thread_s"] = round(cpu_seconds(page) - before, 2)
    shots.mkdir(parents=True, exist_ok=True)
    (shots / "long-tasks.json").write_text(json.dumps(report))
    shown = page.run("document.querySelector('.answer .md').textContent.length")
    assert shown > 10_000


def test_the_browser_refuses_html_even_from_the_pages_own_scripts(page_server, opened):
    page = opened(page_server.url, "chat")
    with pytest.raises(BrowserError, match="TrustedHTML"):
        page.run("document.body.innerHTML = '<b>no</b>'")
    page.complaints.clear()
