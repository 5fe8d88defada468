"""LibreTranslate's bodies on ``/translate``, its errors, and ``GET /languages``."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from server.api.dialects.libretranslate.dialect import FORM
from server.api.http.form_body import FORM_TYPE, MAX_FORM_FIELDS
from server.languages import Language, Languages
from server.serving.options.table import MAX_OUTPUTS
from tests.api.translators import FROM_MANY, IN_WORDS, MANY, ONE_WAY, client_of, translator

PORTUGUESE = Language(code="pt", name="Portuguese", is_target=False)
ENGLISH_TARGET = Language(code="en", name="English", is_source=False)


def post(client: TestClient, status: int = 200, **body: Any) -> Any:
    response = client.post("/translate", json=body)
    assert response.status_code == status, response.text
    return response.json()


def refusal(status: int = 400, **body: Any) -> str:
    """Its error is a sentence."""
    reply = post(client_of(translator("many", MANY)), status, **{"q": "a", "source": "en", "target": "de", **body})
    assert reply.keys() == {"error"}
    error: str = reply["error"]
    return error


def test_a_text_is_answered_with_a_text_and_a_list_with_a_list():
    client = client_of(translator("many", MANY))
    one = post(client, q="a mill", source="en", target="de", format="text", api_key="")
    assert one == {"translatedText": "A MILL"}
    assert post(client, q=["a", "b"], source="en", target="fr") == {"translatedText": ["A", "B"]}


def test_alternatives_are_the_other_hypotheses_of_a_beam_search():
    worker = translator("many", MANY)
    client = client_of(worker)
    answer = post(client, q="a", source="en", target="de", alternatives=2)
    assert answer == {"translatedText": "A 0", "alternatives": ["A 1", "A 2"]}
    assert (worker.commands[0].params.num_beams, worker.commands[0].params.num_return_sequences) == (3, 3)
    listed = post(client, q=["a", "b"], source="en", target="de", alternatives=1)
    assert listed == {"translatedText": ["A 0", "B 0"], "alternatives": [["A 1"], ["B 1"]]}
    assert post(client, q="a", source="en", target="de", alternatives=0) == {"translatedText": "A"}


@pytest.mark.parametrize("count", [-1, MAX_OUTPUTS, 10**9])
def test_no_more_alternatives_than_the_server_runs(count: int):
    assert f"from 0 to {MAX_OUTPUTS - 1}" in refusal(alternatives=count)


def test_markup_is_refused():
    assert "format" in refusal(format="html")


def test_an_unknown_language_is_refused_in_its_own_words():
    assert refusal(target="xx").startswith('target is "xx": it must be one of')
    assert refusal(source="xx").startswith('source is "xx"')


def test_auto_is_for_models_that_read_one_language():
    assert "does not detect languages" in refusal(source="auto")
    client = client_of(translator("many", MANY), translator("one", ONE_WAY))
    assert post(client, q="a", source="auto", target="pt") == {"translatedText": "A"}


@pytest.mark.parametrize("field", [{"parameters": {"src_lang": "en"}}, {"stream": True}, {"inputs": "a"}])
def test_fields_of_the_other_dialect_are_refused(field: dict[str, Any]):
    assert next(iter(field)) in refusal(**field)


@pytest.mark.parametrize(
    "field", [{"source": "en"}, {"target": "en"}, {"format": "text"}, {"alternatives": 1}, {"api_key": "x"}]
)
def test_its_fields_are_refused_beside_inputs(field: dict[str, Any]):
    reply = post(client_of(translator("many", MANY)), 422, inputs="a", **field)
    assert reply["error"]["param"] == next(iter(field))


def test_wrong_types_and_unknown_models_have_its_shape_too():
    assert "q" in refusal(q=5)
    assert "nothing" in refusal(404, model="nothing")


def test_all_languages_are_listed_with_their_targets():
    client = client_of(translator("one", ONE_WAY), translator("many", MANY), translator("plain", None))
    assert client.get("/languages").json() == [
        {"code": "en", "name": "English", "targets": ["de", "fr", "pt"]},
        {"code": "fr", "name": "French", "targets": ["de", "en"]},
        {"code": "de", "name": "German", "targets": ["en", "fr"]},
    ]
    assert client_of(translator("t5", IN_WORDS)).get("/languages").json() == [
        {"code": "en", "name": "English", "targets": ["de"]}
    ]


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("POST", "/detect", "does not detect languages"),
        ("POST", "/suggest", "does not collect"),
        ("POST", "/translate_file", "does not translate files"),
        ("GET", "/frontend/settings", "/languages"),
    ],
)
def test_paths_that_do_not_exist_say_what_is_missing_in_its_shape(method: str, path: str, said: str):
    client = client_of(translator("many", MANY))
    for options in ({}, {"data": {"q": "a", "api_key": "x"}}, {"json": {"q": "a"}}, {"files": {"file": b"a"}}):
        response = client.request(method, path, **options)
        assert response.status_code == 404
        assert response.json().keys() == {"error"} and said in response.json()["error"]


@pytest.mark.parametrize(("method", "status"), [("POST", 405), ("DELETE", 405)])
def test_errors_of_languages_have_its_shape(method: str, status: int):
    response = client_of(translator("many", MANY)).request(method, "/languages")
    assert response.status_code == status
    assert list(response.json()) == ["error"] and "method" in response.json()["error"]


def test_a_server_without_translators_has_no_languages():
    from tests.api.scripted import front, says

    assert TestClient(front(says("a"))).get("/languages").json() == []


def test_long_texts_are_split_where_that_is_wanted():
    client = client_of(translator("many", MANY))
    text = "The mill is old. " * 60
    assert "128" in post(client, 400, q=text, source="en", target="de")["error"]
    whole = post(client, q=text, source="en", target="de", split="sentences")
    assert whole == {"translatedText": text.upper().strip()}


def send_form(content: str | bytes, status: int = 200, kind: str = FORM_TYPE, **headers: str) -> Any:
    client = client_of(translator("many", MANY))
    response = client.post("/translate", content=content, headers={"Content-Type": kind, **headers})
    assert response.status_code == status, response.text
    return response.json()


@pytest.mark.parametrize("kind", [FORM_TYPE, FORM_TYPE.upper(), f"{FORM_TYPE}; charset=UTF-8"])
def test_a_form_is_answered_as_the_same_body_in_json(kind: str):
    form = "q=a+mill+%26%20more&source=en&target=de&format=text&api_key=&model=many"
    assert send_form(form, kind=kind) == {"translatedText": "A MILL & MORE"}


def test_a_repeated_q_of_a_form_is_a_list():
    assert send_form("q=a&source=en&q=b&target=de") == {"translatedText": ["A", "B"]}


def test_a_form_has_integers_as_digits():
    assert send_form("q=a&source=en&target=de&alternatives=1") == {"translatedText": "A 0", "alternatives": ["A 1"]}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("q=a&source=en&target=de&tone=formal", "tone"),
        ("q=a&source=en&target=de&parameters=x", "parameters"),
        ("inputs=a", "inputs"),
        ("q=a&source=en&source=de&target=de", "source twice"),
        ("q=a&source=en&target=de&alternatives=two", 'alternatives is "two"'),
        ("q=a&source=en&target=de&alternatives=", 'alternatives is ""'),
        ("source=en&target=de", "q is missing"),
        ("q=a&source", '"source" has no value'),
        ("", "empty"),
        ("q=%ff&source=en&target=de", "UTF-8"),
        (b"q=\xff&source=en&target=de", "UTF-8"),
        ("q=a&source=xx&target=de", 'source is "xx"'),
        ("&".join(["q=a"] * (MAX_FORM_FIELDS + 1)), f"more than {MAX_FORM_FIELDS} fields"),
    ],
)
def test_a_form_that_is_not_sound_is_refused_in_its_shape(form: str | bytes, said: str):
    reply = send_form(form, 400)
    assert reply.keys() == {"error"}
    assert said in reply["error"]


def test_a_form_of_a_web_page_is_refused():
    """A browser sends it from any site, without asking."""
    reply = send_form("q=a&source=en&target=de", 415, Origin="https://evil.example")
    assert "must send JSON" in reply["error"]


@pytest.mark.parametrize("path", ["/summarize", "/generate"])
def test_other_routes_take_no_form(path: str):
    response = client_of(translator("many", MANY)).post(path, data={"inputs": "a"})
    assert response.status_code == 415
    assert FORM_TYPE not in response.text


def test_multipart_bodies_are_refused_with_what_is_accepted():
    reply = client_of(translator("many", MANY)).post("/translate", files={"q": (None, "a")})
    assert reply.status_code == 415
    assert "JSON" in reply.text and FORM_TYPE in reply.text


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (400, b'{"q": "a', {}),
        (400, b'{"q": "\\ud800", "source": "en"}', {}),
        (400, b"", {}),
        (413, b'{"q": "' + b"a" * 200_000 + b'"}', {}),
        (415, b"q: a", {"Content-Type": "text/yaml"}),
        (415, b'{"q": "a"}', {"Content-Encoding": "gzip"}),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_in_its_shape(status: int, body: bytes, headers: dict[str, str]):
    client = client_of(translator("many", MANY), max_body_bytes=200_000)
    reply = client.post("/translate", content=body, headers={"Content-Type": "application/json", **headers})
    assert reply.status_code == status
    assert reply.json().keys() == {"error"}
    assert isinstance(reply.json()["error"], str)


def test_a_form_is_bounded_as_json_is():
    client = client_of(translator("many", MANY), max_body_bytes=200_000)
    headers = {"Content-Type": FORM_TYPE}
    assert client.post("/translate", content="q=" + "a" * 200_000, headers=headers).status_code == 413
    large = client.post("/translate", content="source=en&target=de&q=" + "a" * 100_000, headers=headers)
    assert large.status_code == 400 and "too long" in large.json()["error"]


def test_the_form_is_documented_with_the_fields_that_it_takes():
    body = client_of(translator("many", MANY)).get("/openapi.json").json()["paths"]["/translate"]["post"]["requestBody"]
    schema = body["content"][FORM_TYPE]["schema"]
    assert schema["required"] == ["q"] and schema["additionalProperties"] is False
    assert schema["properties"].keys() == set(FORM.fields)


def test_a_model_with_languages_says_which_there_are():
    client = client_of(translator("plain", None), translator("many", MANY))
    assert post(client, 400, q="a", source="en", target="xx")["error"].startswith('target is "xx": it must be one of')
    client = client_of(translator("plain", None), translator("other", None))
    assert "no languages" in post(client, 400, q="a", source="en", target="xx")["error"]


def test_a_wrong_target_is_refused_by_a_model_that_reads_the_source():
    back = Languages(languages=[PORTUGUESE, ENGLISH_TARGET], default_source="pt", default_target="en")
    client = client_of(translator("one", ONE_WAY), translator("back", back))
    error = post(client, 400, q="a", source="pt", target="xx")["error"]
    assert error == 'target is "xx": it must be one of en.'
    error = post(client, 400, q="a", source="fr", target="en")["error"]
    assert error == 'source is "fr": it must be one of en, pt.'


def test_blank_texts_are_returned_unchanged_and_not_sent():
    worker = translator("many", MANY)
    client = client_of(worker)
    languages = {"source": "en", "target": "de"}
    assert post(client, q=["a", "", " \u0000", "b"], **languages) == {"translatedText": ["A", "", " \u0000", "B"]}
    assert len(worker.commands) == 2
    assert post(client, q=" ", **languages) == {"translatedText": " "}
    assert post(client, q=["", "\n"], alternatives=1, **languages) == {
        "translatedText": ["", "\n"],
        "alternatives": [[], []],
    }
    assert len(worker.commands) == 2


@pytest.mark.parametrize("text", ["...", "\U0001f60d\U0001f60d", "\u266a", "- !?"])
def test_texts_without_words_are_returned_unchanged_and_not_sent(text: str):
    worker = translator("many", MANY)
    asked = {"q": ["a", text], "source": "en", "target": "de"}
    assert post(client_of(worker), **asked) == {"translatedText": ["A", text]}
    assert len(worker.commands) == 1


def test_a_code_with_a_region_means_the_language():
    client = client_of(translator("many", MANY))
    assert post(client, q="a", source="en-US", target="fr_CA") == {"translatedText": "A"}


@pytest.mark.parametrize("q", ["", []])
def test_an_empty_q_is_refused(q: Any):
    assert refusal(q=q).endswith("it must not be empty.")


def test_a_model_without_source_languages_takes_auto_and_is_listed():
    client = client_of(translator("mul", FROM_MANY))
    assert post(client, q="a", source="auto", target="en") == {"translatedText": "A"}
    assert client.get("/languages").json() == [{"code": "auto", "name": "Any language", "targets": ["en"]}]
    error = post(client, 400, q="a", source="fr", target="en")["error"]
    assert error.startswith("source is not supported here") and 'send "auto"' in error


def test_alternatives_of_a_text_that_is_split_are_refused_by_their_name():
    assert refusal(alternatives=1, split="sentences").startswith("split and alternatives cannot be combined")
