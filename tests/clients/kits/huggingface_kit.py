"""huggingface_hub.InferenceClient: chat, and every task that a route here serves, with the route as its model."""

from __future__ import annotations

import os

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

SERVER, KEY = os.environ["SERVER"], os.environ["HF_TOKEN"]


def of(path: str) -> InferenceClient:
    return InferenceClient(SERVER + path, token=KEY)


# Chat. A client that nobody holds is closed, and its streams with it.
root = of("")
chat = root.chat_completion(
    [{"role": "user", "content": "What is the capital of Japan?"}], max_tokens=20, temperature=0
)
assert "Tokyo" in chat.choices[0].message.content
parts = root.chat_completion(
    [{"role": "user", "content": "What is the capital of Japan?"}], max_tokens=20, temperature=0, stream=True
)
assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == chat.choices[0].message.content
schema = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}
structured = root.chat_completion(
    [{"role": "user", "content": "How old are you?"}],
    max_tokens=30,
    response_format={"type": "json_schema", "json_schema": {"name": "age", "schema": schema}},
)
assert '"age"' in structured.choices[0].message.content

# Text.
generate = of("/generate")
text = generate.text_generation("The sky is blue because", max_new_tokens=8)
assert text and "".join(generate.text_generation("The sky is blue because", max_new_tokens=8, stream=True)) == text
details = generate.text_generation(
    "The sky is blue because", max_new_tokens=8, details=True, best_of=2, do_sample=True, seed=1
)
assert details.details.generated_tokens == 8 and details.details.seed == 1
*_, last = generate.text_generation("The sky is blue because", max_new_tokens=8, details=True, stream=True)
assert last.generated_text and last.details.finish_reason == "length"
assert root.text_generation("The sky is blue because", max_new_tokens=8) == text

# Labels.
labels = of("/classify").text_classification("I love this", top_k=3)
assert labels[0].label == "positive" and len(labels) == 3
entities = of("/ner").token_classification("I am Maria Jensen from Portland.")
assert {"GIVEN_NAME", "CITY"} <= {entity.entity_group for entity in entities}
masks = of("/fill-mask").fill_mask("a [MASK] b", top_k=2)
assert len(masks) == 2 and masks[0].score >= masks[1].score and masks[0].sequence
answers = of("/question-answering").question_answering("Who?", "Ann met Bob in Rome.", top_k=2)
assert len(answers) == 2 and answers[0].score >= answers[1].score
answer = of("/question-answering").question_answering("Who?", "Ann met Bob in Rome.", handle_impossible_answer=True)
assert "Ann met Bob in Rome."[answer.start : answer.end] == answer.answer

# Texts written anew.
few = {"max_new_tokens": 5, "num_beams": 2}
translation = of("/translate").translation("a mill", generate_parameters=few, truncation="longest_first")
summary = of("/summarize").summarization("a mill", generate_parameters=few, clean_up_tokenization_spaces=False)
assert translation.translation_text == summary.summary_text
options = {"generate_parameters": few, "truncation": "only_first", "clean_up_tokenization_spaces": True}
german = of("/translate").translation("a mill", src_lang="en", tgt_lang="de", **options)
assert german.translation_text != translation.translation_text
assert (
    of("/summarize").summarization("a mill " * 2000, truncation="longest_first", generate_parameters=few).summary_text
)
try:
    of("/translate").translation("a mill", src_lang="en", tgt_lang="xx")
    raise AssertionError("an unknown language was not refused")
except HfHubHTTPError as refusal:
    assert refusal.response.status_code == 422 and "tgt_lang" in refusal.response.text

# Vectors.
vectors = of("/embed").feature_extraction("a cat")
assert vectors.shape[-1] > 8
similar = of("/similarity").sentence_similarity("a cat", other_sentences=["a kitten", "stock prices"])
assert similar[0] > similar[1]

# About the server.
about = InferenceClient(SERVER, provider="hf-inference", token=KEY)
assert about.health_check()
assert about.get_endpoint_info()["model_id"] == "smollm2-135m-instruct"
print("ok")
