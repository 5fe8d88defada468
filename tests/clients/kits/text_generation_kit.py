"""text-generation: the client of Text Generation Inference itself, whole, streamed, asynchronous, refused."""

from __future__ import annotations

import asyncio
import os

from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError

PROMPT = "The sky is blue because"
HEADERS = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
client = Client(os.environ["SERVER"], headers=HEADERS, timeout=60)

whole = client.generate(PROMPT, max_new_tokens=8, decoder_input_details=True)
assert whole.generated_text and whole.details.generated_tokens == 8
assert whole.details.finish_reason == "length" and len(whole.details.tokens) == 8
assert len(whole.details.prefill) > 0 and whole.details.prefill[0].logprob is None
parts = list(client.generate_stream(PROMPT, max_new_tokens=8))
assert "".join(part.token.text for part in parts if not part.token.special) == whole.generated_text
assert parts[-1].generated_text == whole.generated_text and parts[-1].details.generated_tokens == 8
sampled = client.generate(PROMPT, max_new_tokens=8, do_sample=True, temperature=0.9, top_p=0.9, best_of=2)
assert len(sampled.details.best_of_sequences) == 1
seeded = [client.generate(PROMPT, max_new_tokens=8, do_sample=True, seed=7).generated_text for _ in range(2)]
assert seeded[0] == seeded[1]
stopped = client.generate(PROMPT, max_new_tokens=20, stop_sequences=[" the"])
assert stopped.details.finish_reason in ("stop_sequence", "length")
chat = client.chat(
    messages=[{"role": "user", "content": "What is the capital of Japan?"}], max_tokens=20, temperature=0.01
)
assert "Tokyo" in chat.choices[0].message.content

for call in (
    lambda: client.generate(PROMPT, max_new_tokens=100_000),
    lambda: client.generate("word " * 9000, max_new_tokens=5),
    lambda: list(client.generate_stream("word " * 9000, max_new_tokens=5)),
):
    try:
        call()
    except ValidationError as error:
        assert str(error)
    else:
        raise AssertionError("what is too long was taken")


async def side_by_side() -> list[str]:
    asynchronous = AsyncClient(os.environ["SERVER"], headers=HEADERS, timeout=60)
    return [
        answer.generated_text
        for answer in await asyncio.gather(*(asynchronous.generate(PROMPT, max_new_tokens=8) for _ in range(4)))
    ]


assert set(asyncio.run(side_by_side())) == {whole.generated_text}
print("ok")
