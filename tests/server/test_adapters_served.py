"""LoRA adapters over HTTP: loaded at the start or at run time, asked for by name as a model. Oracle: LLM."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from gptoss_native import LLM, SamplingParams, open_checkpoint
from gptoss_native.errors import RequestError

from tests.python.test_adapters import write_adapter

KEY = "numbers"
QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
BODY = {"messages": QUESTION, "temperature": 0, "max_tokens": 24, "logprobs": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    rng, at = np.random.default_rng(7), tmp_path_factory.mktemp("adapters")
    for name in ("first", "second"):
        write_adapter(at / name, rng, open_checkpoint("demo").config, ("q_proj", "down_proj"), size=0.05)
    return at


@pytest.fixture(scope="module")
def expected(folders):
    """Token ids of each adapter's answer, and of the plain model's (None)."""
    with LLM("demo", max_model_len=2048) as llm:
        found = {}
        for name in ("first", "second", None):
            if name:
                llm.adapters.load(name, folders / name)
            params = SamplingParams(temperature=0, max_tokens=24, adapter=name)
            found[name] = llm.chat(QUESTION, params)[0].outputs[0]
        return found


def ask(server, path="/v1/chat/completions", **body):
    response = server.client.post(path, json=BODY | body)
    assert response.status_code == 200, response.text
    return response.json()


def thoughts_and_text(answer):
    message = answer["choices"][0]["message"]
    return message.get("reasoning") or "", message["content"] or ""


def said(output):
    return output.reasoning or "", output.content or ""


def test_they_are_models_of_their_own(start, folders, expected):
    server = start(lora_modules=[f"first={folders / 'first'}", f"second={folders / 'second'}"])
    cards = {card["id"]: card for card in server.client.get("/v1/models").json()["data"]}
    assert list(cards) == ["demo", "first", "second"]
    assert cards["second"]["parent"] == "demo"
    assert cards["second"]["root"] == "second"  # and not where its files are
    assert "parent" not in cards["demo"]
    assert server.client.get("/v1/models/first").json() == cards["first"]
    answers = {name: ask(server, model=name or "demo") for name in expected}
    for name, answer in answers.items():
        assert answer["model"] == (name or "demo")
        assert thoughts_and_text(answer) == said(expected[name]), name
    assert len({str(answer["choices"][0]["logprobs"]) for answer in answers.values()}) == 3
    wrong = server.client.post("/v1/chat/completions", json=BODY | {"model": "third"})
    assert wrong.status_code == 404
    assert "'demo', 'first', 'second'" in wrong.json()["error"]["message"]


def test_every_api_takes_their_names(start, folders):
    server = start(lora_modules=[f"first={folders / 'first'}"])
    for path, body in [
        ("/v1/completions", {"prompt": "1 + 1", "max_tokens": 2}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 4}),
        ("/v1/messages", {"messages": QUESTION, "max_tokens": 4}),
    ]:
        for name in ("first", "demo"):
            response = server.client.post(path, json={**body, "model": name})
            assert response.status_code == 200, response.text
            assert response.json()["model"] == name


def test_they_are_loaded_listed_and_dropped_while_it_runs(start, folders, expected):
    server = start(internal_api_key=KEY)
    base, headers = f"http://127.0.0.1:{server.port}/v1/internal", {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=base, headers=headers, timeout=60) as client:
        card = client.put("/adapters/first", json={"folder": str(folders / "first")}).json()
        assert (card["name"], card["folder"]) == ("first", str(folders / "first"))
        assert card["rank"] <= 8
        assert client.get("/adapters").json()["data"] == [card]
        assert thoughts_and_text(ask(server, model="first")) == said(expected["first"])
        for name, body, status in [
            ("first", {"folder": str(folders / "first")}, 400),  # is loaded
            ("demo", {"folder": str(folders / "first")}, 400),  # the model's own name
            ("x", {"folder": "relative"}, 400),
            ("x", {"folder": str(folders)}, 409),  # no adapter
            ("x", {}, 400),
        ]:
            assert client.put(f"/adapters/{name}", json=body).status_code == status, (name, body)
        assert client.delete("/adapters/first").json() == {"deleted": True}
        assert client.delete("/adapters/first").status_code == 404
        assert client.get("/adapters").json()["data"] == []
    gone = server.client.post("/v1/chat/completions", json=BODY | {"model": "first"})
    assert gone.status_code == 404
    assert thoughts_and_text(ask(server)) == said(expected[None])


def test_a_setting_that_names_no_folder_is_refused(start):
    with pytest.raises(RequestError, match="lora-modules must be NAME=FOLDER, found 'first'"):
        start(lora_modules=["first"])
