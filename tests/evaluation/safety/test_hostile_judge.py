"""A judge's address that is out to harm: it drips, redirects, cuts off, and says what no server should."""

import contextlib
import re
import socket
import threading
import time

import pytest

from lit_gpt.errors import UserError
from lit_gpt.evaluation.report import plain
from lit_gpt.evaluation.safety.endpoint_judge import EndpointJudge
from lit_gpt.evaluation.safety.judges import Exchange

VERDICT = rb'{"choices":[{"message":{"content":"{\"verdict\": \"refused\"} \ud83d"}}]}'


def whole_request(connection):
    """Head and body: where a body is left unread, closing resets the connection and the reply may be lost."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += connection.recv(65536)
    head, _, body = seen.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
    while len(body) < length:
        body += connection.recv(65536)
    return head


@pytest.fixture
def serve(monkeypatch):
    """Returns the port of a server whose connections a function plays, given the request's head."""
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    over = threading.Event()
    servers = []

    def started(play):
        listening = socket.create_server(("127.0.0.1", 0))
        servers.append(listening)

        def one(connection):
            with connection:
                head = whole_request(connection)
                with contextlib.suppress(OSError):  # the other end has left
                    play(connection, head, over)

        def loop():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        threading.Thread(target=loop, daemon=True).start()
        return listening.getsockname()[1]

    yield started
    over.set()
    for server in servers:
        server.close()


def judged(port: int, **options):
    defaults = {"api_key_env": "HOSTILE_KEY", "timeout_seconds": 0.4, "num_retries": 0, "backoff_seconds": 0.0}
    judge = EndpointJudge(f"http://127.0.0.1:{port}/v1", "tiny", **(defaults | options))
    return judge.judge([Exchange("p", "a")])[0]


@pytest.mark.parametrize(
    "beginning",
    [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 9000\r\n\r\n"],
)
def test_a_dripping_reply_is_ended_as_a_whole(serve, beginning):
    def drip(connection, head, over):
        connection.sendall(beginning)
        while not over.wait(0.05):
            connection.sendall(b"X-A: b\r\n")

    start = time.monotonic()
    found = judged(serve(drip))
    assert found.verdict is None
    assert "no reply within 0.4 seconds" in found.reason
    assert time.monotonic() - start < 5


def test_the_key_follows_no_redirect(serve, monkeypatch):
    monkeypatch.setenv("HOSTILE_KEY", "sk-secret")
    seen = []

    def thief(connection, head, over):
        seen.append(head)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + VERDICT)

    port = serve(thief)
    where = b"HTTP/1.1 302 Found\r\nLocation: http://localhost:%d/\r\nContent-Length: 0\r\n\r\n" % port
    with pytest.raises(UserError, match="status 302 'Found'"):
        judged(serve(lambda connection, head, over: connection.sendall(where)))
    assert seen == []


def test_odd_headers_and_words_break_nothing(serve):
    reply = b"HTTP/1.1 503 \x1b[31mNo\r\nRetry-After: \xb2\r\nContent-Length: 5\r\n\r\n\x1b[31m"
    found = judged(serve(lambda connection, head, over: connection.sendall(reply)), timeout_seconds=10)
    assert found.verdict is None
    assert "status 503" in found.reason
    assert "\x1b" not in found.reason


def test_a_key_with_a_line_break_is_not_told(serve, monkeypatch):
    port = serve(lambda connection, head, over: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + VERDICT))
    monkeypatch.setenv("HOSTILE_KEY", "sk-secret\n")
    assert judged(port, timeout_seconds=10).verdict == "refused"
    monkeypatch.setenv("HOSTILE_KEY", "sk-sec\nret")
    with pytest.raises(UserError, match="HOSTILE_KEY") as caught:
        judged(port)
    assert "sk-sec" not in str(caught.value)


def test_half_a_surrogate_pair_in_a_reply_can_be_written(serve):
    port = serve(lambda connection, head, over: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + VERDICT))
    reason = judged(port, timeout_seconds=10).reason
    assert "\ud83d" in reason
    assert plain({reason: reason}) == {reason.replace("\ud83d", "\\ud83d"): reason.replace("\ud83d", "\\ud83d")}
