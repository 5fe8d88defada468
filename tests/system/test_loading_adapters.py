"""Adapters that come, move and go in a real server: names, versions, refusals, and requests that run meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands.processes import called
from tests.conftest import TINY_SETTINGS
from tests.fuzz.scale import SCALE
from tests.server_process import ServerProcess, running_server
from tests.system.clients import TIMEOUT_S, Killer, body, eventually, generate_all
from tests.tiny_adapters import write_marker_adapter
from tests.tiny_models import tiny_tokenizer, write_tiny_decoder

PROMPT = "The river runs past the mill and the miller counts"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FIRST, SECOND = 20, 21
"""Tokens that the marker adapters write."""
NUM_MOVES, NUM_REQUESTS = 12 * SCALE, 60 * SCALE


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, and the folder of adapters that the server may load."""
    root = tmp_path_factory.mktemp("models")
    base = write_tiny_decoder(root / "base", "qwen3")
    for token_id in (FIRST, SECOND):
        write_marker_adapter(root / "adapters" / f"writes{token_id}", base, token_id)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    # Room for one marker adapter and not for two: what is asked for in turns is read again.
    limit = ("--max-adapter-gib", str(20_000 / 1024**3))
    folders = ("--model", f"base={root / 'base'}", "--adapters", str(root / "adapters"))
    with running_server(*folders, *TINY_SETTINGS, *limit) as process:
        yield process


@pytest.fixture
def load(server: ServerProcess) -> Iterator[Callable[..., Any]]:
    """Posts to /admin/adapters; what was loaded is unloaded afterwards."""
    with httpx2.Client(base_url=server.url, timeout=TIMEOUT_S) as client:

        def load(name: str, path: str, **more: Any) -> Any:
            return client.post("/admin/adapters", json={"name": name, "path": path, **more})

        yield load
        for adapter in client.get("/admin/adapters").json()["adapters"]:
            client.delete(f"/admin/adapters/{adapter['name']}")


def ask(server: ServerProcess, model: str, num_tokens: int = 4, **fields: Any) -> Any:
    request = {**body(PROMPT, stream=False, max_new_tokens=num_tokens), "model": model, **fields}
    return httpx2.post(f"{server.url}/generate", json=request, timeout=TIMEOUT_S)


def tokens(server: ServerProcess, model: str) -> list[int]:
    answer = ask(server, model).json()
    return [token["id"] for token in answer["details"]["tokens"]]


def error(response: Any) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["error"]
    return found


def test_a_loaded_adapter_is_a_model_with_a_parent_and_a_version(server: ServerProcess, load: Any) -> None:
    loaded = load("first", f"writes{FIRST}").json()
    assert loaded["model"] == "base" and loaded["bytes"] > 0 and loaded["state"] == "resident"
    listed = {each["id"]: each for each in json.loads(server.get("/v1/models")[1])["data"]}
    assert listed["first"]["parent"] == "base" and listed["first"]["root"] == f"writes{FIRST}"
    digest = listed["first"]["digest"]
    assert tokens(server, "first") == tokens(server, f"first@{digest}") == tokens(server, f"first@{digest[:8]}")
    assert tokens(server, "first") == [FIRST] * 4 != tokens(server, "base")
    (info,) = [each for each in json.loads(server.get("/info")[1])["models"] if each["name"] == "first"]
    assert (info["shares_worker_of"], info["adapter_digest"]) == ("base", digest)
    assert info["adapter_bytes"] == loaded["bytes"] and info["adapter_state"] == "resident"
    assert server.metric("sluice_adapter_bytes", model="base") == loaded["bytes"]


def test_an_adapter_that_names_no_base_belongs_to_the_only_one(server: ServerProcess, load: Any, root: Path) -> None:
    place = write_marker_adapter(root / "adapters" / "nameless", root / "base", FIRST)
    change_config(place, base_model_name_or_path=None)
    assert load("nameless", "nameless").json()["model"] == "base"
    assert error(load("other", "nameless", model="first"))["code"] == "model_not_found"
    assert tokens(server, "nameless") == [FIRST] * 4


def test_the_list_of_models_shows_bytes_and_state_of_an_adapter(server: ServerProcess, load: Any) -> None:
    loaded = load("first", f"writes{FIRST}").json()
    done = called("models", "--url", server.url, "--json")
    (row,) = [each for each in json.loads(done.stdout) if each["name"] == "first"]
    assert (row["weight_bytes"], row["digest"]) == (loaded["bytes"], loaded["digest"])
    assert row["notes"] == "adapter of base, resident"


def test_another_version_is_refused_and_the_current_one_named(server: ServerProcess, load: Any) -> None:
    digest = load("first", f"writes{FIRST}").json()["digest"]
    for version in ("0123456789abcdef", digest[:7], ""):
        refusal = ask(server, f"first@{version}")
        assert refusal.status_code == 404 and error(refusal)["code"] == "adapter_version_not_found"
        assert f"current version is {digest[:8]}" in error(refusal)["message"]


def test_an_unloaded_adapter_is_no_model(server: ServerProcess, load: Any) -> None:
    load("first", f"writes{FIRST}")
    url = f"{server.url}/admin/adapters/first"
    assert httpx2.delete(url, timeout=TIMEOUT_S).json()["name"] == "first"
    assert error(ask(server, "first"))["code"] == "model_not_found"
    assert httpx2.delete(url, timeout=TIMEOUT_S).status_code == 404
    assert eventually(lambda: server.metric("sluice_adapters", model="base") == 0)


def test_vllms_routes_load_replace_and_unload(server: ServerProcess) -> None:
    def post(route: str, **fields: Any) -> Any:
        return httpx2.post(f"{server.url}/v1/{route}_lora_adapter", json=fields, timeout=TIMEOUT_S)

    added = post("load", lora_name="sql", lora_path=f"writes{FIRST}")
    assert added.text == "Success: LoRA adapter 'sql' added successfully."
    assert tokens(server, "sql") == [FIRST] * 4
    again = post("load", lora_name="sql", lora_path=f"writes{SECOND}")
    assert again.status_code == 400 and "load_inplace" in error(again)["message"]
    assert post("load", lora_name="sql", lora_path=f"writes{SECOND}", load_inplace=True).status_code == 200
    assert tokens(server, "sql") == [SECOND] * 4
    assert post("unload", lora_name="sql").text == "Success: LoRA adapter 'sql' removed successfully."
    assert post("unload", lora_name="sql").status_code == 404


def test_a_name_that_moves_answers_with_one_version_at_a_time(server: ServerProcess, load: Any) -> None:
    """Also where the new content overwrites the files of the old one, and requests stream meanwhile."""
    load("moving", f"writes{FIRST}")

    async def move(client: httpx2.AsyncClient) -> None:
        for i in range(NUM_MOVES):
            answer = await client.post(
                "/admin/adapters", json={"name": "moving", "path": f"writes{(FIRST, SECOND)[(i + 1) % 2]}"}
            )
            assert answer.status_code == 200, answer.text

    async def main() -> list[Any]:
        chance = random.Random(3)
        requests = [
            {**body(PROMPT, stream=bool(i % 2), max_new_tokens=chance.randrange(2, 30)), "model": "moving"}
            for i in range(NUM_REQUESTS)
        ]
        async with httpx2.AsyncClient(base_url=server.url, timeout=TIMEOUT_S) as client:
            moves = asyncio.create_task(move(client))
            outcomes = []
            for start in range(0, NUM_REQUESTS, 6):
                outcomes += await generate_all(server.url, requests[start : start + 6])
            await moves
        return outcomes

    outcomes = asyncio.run(main())
    assert not [outcome for outcome in outcomes if not outcome.is_whole]
    written = [set(outcome.token_ids) for outcome in outcomes]
    assert all(each in ({FIRST}, {SECOND}) for each in written)
    assert {FIRST} in written and {SECOND} in written


def test_overwritten_files_do_not_reach_an_adapter_that_is_loaded(server: ServerProcess, load: Any, root: Path) -> None:
    """It is read from its folder again after others took its room, and by the next worker."""
    place = root / "adapters" / "edited"
    write_marker_adapter(place, root / "base", FIRST)
    before = load("edited", "edited").json()
    write_marker_adapter(place, root / "base", SECOND)
    load("other", f"writes{SECOND}")
    assert tokens(server, "other") == [SECOND] * 4
    assert tokens(server, "edited") == [FIRST] * 4
    os.kill(server.worker_pid("base"), signal.SIGKILL)
    assert eventually(lambda: server.get("/readyz")[0] == 200)
    assert tokens(server, "edited") == [FIRST] * 4
    after = load("edited", "edited").json()
    assert after["digest"] != before["digest"] and tokens(server, "edited") == [SECOND] * 4


def test_killed_workers_change_no_token_of_adapters_that_were_loaded(server: ServerProcess, load: Any) -> None:
    for name, path in {"one": f"writes{FIRST}", "two": f"writes{SECOND}"}.items():
        assert load(name, path).status_code == 200
    requests = [
        {**body(PROMPT, stream=True, max_new_tokens=120), "model": name}
        for name in ("base", "one", "two")
        for _ in "abc"
    ]
    undisturbed = asyncio.run(generate_all(server.url, requests))
    killer = Killer(server, "base", 200, 400, 600)
    disturbed = asyncio.run(generate_all(server.url, requests, killer))
    assert len(killer.killed) == 3
    assert [outcome.token_ids for outcome in disturbed] == [outcome.token_ids for outcome in undisturbed]
    assert all(outcome.is_whole for outcome in disturbed)
    assert [set(outcome.token_ids) for outcome in disturbed[3:]] == [{FIRST}] * 3 + [{SECOND}] * 3
    assert eventually(lambda: server.get("/readyz")[0] == 200)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _break_template(folder: Path) -> None:
    tiny_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{% for %}")


A = "base_model.model.lm_head.lora_A.weight"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a wrong shape": (lambda f: change_weights(f, lambda t: t.update({A: torch.zeros(2, 7)})), "shapes"),
    "a missing tensor": (lambda f: change_weights(f, lambda t: t.pop(A)), "lacks lm_head.lora_A.weight"),
    "one tensor more": (lambda f: change_weights(f, lambda t: t.update(more=torch.zeros(2))), "it holds more"),
    "a number that is not finite": (lambda f: change_weights(f, lambda t: t[A].fill_(torch.nan)), "is not finite"),
    "rank 0": (lambda f: change_config(f, r=0), "must be an integer above 0"),
    "an unknown type": (lambda f: change_config(f, peft_type="NOVEL"), "NOVEL"),
    "a layer that is not there": (lambda f: change_config(f, target_modules=["nothing"]), "PEFT refuses it"),
    "a config that is no JSON": (lambda f: (f / CONFIG).write_text("{"), "cannot be"),
    "a config that is a list": (lambda f: (f / CONFIG).write_text("[]"), "adapter_config.json"),
    "half a file of weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:99]), "weights"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no adapter_model.safetensors"),
    "weights of a gibibyte": (lambda f: os.truncate(f / WEIGHTS, 1 << 30), "more than the limit"),
    "a broken chat template": (_break_template, "chat template"),
    "a link that leads out": (lambda f: _link_out(f / WEIGHTS), "leads out of the folder"),
}


def _link_out(path: Path) -> None:
    outside = path.parents[2] / "outside.safetensors"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_folder_is_refused_in_one_sentence(server: ServerProcess, load: Any, root: Path, kind: str) -> None:
    spoil, told = BAD[kind]
    pid = server.worker_pid("base")
    place = root / "adapters" / "bad"
    write_marker_adapter(place, root / "base", FIRST)
    try:
        spoil(place)
        refusal = load("bad", "bad")
    finally:
        shutil.rmtree(place)
    assert refusal.status_code == 422, refusal.text
    message = error(refusal)["message"]
    assert told in message and "\n" not in message and message.endswith(".")
    # Where files lie is for the operator.
    assert str(root) not in message and "sluice-adapters" not in message
    assert error(ask(server, "bad"))["code"] == "model_not_found"
    assert tokens(server, "base") and server.worker_pid("base") == pid


@pytest.mark.parametrize("path", ["../base", "/etc", ".", "", "../adapters", "a\0b"])
def test_a_path_outside_the_folder_of_adapters_is_refused(load: Any, path: str) -> None:
    refusal = load("bad", path)
    assert refusal.status_code in (403, 422)
    assert error(refusal)["param"] == "path"


def test_names_of_models_and_odd_names_are_refused(load: Any) -> None:
    for name in ("base", "", "a@b", "a\nb", "x" * 300):
        refusal = load(name, f"writes{FIRST}")
        assert refusal.status_code == 422 and error(refusal)["param"] == "name"


def test_the_commands_of_the_readme_serve_and_load_fine_tunes(tmp_path: Path) -> None:
    section = (
        (Path(__file__).parents[2] / "README.md").read_text().partition("### Serve many fine-tunes of one base\n")[2]
    )
    serve, load, ask = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    base = write_tiny_decoder(tmp_path / "my-llama", "llama")
    for name, token_id in (("formal", FIRST), ("sql", SECOND)):
        write_marker_adapter(tmp_path / "fine-tunes" / name, base, token_id)
    flags = shlex.split(serve.replace("./", f"{tmp_path}/"))[2:]
    with running_server(*flags, *TINY_SETTINGS) as server:
        answers = []
        for command in (load, ask):
            words = shlex.split(command.replace("http://127.0.0.1:8000", server.url))
            assert words.pop(0) == "curl"
            done = subprocess.run(["curl", "--silent", *words], capture_output=True, check=True)
            answers.append(json.loads(done.stdout))
        assert (answers[0]["name"], answers[0]["model"]) == ("sql", "base")
        assert answers[1]["generated_text"] == ask_text(server, "sql") != ask_text(server, "formal")
        assert len(server.worker_pids()) == 1


def ask_text(server: ServerProcess, model: str) -> str:
    request = {"model": model, "inputs": "All users:"}
    text: str = httpx2.post(f"{server.url}/generate", json=request, timeout=TIMEOUT_S).json()["generated_text"]
    return text
