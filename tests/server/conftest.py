"""A server of the demo model on a port of its own, in this process, for all tests of this folder."""

from __future__ import annotations

import socket
import threading
import time

import httpx
import pytest
import uvicorn
from gptoss_native import AsyncLLM
from gptoss_native.server.app import make_app
from gptoss_native.server.service import Service
from gptoss_native.server.settings import Settings


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Running:
    """A server in a thread."""

    def __init__(self, model_settings=None, model="demo", **settings):
        self.settings = Settings(max_model_len=2048, **settings)
        self.llm = AsyncLLM(model, **self.settings.model_settings() | (model_settings or {}))
        self.service = Service(self.llm, self.settings)
        self.port = free_port()
        config = uvicorn.Config(make_app(self.service), port=self.port, log_level="warning", lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        headers = {"Authorization": f"Bearer {self.settings.api_key}"} if self.settings.api_key else {}
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, headers=headers)

    def stop(self):
        self.client.close()
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def unused_port():
    return free_port()


@pytest.fixture
def start():
    """Starts servers with settings of their own."""
    started = []

    def make(**settings):
        started.append(Running(**settings))
        return started[-1]

    yield make
    for running in started:
        running.stop()


@pytest.fixture(scope="session")
def server():
    running = Running()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def client(server):
    return server.client
