"""Two CPU replicas of the demo under Ray Serve. Run by `make test-extras`, in an environment that has Ray."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid

import httpx
import pytest

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

BASE = "http://127.0.0.1:8000"
CHAT = f"{BASE}/v1/chat/completions"


def question(number, before=""):
    return {
        "messages": [{"role": "user", "content": f"{before}What is {number} + 30?"}],
        "temperature": 0,
        "max_tokens": 200,
    }


@pytest.fixture(scope="module")
def running():
    from gptoss_native.ray import app

    ray.init(num_cpus=4, include_dashboard=False)
    serve.run(app({"replicas": 2, "max_model_len": 2048, "cpus": 0.5}))
    yield
    serve.shutdown()
    ray.shutdown()


def replicas():
    """(name, process, actor) of the living engines."""
    actors = [
        actor for actor in ray.util.list_named_actors(all_namespaces=True) if "#engine#" in actor["name"]
    ]
    return [ray.get_actor(actor["name"], actor["namespace"]) for actor in actors]


def test_it_is_the_same_api(running):
    answer = httpx.post(CHAT, json=question(12), timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == "42"
    assert httpx.get(f"{BASE}/v1/models").json()["data"][0]["id"] == "demo"
    assert httpx.get(BASE).headers["content-type"].startswith("text/html")
    wrong = httpx.post(CHAT, json={"messages": []})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "messages")


def test_requests_are_spread(running):
    """Conversations that begin differently; each replica counts its own; /metrics asks one of them."""
    threads = [
        threading.Thread(
            target=httpx.post, args=(CHAT,), kwargs={"json": question(n, uuid.uuid4().hex), "timeout": 60}
        )
        for n in range(100, 140)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = set()
    for _ in range(60):
        text = httpx.get(f"{BASE}/metrics").text
        seen.add(float(re.search(r"^gptoss_native_generation_tokens_total (\S+)$", text, re.MULTILINE)[1]))
    assert len(seen) == 2
    assert min(seen) > 0


def test_a_killed_replica_breaks_its_streams_with_an_error_and_nothing_else(running):
    assert len(replicas()) == 2
    body = {"prompt": "1, 2, 3", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{BASE}/v1/completions", json=body, timeout=60) as response:
        lines = (line for line in response.iter_lines() if line)
        first = json.loads(next(lines).removeprefix("data: "))
        assert first["choices"]
        for replica in replicas():  # whichever writes this answer
            ray.kill(replica, no_restart=True)
        rest = list(lines)
    assert rest[-1] == "data: [DONE]"
    error = json.loads(rest[-2].removeprefix("data: "))["error"]
    assert error["code"] == "replica_lost"
    assert "send the request again" in error["message"]
    deadline = time.monotonic() + 60
    while True:  # a client that does what it is told
        again = httpx.post(CHAT, json=question(12), timeout=60)
        if again.status_code == 200 or time.monotonic() > deadline:
            break
        assert again.status_code == 503
        time.sleep(float(again.headers["Retry-After"]))
    assert again.json()["choices"][0]["message"]["content"] == "42"


def test_one_of_two_may_die_while_the_other_answers(running):
    while len(replicas()) < 2:
        time.sleep(0.2)
    ray.kill(replicas()[0], no_restart=True)
    codes = [httpx.post(CHAT, json=question(n), timeout=60).status_code for n in range(20)]
    assert codes.count(200) >= 18, codes
    assert set(codes) <= {200, 503}
