"""The tabs beside the chat, the tabs themselves, and the page's frame: a real browser before a real server."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import urllib.request

import pytest

from tests.page.chromium import BrowserError
from tests.page.conftest import RECORD_BODIES, forced, side, sides
from tests.tiny_encoders import TEXTS

pytestmark = pytest.mark.browser

RESULT = ".view:not([hidden]) .result"
TABS = ["chat", "generate", "translate", "summarize", "classify", "ner", "fill-mask", "question-answering"]


def run(page):
    page.click_button("Run", ".view:not([hidden])")
    page.wait(f"document.querySelectorAll('{RESULT}').length && !document.querySelector('{RESULT}[aria-busy=true]')")


def post(server, path, body):
    """The same over the API."""
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)) as reply:
        return json.load(reply)


def apart(entities):
    """Where the entities stand; of two that share a character, as parts of a syllable do, the first."""
    found = [(0, 0)]
    for entity in sorted(entities, key=lambda entity: (entity["start"], -entity["end"])):
        if entity["start"] >= found[-1][1]:
            found.append((entity["start"], entity["end"]))
    return found[1:]


def field(tab):
    return f"#view-{tab} textarea.big"


def test_there_is_a_tab_for_each_task_and_arrow_keys_go_along_them(page_server, opened):
    page = opened(page_server.url, "chat")
    labels = page.run("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.innerText.trim())")
    assert labels == ["Chat", "Complete", "Translate", "Summarize", "Classify", "Tag", "Fill", "Ask"]
    page.run("document.querySelector('#tab-chat').focus()")
    for label in (*labels[1:], labels[0]):
        page.press("ArrowRight")
        selected = "document.querySelector('[role=tab][aria-selected=true]')"
        assert page.run(f"{selected}.innerText.trim()") == label
        assert page.run(f"document.activeElement === {selected}")


def test_only_what_is_served_has_a_tab(tiny_server, opened):
    page = opened(tiny_server.url, "ner")
    labels = page.run("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.innerText.trim())")
    assert labels == ["Chat", "Complete", "Classify", "Tag"]


@pytest.mark.parametrize("tab", TABS)
def test_every_control_has_a_name(page_server, opened, tab):
    page = opened(page_server.url, tab)
    page.run("for (const part of document.querySelectorAll('details')) part.open = true")
    nameless = """(() => [...document.querySelectorAll('button, input, select, textarea, [role=tab]')]
      .filter((node) => node.type !== 'file' && !(
        node.labels?.length || node.getAttribute('aria-label') || node.innerText?.trim()))
      .map((node) => node.outerHTML))()"""
    assert page.run(nameless) == []
    ids = page.run("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))


def test_a_text_goes_on(page_server, opened):
    page = opened(page_server.url, "generate", sides__generate=sides(side("long", **forced("and ran <i>away</i>"))))
    page.fill(field("generate"), "The miller took the sack ")
    run(page)
    assert page.text(f"{RESULT} .completion") == "The miller took the sack and ran <i>away</i>"
    assert page.count(f"{RESULT} i") == 0


def test_beams_are_shown_with_their_scores_and_their_difference(page_server, opened):
    values = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 24}
    page = opened(page_server.url, "generate", sides__generate=sides(side("long", **values)))
    page.fill(field("generate"), "The miller")
    run(page)
    assert page.count(f"{RESULT} .output") == 3
    notes = page.texts(f"{RESULT} .output .note")
    scores = [float(note.split()[1]) for note in notes]
    assert scores == sorted(scores, reverse=True)
    texts = page.texts(f"{RESULT} .written")
    assert len(set(texts)) >= 2
    commons = page.texts(f"{RESULT} .common")
    assert len(set(commons)) == 1
    assert all(text.startswith(commons[0]) for text in texts)


def test_tokens_tell_their_probability_and_what_else_was_likely(page_server, opened):
    values = sides(side("long", max_new_tokens=12))
    page = opened(page_server.url, "generate", sides__generate=values, tokens=True)
    page.fill(field("generate"), "The river")
    run(page)
    assert page.count(f"{RESULT} .token") >= 4
    page.run(f"document.querySelector('{RESULT} .tokens').focus()")
    page.press("ArrowRight")
    card = f"{RESULT} .token-card"
    page.wait(f"!document.querySelector('{card}').hidden")
    assert "%" in page.text(f"{card} .token-head")
    assert page.count(f"{card} .bars li") >= 5
    page.press("Escape")
    assert page.run(f"document.querySelector('{card}').hidden")


def test_a_template_is_a_form(page_server, opened):
    page = opened(page_server.url, "generate", sides__generate=sides(side("long", max_new_tokens=5)))
    page.run(
        "(() => { const select = document.querySelector('#view-generate .field-inline select');"
        "select.value = 'greeting'; select.dispatchEvent(new Event('change')); })()"
    )
    page.fill("#view-generate .template input", "Maria")
    page.run(RECORD_BODIES)
    run(page)
    (body,) = page.run("bodies")
    assert (body["template"], body["variables"]) == ("greeting", {"name": "Maria", "mood": "merry"})
    assert "inputs" not in body
    assert page.count(f"{RESULT} .output") == 1


SELECTS = "[...document.querySelectorAll('#view-translate .languages select')]"


def languages(page):
    """Those to choose from, of both lists."""
    return tuple(page.run(f"{SELECTS}.map((select) => [...select.options].map((option) => option.text))"))


def chosen(page):
    return page.run(f"{SELECTS}.map((select) => select.selectedOptions[0].text)")


def choose(page, number, name):
    page.run(
        f"(() => {{ const select = {SELECTS}[{number}]; select.value = {json.dumps(name)};"
        "select.dispatchEvent(new Event('change')); })()"
    )


def test_languages_change_places_with_their_texts_and_another_model_translates_back(page_server, opened):
    page = opened(page_server.url, "translate", sides__translate=sides(side("translator", max_new_tokens=12)))
    page.fill(field("translate"), "The mill is old.")
    run(page)
    written = page.run(f"document.querySelector('{RESULT} .written').textContent")
    page.click_button("Swap languages", "#view-translate")
    assert chosen(page) == ["German", "English"]
    assert page.run(f"document.querySelector('{field('translate')}').value") == written
    assert page.count(RESULT) == 0
    page.run(RECORD_BODIES)
    run(page)
    (body,) = page.run("bodies")
    assert (body["model"], body["inputs"]) == ("back", written)
    assert body["parameters"] == {"src_lang": "de", "tgt_lang": "en", "max_new_tokens": 12}
    page.open(f"{page_server.url}/?again#translate")
    page.wait("document.querySelector('#view-translate:not([hidden])')")
    assert chosen(page) == ["German", "English"]


def test_only_pairs_that_a_model_translates_can_be_chosen(page_server, opened):
    page = opened(page_server.url, "translate")
    choose(page, 1, "French")
    assert page.run("document.querySelector('#view-translate .languages button').disabled")
    choose(page, 0, "German")
    assert languages(page)[1] == ["English"]
    assert not page.run("document.querySelector('#view-translate .languages button').disabled")


def test_the_languages_follow_the_model_that_is_chosen(page_server, opened):
    page = opened(page_server.url, "translate")
    page.run(
        "(() => { const select = document.querySelector('.drawer.right .model-picker select'); select.value = 'back';"
        "select.dispatchEvent(new Event('change')); })()"
    )
    assert chosen(page) == ["German", "English"]


def test_both_sides_translate_the_chosen_languages(page_server, opened):
    page = opened(page_server.url, "translate")
    page.click(".drawer.right .switch")
    page.wait("document.querySelector('.drawer.right .segments')")
    page.fill(field("translate"), "The mill is old.")
    run(page)
    assert page.count(f"{RESULT} .written") == 2
    page.click_button("Swap languages", "#view-translate")
    run(page)
    assert page.count(f"{RESULT} .written") == 2


def test_a_text_that_is_too_long_is_refused_with_numbers_and_a_way_out(page_server, opened):
    page = opened(page_server.url, "translate")
    page.fill(field("translate"), "The mill is old. " * 2000)
    run(page)
    shown = page.text(f"{RESULT} .notice.bad")
    assert "Too long for this model" in shown and "Sentence by sentence" in shown
    assert "tokens" in shown and "chat" not in shown
    page.fill(field("translate"), "The mill is old and " * 2000)
    page.click("#view-translate .tick input")
    run(page)
    assert "Shorten the longest sentence" in page.text(f"{RESULT} .notice.bad")
    page.complaints.clear()  # The browser itself notes each answer with an error status.


def test_a_refusal_that_is_a_sentence_alone_is_shown(page_server, opened):
    page = opened(page_server.url, "translate")
    page.run(
        "fetch = async () => new Response(JSON.stringify({ error: 'The body is too large.' }), { status: 413 }), 0"
    )
    run(page)
    assert "Too large." in page.text(f"{RESULT} .notice.bad")


def test_a_translation_is_written_as_it_comes_into_the_chosen_language(page_server, opened):
    values = sides(side("translator", max_new_tokens=12))
    page = opened(page_server.url, "translate", sides__translate=values)
    assert languages(page) == (["English", "German"], ["French", "German"])
    assert chosen(page) == ["English", "German"]
    choose(page, 1, "French")
    page.fill(field("translate"), "The mill is old. It runs.")
    page.click("#view-translate .tick input")
    page.run(RECORD_BODIES)
    run(page)
    (body,) = page.run("bodies")
    assert body["parameters"] == {"src_lang": "en", "tgt_lang": "fr", "max_new_tokens": 12}
    (reply,) = post(page_server, "/translate", {**body, "stream": False})
    assert page.run(f"document.querySelector('{RESULT} .written').textContent") == reply["translation_text"]


def test_a_translator_without_languages_is_offered_without_languages(page_server, opened):
    page = opened(page_server.url, "translate", sides__translate=sides(side("speller", max_new_tokens=6)))
    fields = "[...document.querySelectorAll('#view-translate .input-area .field-inline')]"
    assert page.run(f"{fields}.map((field) => field.hidden)") == [True, True]
    page.fill(field("translate"), "The mill is old.")
    run(page)
    body = {"model": "speller", "inputs": "The mill is old.", "parameters": {"max_new_tokens": 6}}
    (reply,) = post(page_server, "/translate", body)
    assert page.run(f"document.querySelector('{RESULT} .written').textContent") == reply["translation_text"]


def test_a_model_that_does_not_summarise_is_not_offered_for_summaries(page_server, opened):
    page = opened(page_server.url, "summarize", sides__summarize=sides(side("speller", max_new_tokens=6)))
    page.fill(field("summarize"), "The mill is old.")
    page.run(RECORD_BODIES)
    run(page)
    (body,) = page.run("bodies")
    assert body["model"] == "translator"


def test_a_summary_is_asked_for_by_its_own_route(page_server, opened):
    page = opened(page_server.url, "summarize", sides__summarize=sides(side("translator", max_new_tokens=6)))
    page.fill(field("summarize"), "The mill is old.")
    run(page)
    (reply,) = post(page_server, "/summarize", {"inputs": "The mill is old.", "parameters": {"max_new_tokens": 6}})
    assert page.run(f"document.querySelector('{RESULT} .written').textContent") == reply["summary_text"]


def test_labels_are_bars_the_likeliest_first(page_server, opened):
    page = opened(page_server.url, "classify")
    page.fill(field("classify"), "What a lovely mill")
    run(page)
    labels = page.texts(f"{RESULT} .bar-label")
    assert sorted(labels) == ["negative", "neutral", "positive"]
    shares = page.run(
        f"[...document.querySelectorAll('{RESULT} .bar-value')].map((value) => parseFloat(value.textContent))"
    )
    assert shares == sorted(shares, reverse=True)
    assert 99 < sum(shares) < 101
    widths = page.run(
        f"[...document.querySelectorAll('{RESULT} .bar-fill')].map((fill) => parseFloat(fill.style.inlineSize))"
    )
    assert widths == pytest.approx(shares, abs=0.1)


def test_each_line_can_be_a_text_and_two_texts_a_pair(page_server, opened):
    page = opened(page_server.url, "classify")
    page.fill(field("classify"), "one\n\ntwo\nthree")
    page.click("#view-classify .tick:nth-of-type(1)")
    run(page)
    quoted = page.texts(f"{RESULT} .quoted")
    assert quoted == ["one", "two", "three"]
    page.click("#view-classify .tick:nth-of-type(2)")
    page.fill("#view-classify .field-block:nth-of-type(2) textarea", "the other")
    run(page)
    assert page.count(f"{RESULT} .bars") == 1


@pytest.mark.parametrize("text", TEXTS[:7])
def test_spans_stand_on_the_words_that_the_server_named(page_server, opened, text):
    page = opened(page_server.url, "ner", sides__ner=sides(side("names", aggregation_strategy="simple")))
    page.run(f"document.querySelector('{field('ner')}').value = {json.dumps(text)}")
    run(page)
    entities = post(page_server, "/ner", {"inputs": text, "parameters": {"aggregation_strategy": "simple"}})
    assert page.texts(f"{RESULT} mark bdi") == [text[start:end] for start, end in apart(entities)]
    page.run(f"for (const label of document.querySelectorAll('{RESULT} .entity-label')) label.remove()")
    assert "\n".join(page.texts(f"{RESULT} .tagged p")) == text


def test_a_label_can_be_hidden(page_server, opened):
    page = opened(page_server.url, "ner")
    page.fill(field("ner"), TEXTS[0])
    run(page)
    page.click(f"{RESULT} .tag-chip")
    assert page.count(f"{RESULT} .entity.off") >= 1


def test_a_long_document_is_tagged_whole(page_server, opened):
    text = "\n".join(f"{number}. {TEXTS[0]}" for number in range(400))
    page = opened(page_server.url, "ner", text__ner=text)
    run(page)
    assert page.count(f"{RESULT} .tagged p") > 100
    assert page.count(f"{RESULT} mark") > 400
    page.run(f"for (const label of document.querySelectorAll('{RESULT} .entity-label')) label.remove()")
    assert "\n".join(page.texts(f"{RESULT} .tagged p")) == text


def test_masks_are_filled_and_candidates_can_be_tried(page_server, opened):
    page = opened(page_server.url, "fill-mask")
    page.fill(field("fill-mask"), "[MASK] lives in [MASK].")
    run(page)
    assert page.count(f"{RESULT} .bars") == 2
    page.click(f"{RESULT} .labelled:nth-of-type(1) .bars li:nth-child(3) button")
    third = page.text(f"{RESULT} .labelled:nth-of-type(1) .bars li:nth-child(3) .bar-label")
    assert page.text(f"{RESULT} .filled") == third


def test_the_answer_to_a_question_is_shown_in_its_text(page_server, opened):
    text = "😀 Bob Smith met 张三 in Chicago."
    page = opened(
        page_server.url, "question-answering", **{"sides__question-answering": sides(side("answers", top_k=3))}
    )
    page.fill(field("question-answering"), text)
    run(page)
    assert page.text(f"{RESULT} .sentence") == text
    for place in (1, 2):
        page.click(f"{RESULT} .bars li:nth-child({place}) button")
        assert page.text(f"{RESULT} mark") == page.text(f"{RESULT} .bars li:nth-child({place}) .bar-label")


def test_two_settings_stand_side_by_side(page_server, opened):
    page = opened(page_server.url, "classify", sides__classify=sides(side("mood"), side("mood", top_k=1)))
    run(page)
    counts = page.run(
        f"[...document.querySelectorAll('{RESULT}')].map((one) => one.querySelectorAll('.bars li').length)"
    )
    assert counts == [3, 1]


@pytest.mark.parametrize("tab", TABS)
def test_the_command_that_is_shown_gives_the_answer(page_server, opened, tab):
    text = {"fill-mask": "It's [MASK]."}.get(tab, 'It\'s "a" $HOME `mill`\nand 你好 😀')
    page = opened(page_server.url, tab, **{f"text__{tab}": text})
    page.click_button("Code", ".view:not([hidden])")
    command = page.wait("document.querySelector('dialog[open] .sample')?.innerText")
    assert command.startswith("curl ")
    done = subprocess.run(["sh", "-c", command + " -sf"], capture_output=True, text=True, timeout=60, check=True)
    reply = json.loads(done.stdout.split("\n")[0].removeprefix("data: "))
    assert "error" not in reply
    body = json.loads(shlex.split(command)[-1])
    inputs = body.get("inputs")
    assert tab == "chat" or (inputs["context"] if tab == "question-answering" else inputs) == text
    page.click_button("Python", "dialog")
    program = page.text("dialog .sample")
    compile(program, "sample", "exec")
    assert f"{page_server.url}/" in program
    page.click_button("JavaScript", "dialog")
    assert page.text("dialog .sample").startswith("const response = await fetch(")


def test_a_request_that_cannot_be_read_is_no_program_and_the_page_says_why(page_server, opened):
    page = opened(page_server.url, "generate")
    page.run(
        "(() => { const select = document.querySelector('#view-generate .field-inline select');"
        "select.value = 'verdict'; select.dispatchEvent(new Event('change')); })()"
    )
    page.fill("#view-generate .template textarea.mono", "not JSON")
    page.click_button("Code", ".view:not([hidden])")
    page.wait("document.querySelector('dialog[open] .notice.bad')")
    assert "The examples are not JSON" in page.text("dialog .notice.bad")


def test_the_python_program_sends_what_the_page_would(page_server, opened):
    page = opened(page_server.url, "classify", text__classify='It\'s "a" \\ mill\nand 你好 😀')
    page.click_button("Code", ".view:not([hidden])")
    page.click_button("Python", "dialog")
    program = page.text("dialog .sample")
    stub = (
        "import sys, types; fake = types.ModuleType('requests'); sent = []\n"
        "class Reply:\n    raise_for_status = lambda self: None\n    json = lambda self: None\n"
        "fake.post = lambda url, json: sent.append(json) or Reply()\nsys.modules['requests'] = fake\n"
    )
    end = "\nimport json; sys.stdout = sys.__stdout__; print(json.dumps(sent[0]))"
    done = subprocess.run([sys.executable, "-c", stub + program + end], capture_output=True, text=True, check=True)
    body = json.loads(done.stdout.splitlines()[-1])
    assert body == {"model": "mood", "inputs": 'It\'s "a" \\ mill\nand 你好 😀', "parameters": {}}


def test_the_colours_follow_the_system_until_they_are_chosen(page_server, opened):
    page = opened(page_server.url, "classify")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.run(background)
    page.colours("dark")
    dark = page.run(background)
    assert dark != light
    page.click_button("Colours: as the system")
    assert page.run(background) == light
    page.click_button("Colours: light")
    assert page.run(background) == dark
    page.colours("light")
    page.open(f"{page_server.url}/?again#classify")
    page.wait("document.querySelector('#view-classify')")
    assert page.run(background) == dark


@pytest.mark.parametrize("tab", TABS)
def test_nothing_is_wider_than_a_phone(page_server, opened, tab):
    page = opened(page_server.url, tab)
    page.size(360, 740, is_phone=True)
    assert page.run("document.documentElement.scrollWidth") <= 360
    page.click_button("Settings")
    page.wait("document.querySelector('.drawer.right.open')?.getBoundingClientRect().right <= 360.5")
    page.run("dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }))")
    page.wait("!document.querySelector('.drawer.open')")


def test_no_request_leaves_for_another_address(page_server, opened):
    page = opened(page_server.url, "chat")
    urls = page.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert urls
    assert [url for url in urls if not url.startswith(page_server.url)] == []
    with pytest.raises(BrowserError):
        page.run("fetch('http://127.0.0.1:9/', { mode: 'no-cors' })")
    page.complaints.clear()
