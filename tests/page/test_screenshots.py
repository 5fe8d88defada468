"""A picture of every tab, light and dark, wide and on a phone, with the default models: for people to look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.page.conftest import side, sides
from tests.server_process import ServerProcess, started_server

pytestmark = [pytest.mark.browser, pytest.mark.defaults, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SIZES = {"wide": (1360, 860, False), "phone": (390, 844, True)}
SCHEMES = ("light", "dark")
MODEL = "smollm2-135m-instruct"
MAX_PICTURE_BYTES = 150_000


@pytest.fixture(scope="module")
def default_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    from tests.tiny_encoders import write_encoder

    answers = write_encoder(tmp_path_factory.mktemp("ask") / "answers", "bert", "question-answering")
    mask = write_encoder(tmp_path_factory.mktemp("mask") / "mask", "bert", "fill-mask")
    flags = [f"--model={MODEL}={ROOT}/models/{MODEL}", f"--model=rampart={ROOT}/models/rampart"]
    flags += [
        f"--model=sentiment={ROOT}/server/defaults/sentiment",
        f"--model=mask={mask}",
        f"--model=answers={answers}",
        "--kv-cache-gib",
        "0.3",
    ]
    with started_server(*flags) as server:
        server.wait_until_ready(timeout=600)
        yield server


def chat(page):
    page.fill(".composer textarea", "Give me three tips for better sleep, as a numbered list.")
    page.press("Enter")
    all_done = "document.querySelector('.turn:last-child .answer') && !document.querySelector('[data-state=running]')"
    page.wait(all_done, timeout_s=120)
    page.fill(".composer textarea", "Write a Python function that adds two numbers.")
    page.press("Enter")
    page.wait(f"document.querySelectorAll('.turn').length === 2 && {all_done}", timeout_s=120)


def run(page):
    page.click_button("Run", ".view:not([hidden])")
    page.wait("!document.querySelector('.view:not([hidden]) .result[aria-busy=true]')", timeout_s=120)
    page.run("new Promise((done) => setTimeout(done, 600))")


def tokens(page):
    run(page)
    page.run("document.querySelector('.tokens').focus()")
    for _ in range(6):
        page.press("ArrowRight")


def nothing(page):
    page.run("new Promise((done) => setTimeout(done, 300))")


GREEDY = {"temperature": 0, "max_new_tokens": 160, "repetition_penalty": 1.1}
VIEWS = {
    "welcome": ("chat", {}, nothing),
    "chat": ("chat", {"sides__chat": sides(side(MODEL, **GREEDY))}, chat),
    "compare": (
        "chat",
        {"sides__chat": sides(side(MODEL, **GREEDY), side(MODEL, temperature=1, seed=3, max_new_tokens=120))},
        chat,
    ),
    "complete": ("generate", {"sides__generate": sides(side(MODEL, max_new_tokens=60))}, run),
    "beams": (
        "generate",
        {"sides__generate": sides(side(MODEL, num_beams=4, num_return_sequences=3, max_new_tokens=40))},
        run,
    ),
    "tokens": ("generate", {"sides__generate": sides(side(MODEL, max_new_tokens=40)), "tokens": True}, tokens),
    "classify": ("classify", {}, run),
    "tag": ("ner", {}, run),
    "ask": ("question-answering", {"sides__question-answering": sides(side("answers", top_k=3))}, run),
    "fill": ("fill-mask", {"text__fill-mask": "Alice met [MASK] in San [MASK]."}, run),
}


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_has_its_pictures(default_server, opened, shots, name):
    tab, kept, act = VIEWS[name]
    page = opened(default_server.url, tab, **kept)
    act(page)
    for size, values in SIZES.items():
        page.size(*values[:2], is_phone=values[2])
        for scheme in SCHEMES:
            page.colours(scheme)
            nothing(page)
            page.screenshot(shots / f"{name}-{size}-{scheme}.png")
    # Nothing moves out of sight when the window becomes as narrow as a phone.
    assert page.run("document.documentElement.scrollWidth") <= SIZES["phone"][0]


def test_the_settings_and_the_code_have_their_pictures(default_server, opened, shots):
    page = opened(default_server.url, "classify")
    page.size(390, 844, is_phone=True)
    page.click_button("Settings")
    nothing(page)
    page.screenshot(shots / "settings-phone-light.png")
    page.press("Escape")
    nothing(page)
    page.size(1360, 860)
    page.click_button("Code", ".view:not([hidden])")
    for scheme in SCHEMES:
        page.colours(scheme)
        nothing(page)
        page.screenshot(shots / f"code-wide-{scheme}.png")
    assert page.count("dialog[open] .sample") == 1
