"""A server in a thread of the test's own process, on a free port of loopback."""

import http.client
import json
import threading

import openai

from lit_gpt.serving.admission import Limits
from lit_gpt.serving.app import create_app
from lit_gpt.serving.model import ServedModel
from lit_gpt.serving.server import DrainingServer, listen, make_server
from lit_gpt.serving.service import Service


class RunningServer:
    """Context manager: up on entry, drained and gone on exit."""

    def __init__(self, served: ServedModel, limits: Limits | None = None, guards=(), **access) -> None:
        self.service = Service(served, limits or Limits(), guards)
        self.app = create_app(self.service, **access)

    def __enter__(self) -> "RunningServer":
        self.socket = listen("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        up = threading.Event()
        self.server: DrainingServer = make_server(self.app, self.service, up.set)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()
        assert up.wait(20)
        return self

    def __exit__(self, *_) -> None:
        self.stop()
        self.service.close()

    def stop(self) -> None:
        """As SIGTERM does."""
        if self.thread.is_alive():
            self.server.should_exit = True
            self.thread.join(60)
            assert not self.thread.is_alive()

    def client(self, key: str = "unused", kind: type = openai.OpenAI, **more):
        return kind(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=30, **more)

    def request(self, method: str, path: str, body=None, headers=None) -> tuple[int, dict[str, str], bytes]:
        """Plain HTTP; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"Content-Type": "application/json"} if body is not None else {}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, sent | (headers or {}))
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def post(self, path: str, body, **headers) -> tuple[int, dict]:
        status, _, content = self.request("POST", path, body, headers)
        return status, json.loads(content)

    def metric(self, name: str, **labels) -> float:
        """The value of a metric now (labels may be left out: the sum over them)."""
        return metric_value(self.service.metrics.text().decode(), name, **labels)


def metric_value(text: str, name: str, **labels) -> float:
    """The value of a metric in Prometheus' text."""
    found = 0.0
    for line in text.splitlines():
        full, _, value = line.rpartition(" ")
        if full.partition("{")[0] == name and all(f'{k}="{v}"' in full for k, v in labels.items()):
            found += float(value)
    return found
