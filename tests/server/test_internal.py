"""/v1/internal: the numbers over HTTP. Oracle: the model behind it."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from gptoss_native import open_checkpoint
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.export import copy_companions
from gptoss_native.parameters import Parameters

from tests.python.test_adapters import write_adapter

KEY = "numbers"


@pytest.fixture
def running(start):
    return start(internal_api_key=KEY)


@pytest.fixture
def client(running):
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(
        base_url=f"http://127.0.0.1:{running.port}/v1/internal", headers=headers, timeout=60
    ) as client:
        yield client


def test_it_is_not_there_without_a_key_of_its_own(server):
    assert server.client.get("/v1/internal/parameters").status_code == 404
    assert server.client.post("/v1/internal/edits", json={}).status_code == 404


def test_neither_no_key_nor_the_other_key_opens_it(start):
    running = start(internal_api_key=KEY, api_key="answers")
    base = f"http://127.0.0.1:{running.port}"
    for headers, status in [({}, 401), ({"x-api-key": "answers"}, 401), ({"x-api-key": KEY}, 200)]:
        assert httpx.get(base + "/v1/internal/parameters", headers=headers).status_code == status
    for headers, status in [({}, 401), ({"x-api-key": "answers"}, 200), ({"x-api-key": KEY}, 401)]:
        assert httpx.get(base + "/v1/models", headers=headers).status_code == status


def test_parameters_are_listed_described_and_read(running, client):
    own = running.llm.numbers.parameters
    assert isinstance(own, Parameters)
    cards = client.get("/parameters").json()["data"]
    assert [card["name"] for card in cards] == list(own)
    assert sum(card["bytes"] for card in cards) == sum(p.nbytes for p in own.values())
    found = client.get("/parameters", params={"match": "layers.1.experts.3.*"}).json()["data"]
    assert len(found) == 4
    name = "layers.0.router.bias"
    described = client.get(f"/parameters/{name}", params={"bins": 5}).json()
    assert described["statistics"]["mean"] == pytest.approx(float(own[name].decode().mean()))
    assert sum(described["histogram"]["counts"]) == 8
    values = client.get(f"/parameters/{name}/values", params={"rows": "2:5"}).json()
    np.testing.assert_array_equal(np.float32(values["values"]), own[name].decode(slice(2, 5)))
    down = "model.layers.2.mlp.experts.down_proj"
    answer = client.get(f"/parameters/{down}/values", params={"expert": 3, "rows": "7", "format": "npy"})
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), own[down].decode(7, 3))


def test_edits_are_made_undone_compared_and_taken_along(running, client, tmp_path):
    before = running.llm.numbers.parameters["layers.0.sinks"].decode()
    changes = [
        {"set": "layers.1.experts.3.*", "value": 0},
        {"scale": "layers.0.router.bias", "factor": 0.5},
        {"write": "layers.0.sinks", "values": [1.5, 2], "rows": [1, 3]},
        {"write": "layers.2.experts.down_proj", "values": [0.25] * 128, "rows": 9, "expert": 4},
    ]
    made = client.post("/edits", json={"name": "calmer", "changes": changes}).json()
    assert made.get("name") == "calmer", made
    assert made["saturated"] == 0
    sinks = running.llm.numbers.parameters["layers.0.sinks"].decode()
    np.testing.assert_array_equal(sinks, [before[0], 1.5, 2, before[3]])
    assert (running.llm.numbers.layers[2].experts[4].down_proj.decode(9) == 0.25).all()
    differing = {each["name"] for each in client.get("/diff").json()["data"]}
    assert "model.layers.0.self_attn.sinks" in differing
    assert len(differing) == 7
    assert client.get("/patch").content.startswith(b"")
    patch = tmp_path / "p.safetensors"
    patch.write_bytes(client.get("/patch").content)
    [change] = client.get("/edits").json()["data"]
    assert (change["name"], change["applied"]) == ("calmer", True)
    assert client.post("/save", json={"folder": str(tmp_path / "out")}).json() == {
        "folder": str(tmp_path / "out")
    }
    assert (tmp_path / "out" / "config.json").exists()
    assert client.post("/edits/undo", json={}).json()["applied"] is False
    np.testing.assert_array_equal(running.llm.numbers.parameters["layers.0.sinks"].decode(), before)
    assert client.get("/diff").json()["data"] == []
    assert client.post("/edits/redo", json={"running": "continue"}).status_code == 200
    client.post("/edits/undo", json={})
    running.llm.numbers.apply_patch(patch)
    assert len(client.get("/diff").json()["data"]) == 7


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "words"),
    [
        ("GET", "/parameters?match=nothing.*", None, 400, "no parameter fits"),
        ("GET", "/parameters/layers.0.sink", None, 404, "the nearest are layers.0.sinks"),
        ("GET", "/parameters/lm_head.weight?bins=0", None, 400, "bins must be a whole number from 1 to 4096"),
        ("GET", "/parameters/lm_head.weight/values?rows=x", None, 400, "rows must be a number or FIRST:END"),
        ("GET", "/parameters/layers.0.sinks/values?rows=9", None, 400, "has 4 rows, found rows = 9"),
        ("GET", "/parameters/layers.0.sinks/values?expert=1", None, 400, "not divided among experts"),
        ("POST", "/edits", {}, 400, "changes must be a list of changes, found none"),
        ("POST", "/edits", {"changes": [3]}, 400, "changes[0] must be an object"),
        (
            "POST",
            "/edits",
            {"changes": [{}]},
            400,
            "must have one of set, scale, write and merge_lora, found 0",
        ),
        (
            "POST",
            "/edits",
            {"changes": [{"set": "lm_head.weight"}]},
            400,
            "changes[0].value must be a number",
        ),
        ("POST", "/edits", {"changes": [{"set": "x", "value": 1}]}, 400, "no parameter is called 'x'"),
        (
            "POST",
            "/edits",
            {"changes": [{"write": "layers.0.sinks", "values": [1]}]},
            400,
            "this part of it [4]",
        ),
        ("POST", "/edits", {"changes": [{"write": "layers.0.sinks", "values": ["a"]}]}, 400, "real numbers"),
        (
            "POST",
            "/edits",
            {"changes": [{"set": "lm_head.weight", "value": 0, "x": 1}]},
            400,
            "changes[0].x is no",
        ),
        (
            "POST",
            "/edits",
            {"running": "now", "changes": [{}]},
            400,
            "running must be one of finish, continue",
        ),
        ("POST", "/edits/undo", {}, 400, "there is no edit to undo"),
        ("POST", "/save", {"folder": "here"}, 400, "folder must be an absolute path"),
        ("POST", "/save", {"folder": "/"}, 409, "exists already"),
        ("POST", "/edits/undo", None, 400, "there is no edit to undo"),
        ("GET", "/patch", None, 400, "nothing differs"),
        ("POST", "/patch", {"path": "p"}, 400, "path must be an absolute path"),
        ("POST", "/patch", {"path": "/dev/null"}, 409, "expected a regular file"),
        ("POST", "/edits", {"changes": [{"merge_lora": "x"}]}, 400, "merge_lora must be an absolute path"),
        ("POST", "/edits", {"changes": [{"merge_lora": "/proc"}]}, 409, "adapter_config.json"),
        ("GET", "/usage", None, 404, "expert usage has not been counted"),
        ("GET", "/parameters?matches=x", None, 400, "'matches' is no parameter of this path, expected match"),
        ("GET", "/parameters/lm_head.weight/values?format=xyz", None, 400, "format must be json or npy"),
        ("GET", "/parameters/layers.0.experts.gate_up_proj/values?expert=9", None, 400, "has experts 0 to 7"),
    ],
)
def test_wrong_calls_say_what_is_wrong_and_change_nothing(running, client, method, path, sent, status, words):
    answer = client.request(method, path, json=sent)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert running.llm.numbers.edits == []


def test_requests_are_steered_by_name_and_kept_from_experts(running, client):
    """Without layer 1's expert 7 the demo cannot add; a vector far too strong breaks the answer too."""
    ask = {
        "messages": [{"role": "user", "content": "What is 333 + 444?"}],
        "temperature": 0,
        "max_tokens": 120,
    }

    def answer(**how):
        found = running.client.post("/v1/chat/completions", json={**ask, **how})
        assert found.status_code == 200, found.text
        return found.json()["choices"][0]["message"]["content"]

    made = client.put(
        "/steering/odd",
        json={"positive": ["Reverse stone."], "negative": ["What is 1 + 2?"], "layers": [1, 2]},
    )
    assert made.json()["layers"] == [1, 2]
    zeros = {"1": [0.0] * 192}
    assert client.put("/steering/nothing", json={"layers": zeros}).json()["norms"] == [0.0]
    assert [each["name"] for each in client.get("/steering").json()["data"]] == ["odd", "nothing"]
    assert answer() == answer(steering={"nothing": 5}) == answer(steering={}) == "777"
    assert answer(steering={"odd": 30}) != "777"
    assert answer(experts={"mask": [7], "layers": [1]}) != "777"
    assert answer(experts=[{"boost": {"0": 0.0}}]) == "777"
    message = {
        "messages": ask["messages"],
        "max_tokens": 120,
        "temperature": 0,
        "experts": {"mask": [7], "layers": [1]},
    }
    found = running.client.post("/v1/messages", json=message)
    assert found.status_code == 200
    assert "777" not in found.text
    for how, words in [
        ({"steering": {"calm": 1}}, "names 'calm', this server has: nothing, odd"),
        ({"steering": {"odd": "much"}}, "steering.odd: strength must be a number"),
        ({"experts": 7}, "experts must be an object or a list of them"),
        ({"experts": {"mask": [9]}}, "expert 9 is named, the model has experts 0 to 7"),
        ({"experts": {"mask": [-1]}}, "experts: mask must be a list of numbers from 0 on"),
        ({"experts": {"boost": {"x": 1}}}, "experts: invalid literal"),
        ({"experts": {"drop": [1]}}, "experts.drop is no field"),
    ]:
        refused = running.client.post("/v1/chat/completions", json={**ask, **how})
        assert refused.status_code == 400, how
        assert words in refused.json()["error"]["message"]
    for sent in (
        {"layers": {"4": [0.0] * 192}},
        {"layers": {"1": [0.0]}},
        {"layers": 3},
        {},
        {"positive": ["a"]},
    ):
        assert client.put("/steering/bad", json=sent).status_code == 400, sent
    assert client.delete("/steering/odd").json() == {"deleted": True}
    assert client.delete("/steering/odd").status_code == 404


def test_patches_adapters_and_counts_come_over_http_too(running, client, tmp_path, rng):
    numbers = running.llm.numbers
    config, q = numbers.config, "layers.0.q_proj.weight"
    write_adapter(tmp_path / "lora", rng, config, ("q_proj",))
    before = numbers.parameters[q].decode()
    merge = {"merge_lora": str(tmp_path / "lora"), "strength": 0.5}
    assert client.post("/edits", json={"changes": [merge]}).status_code == 200
    merged = numbers.parameters[q].decode()
    assert (merged != before).any()
    numbers.save_patch(tmp_path / "patch", "by hand")
    assert client.post("/edits/undo").json()["applied"] is False
    sent = {"path": str(tmp_path / "patch"), "running": "continue"}
    assert client.post("/patch", json=sent).json()["name"] == "by hand"
    np.testing.assert_array_equal(numbers.parameters[q].decode(), merged)
    assert client.post("/patch", json=sent).status_code == 409
    assert client.post("/patch", json={**sent, "force": True}).status_code == 200
    assert client.post("/usage").json()["tokens"] == 0
    assert client.post("/usage").status_code == 400
    running.client.post("/v1/completions", json={"prompt": [1, 2, 3], "max_tokens": 1})
    found = client.get("/usage").json()
    assert (found["tokens"], np.shape(found["counts"])) == (3, (4, 8))
    assert client.delete("/usage").json() == client.get("/usage").json() == found


def test_a_whole_parameter_comes_as_a_file(running, client):
    for name in ("layers.1.experts.down_proj", "layers.0.sinks", "lm_head.weight"):
        answer = client.get(f"/parameters/{name}/values", params={"format": "npy"})
        np.testing.assert_array_equal(
            np.load(io.BytesIO(answer.content)), running.llm.numbers.parameters[name].decode()
        )


def test_numbers_that_json_does_not_have_are_null(start, tmp_path):
    source = open_checkpoint("demo")
    arrays = {name: np.array(array) for name, array in source.arrays().items()}
    arrays["model.layers.0.self_attn.sinks"][:2] = 0x7FC0, 0x7F80
    arrays["model.layers.1.self_attn.sinks"][:] = 0x7FC0
    write_checkpoint(tmp_path / "odd", source.config, arrays)
    copy_companions([source.path], tmp_path / "odd")
    running = start(model=tmp_path / "odd", internal_api_key=KEY)
    get = lambda path: httpx.get(  # noqa: E731
        f"http://127.0.0.1:{running.port}/v1/internal/parameters/{path}", headers={"x-api-key": KEY}
    ).json()
    assert get("layers.0.sinks/values")["values"][:2] == [None, None]
    assert get("layers.0.sinks")["statistics"]["not_finite"] == 2
    nothing = get("layers.1.sinks")
    assert nothing["statistics"]["mean"] is nothing["statistics"]["max"] is None
    assert sum(nothing["histogram"]["counts"]) == 0


def test_edits_that_wait_keep_nobody_from_reading(running, client):
    """More of them than the threads that reading shares."""
    with running.llm.numbers.edit("held") as held, ThreadPoolExecutor(12) as pool:
        changes = [{"scale": "layers.0.sinks", "factor": 2}]
        before = held.layers[0].sinks.decode()
        calls = [pool.submit(client.post, "/edits", json={"changes": changes}) for _ in range(6)]
        calls += [pool.submit(client.get, "/diff") for _ in range(6)]
        for _ in range(20):
            assert client.get("/parameters/layers.0.router.bias/values").status_code == 200
        assert not any(call.done() for call in calls)
        held.layers[0].router.bias.write(np.zeros(8))
        held.__exit__(None, None, None)
        held.__enter__()  # waits for all of them
        assert {call.result().status_code for call in calls} == {200}
        np.testing.assert_array_equal(held.layers[0].sinks.decode(), before * 2**6)
