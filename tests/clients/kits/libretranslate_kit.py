"""libretranslatepy: translations, languages and keys, all in forms, and what this server does not have."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from libretranslatepy import LibreTranslateAPI

SERVER, KEY = os.environ["SERVER"], os.environ["SLUICE_API_KEY"]


def refusal(call: Callable[..., Any], *arguments: str) -> tuple[int, str]:
    """Status and body of an error."""
    try:
        call(*arguments)
    except HTTPError as error:
        return error.code, error.read().decode()
    raise AssertionError(f"{arguments} were not refused")


client = LibreTranslateAPI(SERVER, KEY)
(english,) = client.languages()
assert (english["code"], english["name"], english["targets"]) == ("en", "English", ["de"])

text = "a mill & more = ü"
translated = client.translate(text, "en", "de")
body = json.dumps({"q": text, "source": "en", "target": "de", "api_key": KEY}).encode()
with urlopen(Request(f"{SERVER}/translate", body, {"Content-Type": "application/json"})) as response:
    assert json.loads(response.read()) == {"translatedText": translated}
assert translated != client.translate("something else", "en", "de")
assert client.translate(text, "auto", "de") == translated

status, message = refusal(client.translate, text, "en", "xx")
assert status == 400 and json.loads(message)["error"].startswith("target"), message
for other in (LibreTranslateAPI(SERVER), LibreTranslateAPI(SERVER, "a-wrong-key-0123456789")):
    status, message = refusal(other.translate, text, "en", "de")
    assert status == 401 and "API key" in json.loads(message)["error"], message
    status, message = refusal(other.languages)
    assert status == 401 and "API key" in json.loads(message)["error"], message
assert refusal(LibreTranslateAPI(SERVER).detect, text)[0] == 401
status, message = refusal(client.detect, text)
assert status == 404 and "does not detect languages" in json.loads(message)["error"], message
