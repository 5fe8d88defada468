"""The page before a server that wants a key: it asks for one, keeps it to itself, and shows what a link cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.conftest import TINY_SETTINGS
from tests.page.chromium import Page
from tests.server_process import ServerProcess, running_server

pytestmark = pytest.mark.browser

KEY, ADMIN_KEY = "a-key-of-the-test-0123", "the-operators-key-of-the-test"
RESULT = ".view:not([hidden]) .result"


@pytest.fixture(scope="module")
def closed_server(tiny_llama) -> Iterator[ServerProcess]:
    flags = ("--model", f"chat={tiny_llama}", *TINY_SETTINGS)
    with running_server(*flags, env={"SLUICE_API_KEYS": f"{KEY},{ADMIN_KEY} admin"}) as server:
        yield server


def enter(page: Page, key: str) -> None:
    page.wait("document.activeElement?.matches('dialog[open] input[type=password]')")
    page.run("document.activeElement.select()")
    page.call("Input.insertText", text=key)
    page.press("Enter")


def opened_with(browser: Page, server: ServerProcess, key: str) -> Page:
    browser.size(1280, 860)
    browser.open(f"{server.url}/health")
    browser.run("localStorage.clear(); sessionStorage.clear()")
    browser.open(f"{server.url}/#chat")
    enter(browser, key)
    browser.wait("document.querySelector('#view-chat:not([hidden])')")
    return browser


def follow(page: Page, label: str) -> None:
    page.run(f"[...document.querySelectorAll('.about a')].find((a) => a.textContent === {json.dumps(label)}).click()")


def test_a_server_with_keys_opens_for_the_key_that_the_page_asks_for(closed_server, browser):
    browser.open(f"{closed_server.url}/health")
    browser.run("localStorage.clear(); sessionStorage.clear()")
    browser.open(f"{closed_server.url}/#chat")
    enter(browser, "a-wrong-key-of-the-test")
    browser.wait("document.querySelector('.splash button')")
    browser.click_button("Enter a key")
    enter(browser, KEY)
    browser.wait("document.querySelector('#view-chat:not([hidden])')")
    browser.fill(".composer textarea", "Hello")
    browser.press("Enter")
    browser.wait("document.querySelector('.answer[data-state=done]')")


@pytest.mark.parametrize(("label", "part"), [("API", "POST /generate"), ("info", '"has_chat_template"')])
def test_what_a_link_cannot_open_is_shown_with_the_key(closed_server, browser, label, part):
    page = opened_with(browser, closed_server, KEY)
    follow(page, label)
    page.wait(f"document.querySelector('dialog[open] .sample')?.textContent.includes({json.dumps(part)})")
    page.press("Escape")
    page.wait("!document.querySelector('dialog')")
    assert page.run("location.pathname") == "/"


def test_metrics_are_shown_to_the_key_that_may_see_them_and_another_is_told_so(closed_server, browser):
    page = opened_with(browser, closed_server, KEY)
    follow(page, "metrics")
    page.wait("document.querySelector('dialog[open] .notice.bad')")
    assert "does not allow" in page.text("dialog .notice.bad")
    page = opened_with(browser, closed_server, ADMIN_KEY)
    follow(page, "metrics")
    page.wait("document.querySelector('dialog[open] .sample')?.textContent.includes('sluice_running_requests')")


def test_where_no_key_is_wanted_the_links_are_links(page_server, opened):
    page = opened(page_server.url, "chat")
    follow(page, "info")
    page.wait("location.pathname === '/info' && document.body.textContent.includes('has_chat_template')")


def test_the_page_asks_for_a_key_where_the_server_wants_one_and_sends_it(page_server, opened):
    page = opened(page_server.url, "classify")
    page.run("""(() => {
      const real = fetch;
      window.keys = [];
      window.fetch = (url, options) => {
        const key = options?.headers?.Authorization;
        keys.push(key ?? null);
        const refusal = JSON.stringify({ error: { message: "A key is wanted.", code: "unauthorized" } });
        return key === "Bearer secret" ? real(url, options) : Promise.resolve(new Response(refusal, { status: 401 }));
      };
    })()""")
    page.click_button("Run", ".view:not([hidden])")
    page.wait("document.querySelector('dialog[open] input[type=password]')")
    page.call("Input.insertText", text="secret")
    page.press("Enter")
    page.wait(f"document.querySelectorAll('{RESULT} .bars li').length === 3")
    assert page.run("keys.at(-1)") == "Bearer secret"
    assert page.run("JSON.stringify({...localStorage})").count("secret") == 0
    page.click_button("Code", ".view:not([hidden])")
    shown = page.wait("document.querySelector('dialog[open] .sample')?.innerText")
    assert "secret" not in shown
    assert "SLUICE_API_KEY" in shown
