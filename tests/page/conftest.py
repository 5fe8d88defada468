"""A real server and a real browser. Tests marked `browser` run only where they are asked for: ``make test-page``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_SETTINGS
from tests.page.chromium import BrowserError, Page, find_chromium, opened_page
from tests.server_process import ServerProcess, running_server

LONG = 16_384
"""Positions of the decoder that writes long answers."""
TEMPLATE = """
description = "Greets somebody."
task = "generate"
text = "Hello {{ name }}, the {{ mood }} miller says:"

[variables.name]
max_length = 40

[variables.mood]
choices = ["merry", "grim"]
"""
TEMPLATE_WITH_EXAMPLES = """
description = "Judges a review after a few examples."
task = "generate"
text = "{{ examples }} Review: {{ review }} Verdict:"

[variables.review]
max_length = 400

[examples]
text = "Review: {{ review }} Verdict: {{ label }}"

[examples.fields.review]

[examples.fields.label]
"""
TASKS = {
    "translation_en_to_de": {"prefix": "translate English to German: "},
    "translation_en_to_fr": {"prefix": "translate English to French: "},
    "summarization": {"prefix": "summarize: "},
}
"""What T5's kind is asked for in words."""
TASKS_BACK = {"translation_de_to_en": {"prefix": "translate German to English: "}}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "browser" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason="a browser test: make test-page"))


def write_models(folder: Path) -> dict[str, Path]:
    """Tiny models for every tab: two that chat, one of them with room for long answers."""
    from tests.tiny_encoder_decoders import write_tiny_encoder_decoder
    from tests.tiny_encoders import write_encoder
    from tests.tiny_models import FAMILIES, write_tiny_decoder

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "llama", {**FAMILIES["llama"], "max_position_embeddings": LONG})
        models = {"long": write_tiny_decoder(folder / "long", "llama")}
    models["other"] = write_tiny_decoder(folder / "other", "qwen2", seed=1)
    labels = ("negative", "neutral", "positive")
    models["mood"] = write_encoder(folder / "mood", "bert", "classify", labels=labels)
    models["names"] = write_encoder(folder / "names", "bert", "ner")
    models["mask"] = write_encoder(folder / "mask", "bert", "fill-mask")
    models["answers"] = write_encoder(folder / "answers", "bert", "question-answering")
    spelling = {"translation": {"prefix": "spell: "}}
    for name, tasks in (("translator", TASKS), ("speller", spelling), ("back", TASKS_BACK)):
        models[name] = write_tiny_encoder_decoder(folder / name, "t5")
        config = models[name] / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "task_specific_params": tasks}))
    return models


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("page")
    flags = [flag for name, path in write_models(folder).items() for flag in ("--model", f"{name}={path}")]
    templates = folder / "templates"
    templates.mkdir()
    (templates / "greeting.toml").write_text(TEMPLATE)
    (templates / "verdict.toml").write_text(TEMPLATE_WITH_EXAMPLES)
    with running_server(*flags, *TINY_SETTINGS, "--templates", str(templates)) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Page]:
    if find_chromium() is None:
        pytest.fail("There is no Chromium: make test-page installs one.")
    with opened_page() as page:
        yield page


@pytest.fixture
def opened(browser: Page) -> Iterator[Callable[..., Page]]:
    """``opened(url, tab, **kept)``: the page at a tab; the browser has kept nothing but what is given."""
    browser.size(1280, 860)
    browser.colours("light")
    browser.complaints.clear()

    def open_(url: str, tab: str, **kept: Any) -> Page:
        browser.open(f"{url}/health")
        pairs = {f"sluice.{name.replace('__', '.')}": json.dumps(value) for name, value in kept.items()}
        browser.run(f"localStorage.clear(); sessionStorage.clear(); Object.assign(localStorage, {json.dumps(pairs)})")
        browser.complaints.clear()
        browser.open(f"{url}/#{tab}")
        browser.wait(f"document.querySelector('#view-{tab}:not([hidden])')")
        return browser

    yield open_
    if browser.complaints:
        raise BrowserError("\n".join(browser.complaints))


RECORD_BODIES = """(() => {
  const real = fetch;
  window.bodies = [];
  window.fetch = (url, options) => {
    if (options?.body) bodies.push(JSON.parse(options.body));
    return real(url, options);
  };
})()"""
"""From here on `bodies` holds what the page has sent."""


def side(model: str, **values: Any) -> dict[str, Any]:
    """What the page keeps of one side's settings."""
    return {"model": model, "values": values}


def sides(*all_: dict[str, Any]) -> dict[str, Any]:
    """What the page keeps of a tab's settings: of one side, or of two that are compared."""
    return {"isComparing": len(all_) > 1, "all": list(all_)}


def forced(text: str) -> dict[str, Any]:
    """Settings with which any model answers just this."""
    return {"grammar": {"type": "choice", "value": [text]}, "max_new_tokens": 2000}


@pytest.fixture(scope="session")
def shots() -> Path:
    """Where pictures and reports go; git ignores it."""
    return Path(__file__).parent / "shots"
