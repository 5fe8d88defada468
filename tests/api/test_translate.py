"""``/translate`` and ``/summarize`` in the shapes of Hugging Face's API: languages, options, streams, sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from huggingface_hub import InferenceClient
from starlette.testclient import TestClient

from server.api.dialects.hf import rewriting
from server.languages import Languages
from server.text.sentence_split import Sentence, worded_sentences
from tests.api.scripted import END_ID, TOKENIZER
from tests.api.shell import listening
from tests.api.translators import IN_WORDS, MANY, ONE_WAY, client_of, serving, translator

EN_DE = {"src_lang": "en", "tgt_lang": "de"}


def post(client: TestClient, path: str = "/translate", status: int = 200, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def streamed(client: TestClient, path: str = "/translate", **body: Any) -> list[dict[str, Any]]:
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    return [json.loads(line[5:]) for line in response.text.splitlines() if line.startswith("data:")]


def test_one_text_and_a_list_are_answered_with_a_list():
    client = client_of(translator("many", MANY))
    assert post(client, inputs="a mill", parameters=EN_DE) == [{"translation_text": "A MILL"}]
    both = [{"translation_text": "A"}, {"translation_text": "B C"}]
    assert post(client, inputs=["a", "b c"], parameters=EN_DE) == both


def test_languages_become_the_tokens_around_the_text_and_the_first_of_the_output():
    worker = translator("many", MANY)
    post(client_of(worker), inputs="a mill", parameters=EN_DE)
    (command,) = worker.commands
    assert command.source_ids == [60, *TOKENIZER.encode("a mill", add_special_tokens=False).ids, END_ID]
    assert command.params.forced_bos_token_id == 61


def test_a_request_that_forces_a_first_token_overrides_that_of_the_language():
    worker = translator("many", MANY)
    post(client_of(worker), inputs="a", parameters={**EN_DE, "forced_bos_token_id": 9})
    assert worker.commands[0].params.forced_bos_token_id == 9


REGEX = {"grammar": {"type": "regex", "value": "[A-Z ]+"}}


def test_a_grammar_leaves_the_first_token_of_the_language():
    worker = translator("many", MANY)
    with serving(worker) as client:
        post(client, inputs="a", parameters={**EN_DE, **REGEX})
    params = worker.commands[0].params
    assert params.grammar is not None
    assert params.forced_bos_token_id == 61


def test_a_grammar_leaves_the_first_token_that_the_model_forces():
    worker = translator("bart", None, generation_config={"forced_bos_token_id": 5, "end_token_ids": [END_ID]})
    with serving(worker) as client:
        post(client, inputs="a", parameters=REGEX)
    params = worker.commands[0].params
    assert params.grammar is not None
    assert params.forced_bos_token_id == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [("suppress_tokens", [61]), ("allowed_token_ids", [9]), ("logit_bias", {"61": False}), ("bad_words_ids", [[61]])],
)
def test_options_that_forbid_the_first_token_of_the_language_are_refused_with_both_names(name: str, value: Any):
    error = post(client_of(translator("many", MANY)), status=422, inputs="a", parameters={**EN_DE, name: value})
    assert (error["param"], error["code"]) == ("parameters.tgt_lang", "unsupported_value")
    assert "tgt_lang" in error["message"]
    assert name in error["message"]


def test_the_first_token_of_the_language_is_among_the_reported_parameters():
    client = client_of(translator("many", MANY, generation_config={"forced_bos_token_id": 60}))
    parameters = {**EN_DE, "details": True, "return_parameters": True}
    (reply,) = post(client, inputs="a", parameters=parameters)
    assert reply["details"]["parameters"]["forced_bos_token_id"] == {"value": 61, "origin": "server"}


@pytest.mark.parametrize(("name", "other"), [("src_lang", "tgt_lang"), ("tgt_lang", "src_lang")])
def test_an_unknown_language_is_refused_with_all_known_ones(name: str, other: str):
    error = post(client_of(translator("many", MANY)), status=422, inputs="a", parameters={name: "xx", other: "en"})
    assert error["param"] == f"parameters.{name}"
    assert all(code in error["message"] for code in ("eng_Latn", "deu_Latn", "fra_Latn"))


@pytest.mark.parametrize("name", ["src_lang", "tgt_lang"])
def test_a_model_without_languages_refuses_them(name: str):
    error = post(client_of(translator("plain", None)), status=422, inputs="a", parameters={name: "en"})
    assert (error["param"], error["code"]) == (f"parameters.{name}", "unsupported_value")


def test_without_a_name_the_first_model_that_translates_the_languages_answers():
    one, many = translator("one", ONE_WAY), translator("many", MANY)
    client = client_of(one, many)
    post(client, inputs="a", parameters={"src_lang": "en", "tgt_lang": "pt"})
    post(client, inputs="a", parameters=EN_DE)
    assert (len(one.commands), len(many.commands)) == (1, 1)
    refused = post(client, status=422, inputs="a", model="one", parameters=EN_DE)
    assert refused["param"] == "parameters.tgt_lang"


def test_the_words_for_a_task_go_before_the_text():
    worker = translator("t5", IN_WORDS, summary_prefix="summarize: ")
    client = client_of(worker)
    post(client, inputs="a", parameters={"src_lang": "en", "tgt_lang": "de"})
    post(client, "/summarize", inputs="a")
    texts = [TOKENIZER.decode(command.source_ids) for command in worker.commands]
    assert texts == ["translate English to German: a", "summarize: a"]


def test_a_model_without_languages_reads_its_prefix_before_every_text():
    worker = translator("spelling", None, translation_prefix="spell: ")
    client = client_of(worker)
    post(client, inputs="a")
    post(client, inputs=None, q="b", source="auto", target=None)
    texts = [TOKENIZER.decode(command.source_ids) for command in worker.commands]
    assert texts == ["spell: a", "spell: b"]


@pytest.mark.parametrize("tasks", [["translation"], ["summarization"], ["translation", "summarization"]])
def test_info_says_whether_a_model_translates_or_summarises(tasks: list[str]):
    (described,) = client_of(translator("plain", None, rewriting_tasks=tasks)).get("/info").json()["models"]
    assert described["can_translate"] == ("translation" in tasks)
    assert described["can_summarize"] == ("summarization" in tasks)


def test_summaries_have_a_name_of_their_own():
    client = client_of(translator("plain", None))
    assert post(client, "/summarize", inputs="a b") == [{"summary_text": "A B"}]
    events = streamed(client, "/summarize", inputs="a b")
    assert [event["summary_text"] for event in events] == [None] * (len(events) - 1) + ["A B"]


SUMMARY_OPTIONS: dict[str, Any] = {
    "num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 3, "max_length": 41,
    "min_length": 11,
}  # fmt: skip
"""As T5's config has them."""


def params_of(path: str, parameters: dict[str, Any], **facts: Any) -> Any:
    """What the worker is asked for."""
    worker = translator("t5", IN_WORDS, **facts)
    post(client_of(worker), path, inputs="a", parameters=parameters)
    return worker.commands[0].params


def test_the_models_options_for_summaries_are_the_defaults_of_summarize():
    params = params_of("/summarize", {}, summary_options=SUMMARY_OPTIONS)
    assert (params.num_beams, params.length_penalty, params.early_stopping) == (4, 2.0, True)
    # Both lengths count the token that the decoder starts with.
    assert (params.no_repeat_ngram_size, params.max_new_tokens, params.min_new_tokens) == (3, 40, 10)
    params = params_of("/translate", {}, summary_options=SUMMARY_OPTIONS)
    assert (params.num_beams, params.no_repeat_ngram_size) == (1, 0)


def test_options_for_summaries_come_after_the_requests_and_before_the_models_own():
    facts = {"summary_options": SUMMARY_OPTIONS, "generation_config": {"num_beams": 2, "max_new_tokens": 7, "top_k": 5}}
    params = params_of("/summarize", {}, **facts)
    assert (params.num_beams, params.max_new_tokens) == (4, 40)
    params = params_of("/summarize", {"num_beams": 1, "max_new_tokens": 5}, **facts)
    assert (params.num_beams, params.max_new_tokens, params.min_new_tokens) == (1, 5, 5)
    params = params_of("/translate", {}, **facts)
    assert (params.num_beams, params.max_new_tokens) == (2, 7)


def in_german(**options: Any) -> Languages:
    (pair,) = IN_WORDS.pairs
    return msgspec.structs.replace(IN_WORDS, pairs=[msgspec.structs.replace(pair, options=options)])


def test_the_models_options_for_two_languages_are_the_defaults_of_translate_between_them():
    worker = translator("t5", in_german(num_beams=4, max_length=30), generation_config={"num_beams": 2, "top_k": 5})
    client = client_of(worker)
    post(client, "/translate", inputs="a")
    post(client, "/translate", inputs="a", parameters={"num_beams": 3, "max_new_tokens": 5})
    post(client, "/summarize", inputs="a")
    found = [(command.params.num_beams, command.params.max_new_tokens) for command in worker.commands]
    assert found[:2] == [(4, 29), (3, 5)] and found[2][0] == 2


@pytest.mark.parametrize("languages", [None, ONE_WAY])
def test_the_models_options_for_any_languages_are_the_defaults_of_translate(languages: Languages | None):
    worker = translator("writer", languages, translation_options={"num_beams": 4, "max_length": 30})
    client = client_of(worker)
    post(client, "/translate", inputs="a")
    post(client, "/summarize", inputs="a")
    client.post("/translate", json={"q": "a", "source": "auto", "target": "pt", "alternatives": 1})
    found = [(command.params.num_beams, command.params.max_new_tokens) for command in worker.commands]
    assert found[0] == (4, 29) and found[1][0] == 1
    assert languages is None or found[2] == (4, 29)


def test_alternatives_come_from_the_beams_that_the_model_sets_for_the_languages():
    worker = translator("t5", in_german(num_beams=6))
    client_of(worker).post("/translate", json={"q": "a", "source": "en", "target": "de", "alternatives": 1})
    assert worker.commands[0].params.num_beams == 6


def test_describes_how_many_tokens_the_models_max_length_leaves():
    worker = translator("t5", IN_WORDS, generation_config={"max_length": 30})
    (described,) = client_of(worker).get("/info").json()["models"]
    assert described["default_max_new_tokens"] == 29


def test_fields_for_summaries_that_are_not_options_are_logged_and_ignored(caplog: pytest.LogCaptureFixture):
    params = params_of("/summarize", {}, summary_options={"num_beams": 2, "tone": "dry", "length_penalty": "long"})
    assert params.num_beams == 2
    logged = [record.getMessage() for record in caplog.records]
    told = [line for line in logged if "task_specific_params.summarization" in line]
    assert len(told) == 2 and "tone" in "".join(told) and "length_penalty" in "".join(told)


def test_a_model_that_sets_two_names_of_one_length_is_served(caplog: pytest.LogCaptureFixture):
    both = {"max_new_tokens": 6, "max_length": 20}
    assert params_of("/summarize", {}, summary_options=both).max_new_tokens == 6
    assert params_of("/translate", {}, generation_config=both).max_new_tokens == 6
    assert "max_length is 20: it has no effect, because max_new_tokens is set" in caplog.text


def test_a_stream_has_an_event_for_each_token_and_the_translation_in_the_last():
    events = streamed(client_of(translator("many", MANY)), inputs="a mill by the river", parameters=EN_DE)
    assert "".join(event["token"]["text"] for event in events) == "A MILL BY THE RIVER"
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert [event["translation_text"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["translation_text"] == "A MILL BY THE RIVER"
    assert events[-1]["details"]["finish_reason"] == "eos_token"


def test_only_a_single_text_is_streamed():
    error = post(client_of(translator("plain", None)), status=422, inputs=["a", "b"], stream=True)
    assert error["param"] in ("inputs", "stream")


def test_options_stand_among_the_parameters_or_in_generate_parameters():
    worker = translator("plain", None)
    client = client_of(worker)
    post(client, inputs="a", parameters={"num_beams": 3, "generate_parameters": {"max_new_tokens": 2}})
    assert (worker.commands[0].params.num_beams, worker.commands[0].params.max_new_tokens) == (3, 2)
    both = {"max_new_tokens": 3, "generate_parameters": {"max_new_tokens": 2}}
    error = post(client, status=422, inputs="a", parameters=both)
    assert error["code"] == "unsupported_value"
    assert error["message"].startswith(
        "parameters.max_new_tokens and parameters.generate_parameters.max_new_tokens cannot be"
    )
    wrong = {"generate_parameters": {"temperature": -1}}
    refused = post(client, status=422, inputs="a", parameters=wrong)
    assert refused["param"] == "parameters.generate_parameters.temperature"


def test_several_outputs_of_a_text_are_told_beside_the_first():
    client = client_of(translator("plain", None))
    (reply,) = post(client, inputs="a", parameters={"num_beams": 2, "num_return_sequences": 2})
    assert reply == {"translation_text": "A 0", "translation_texts": ["A 0", "A 1"]}


def test_spaces_of_the_tokenization_are_removed_where_that_is_wanted():
    client = client_of(translator("plain", None))
    parameters = {"clean_up_tokenization_spaces": True}
    assert post(client, inputs="so , what ?", parameters=parameters) == [{"translation_text": "SO, WHAT?"}]
    assert post(client, inputs="so , what ?") == [{"translation_text": "SO , WHAT ?"}]
    refused = post(client, status=422, inputs="a", parameters=parameters, stream=True)
    assert refused["param"] == "parameters.clean_up_tokenization_spaces"


LONG = "The mill is old. " * 60


def test_a_text_that_is_too_long_is_refused_with_the_numbers():
    client = client_of(translator("plain", None))
    error = post(client, status=422, inputs=LONG)
    assert (error["param"], error["code"]) == ("inputs", "context_length_exceeded")
    assert "128" in error["message"]
    assert "split" in error["message"]


@pytest.mark.parametrize("strategy", ["longest_first", "only_first"])
def test_truncation_cuts_the_end_of_a_text(strategy: str):
    worker = translator("plain", None)
    post(client_of(worker), inputs=LONG, parameters={"truncation": strategy})
    ids = worker.commands[0].source_ids
    whole = TOKENIZER.encode(LONG).ids
    assert 100 < len(ids) <= 128
    assert ids[:100] == whole[:100]


def test_truncation_of_a_second_text_is_refused():
    client = client_of(translator("plain", None))
    error = post(client, status=422, inputs="a", parameters={"truncation": "only_second"})
    assert error["param"] == "parameters.truncation"


def test_truncation_that_forbids_a_cut_is_refused_beside_truncate():
    parameters = {"truncation": "do_not_truncate", "truncate": 3}
    error = post(client_of(translator("plain", None)), status=422, inputs="a", parameters=parameters)
    assert error["param"] == "parameters.truncation"


def test_sentences_are_translated_by_themselves_and_joined():
    worker = translator("plain", None)
    client = client_of(worker)
    (reply,) = post(client, inputs=LONG.strip(), split="sentences", parameters={"details": True})
    assert reply["translation_text"] == LONG.strip().upper()
    assert len(worker.commands) == 60
    sentences = reply["details"]["sentences"]
    assert [(each["text"], each["output"]) for each in sentences] == [("The mill is old.", "THE MILL IS OLD.")] * 60
    assert reply["details"]["generated_tokens"] == sum(each["generated_tokens"] for each in sentences)
    assert reply["details"]["input_length"] == sum(each["input_length"] for each in sentences)


def test_lines_and_lists_keep_their_shape_when_sentences_are_split():
    client = client_of(translator("plain", None))
    replies = post(client, inputs=["One. Two.\n\nThree.", "Four"], split="sentences")
    assert replies == [{"translation_text": "ONE. TWO.\n\nTHREE."}, {"translation_text": "FOUR"}]


def test_the_sentences_of_a_stream_come_in_their_order():
    text = "A very long first sentence about mills. Two.\nThree, which is also long. Four."
    events = streamed(client_of(translator("plain", None)), inputs=text, split="sentences")
    assert "".join(event["token"]["text"] for event in events) == text.upper()
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert [event["translation_text"] for event in events] == [None] * (len(events) - 1) + [text.upper()]
    assert len(events[-1]["details"]["sentences"]) == 4
    assert all(event["details"] is None for event in events[:-1])


def test_a_sentence_that_is_too_long_is_told_from_a_text():
    client = client_of(translator("plain", None))
    error = post(client, status=422, inputs="One. " + "word " * 200 + ".", split="sentences")
    assert error["code"] == "context_length_exceeded" and "one sentence" in error["message"]
    assert "split" not in error["message"]


def test_parts_of_a_split_text_without_words_are_kept():
    text = "One.\n***\nTwo. ... Three! \u266a"
    worker = translator("plain", None)
    client = client_of(worker)
    (reply,) = post(client, inputs=text, split="sentences")
    assert reply["translation_text"] == text.upper() and len(worker.commands) == 3
    events = streamed(client, inputs=text, split="sentences")
    assert "".join(event["token"]["text"] for event in events if not event["token"]["special"]) == text.upper()
    assert events[-1]["translation_text"] == text.upper()


@pytest.mark.parametrize(("path", "field"), [("/translate", "inputs"), ("/translate", "q"), ("/summarize", "inputs")])
def test_too_many_sentences_are_refused_with_both_numbers(path: str, field: str):
    client = client_of(translator("one", ONE_WAY), max_batch_inputs=4, max_encode_inputs=4)
    languages = {"source": "en", "target": "pt"} if field == "q" else {}
    refused = post(client, path, 413, **{field: ["One. Two. Three.", "Four. Five."]}, **languages, split="sentences")
    message = refused if field == "q" else refused["message"]
    assert message.startswith("The request has at least 5 sentences and the limit is 4.")
    listed = post(client, path, 413, **{field: ["One."] * 5}, **languages)
    assert "5 inputs" in str(listed)


def test_splits_no_further_than_the_limit(monkeypatch: pytest.MonkeyPatch):
    found = []

    def counted(text: str) -> Iterator[Sentence]:
        for sentence in worded_sentences(text):
            found.append(sentence)
            yield sentence

    monkeypatch.setattr(rewriting, "worded_sentences", counted)
    client = client_of(translator("one", ONE_WAY), max_batch_inputs=4, max_encode_inputs=4)
    refused = post(client, status=413, inputs="One. " * 20_000, split="sentences")
    assert refused["message"].startswith("The request has at least 5 sentences and the limit is 4.")
    assert len(found) == 5


def test_a_text_that_is_split_has_one_output():
    client = client_of(translator("plain", None))
    parameters = {"num_beams": 2, "num_return_sequences": 2}
    assert post(client, status=422, inputs="One. Two.", split="sentences", parameters=parameters)["param"] == "split"


@pytest.mark.parametrize("name", ["return_full_text", "decoder_input_details"])
def test_options_about_a_continued_text_are_refused(name: str):
    client = client_of(translator("plain", None))
    error = post(client, status=422, inputs="a", parameters={name: True, "details": True})
    assert error["param"] == f"parameters.{name}"


def test_hugging_faces_client_reads_every_answer():
    with listening(client_of(translator("many", MANY)).app) as port:
        url = f"http://127.0.0.1:{port}"
        translation = InferenceClient(f"{url}/translate").translation(
            "a mill", src_lang="en", tgt_lang="de", truncation="longest_first", generate_parameters={"num_beams": 2},
            clean_up_tokenization_spaces=True,
        )  # fmt: skip
        summary = InferenceClient(f"{url}/summarize").summarization("a mill", clean_up_tokenization_spaces=True)
    assert translation.translation_text == "A MILL"
    assert summary.summary_text == "A MILL"
