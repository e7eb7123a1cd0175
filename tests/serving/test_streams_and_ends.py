"""How requests end: by themselves, by their client, by the clock, by the server; and a full server says so."""

import http.client
import json
import socket
import threading

import openai
import pytest

from lit_gpt.generation.constraints import DEAD_END
from lit_gpt.serving.admission import Limits

USER = [{"role": "user", "content": "hello"}]
CHAT = {"model": "fake", "messages": USER}
ENDLESS = lambda prompt, params: None  # noqa: E731
WAIT = 10


def open_stream(server, path="/v1/chat/completions", body=None):
    """Begin a stream and read its first line."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT)
    content = json.dumps((body or CHAT) | {"stream": True, "max_tokens": 4000}).encode()
    connection.request("POST", path, content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"data:")
    return connection, response


def events(response):
    """What a stream still says."""
    return [json.loads(line[6:]) for line in response.read().decode().splitlines() if line.startswith("data: {")]


def until(fulfilled) -> None:
    """Wait for something that another thread brings about."""
    pause = threading.Event()
    for _ in range(1000):
        if fulfilled():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_frees_its_places(serve, streaming):
    with serve(ENDLESS, max_batch_size=2) as server:
        if streaming:
            connection, response = open_stream(server)
            until(lambda: not server.engine.idle.is_set())
            response.close()
            connection.close()
        else:
            connection = socket.create_connection(("127.0.0.1", server.port))
            body = json.dumps(CHAT | {"n": 2}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            until(lambda: server.engine.most_running == 2)
            connection.close()
        assert server.engine.idle.wait(WAIT)
        until(lambda: server.service.admission.in_flight == 0)
        until(lambda: server.metric("lit_gpt_requests_total", code="499") == 1)
        assert not server.service.active
        assert server.engine.generated < 4000


def test_who_leaves_while_waiting_is_forgotten(serve):
    with serve(ENDLESS, max_batch_size=1) as server:
        first = open_stream(server)
        second = open_stream_waiting(server)
        until(lambda: server.engine.most_waiting >= 1)
        second.close()
        until(lambda: server.service.admission.in_flight == 1)
        first[1].close()
        first[0].close()
        assert server.engine.idle.wait(WAIT)


def open_stream_waiting(server):
    connection = socket.create_connection(("127.0.0.1", server.port))
    body = json.dumps(CHAT | {"stream": True, "max_tokens": 4000}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_a_full_server_says_when_to_come_again(serve):
    with serve(ENDLESS, Limits(queued=1), max_batch_size=2) as server:
        streams = [open_stream(server) for _ in range(2)]
        waiting = open_stream_waiting(server)
        until(lambda: server.service.admission.in_flight == 3)
        with pytest.raises(openai.RateLimitError) as caught:
            server.client().chat.completions.create(**CHAT)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert caught.value.code == "server_busy"
        assert server.request("GET", "/ready")[0] == 503
        assert server.request("GET", "/health")[0] == 200
        assert server.metric("lit_gpt_rejected_total", reason="server_busy") == 1
        assert server.engine.most_running <= 2
        assert server.engine.most_waiting <= 3  # all that were let in
        assert server.post("/v1/chat/completions", CHAT | {"n": 4})[0] == 400  # more than there can ever be
        for connection, response in streams:
            response.close()
            connection.close()
        waiting.close()
        assert server.engine.idle.wait(WAIT)
        until(lambda: server.service.admission.in_flight == 0)
        assert server.request("GET", "/ready")[0] == 200


def test_time_is_up(serve):
    with serve(ENDLESS, Limits(request_seconds=0.3, new_tokens=4000)) as server:
        connection, response = open_stream(server)
        last = events(response)[-1]
        assert last["error"]["code"] == "request_timeout"
        connection.close()
        with pytest.raises(openai.InternalServerError, match=r"0\.3 seconds"):
            server.client().chat.completions.create(**CHAT)
        assert server.engine.idle.wait(WAIT)


def test_the_openai_client_raises_on_an_error_within_a_stream(serve):
    with serve(ENDLESS, Limits(request_seconds=0.2)) as server, pytest.raises(openai.APIError, match="limit"):
        for _ in server.client().chat.completions.create(stream=True, **CHAT):
            pass


def test_a_fault_in_a_step_fails_its_requests_and_no_later_one(serve):
    with serve(lambda prompt, params: "fine") as server:
        step, faults = server.engine.step, [RuntimeError("the secret is 4711")]

        def broken():
            if faults:
                raise faults.pop()
            return step()

        server.engine.step = broken
        status, answer = server.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "4711" not in json.dumps(answer)
        assert server.post("/v1/chat/completions", CHAT)[0] == 200
        assert server.request("GET", "/health")[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_constraint_without_an_end_is_the_clients_error(serve, stream):
    with serve(lambda prompt, params: "fine") as server:
        server.engine.step, step = (lambda: server.engine.fail_all(f"RuntimeError: {DEAD_END}")), server.engine.step
        with pytest.raises(openai.APIError) as caught:
            for _ in server.client().chat.completions.create(stream=True, **CHAT) if stream else ():
                pass
            server.client().chat.completions.create(**CHAT)
        assert caught.value.code == "constraint_dead_end"
        server.engine.step = step
        assert server.post("/v1/chat/completions", CHAT)[0] == 200


def test_a_dead_engine_is_told_of(serve):
    class Death(BaseException):
        pass

    with serve(lambda prompt, params: "fine") as server:
        hook, threading.excepthook = threading.excepthook, lambda args: None
        try:
            server.engine.step = lambda: (_ for _ in ()).throw(Death())
            assert server.post("/v1/chat/completions", CHAT)[0] == 500
            until(lambda: server.service.served.loop.failure is not None)
        finally:
            threading.excepthook = hook
        assert server.request("GET", "/health")[0] == 503
        assert server.request("GET", "/ready")[0] == 503
        assert server.post("/v1/chat/completions", CHAT)[0] == 503


def test_a_drain_finishes_what_was_accepted(serve):
    with serve(lambda prompt, params: "word " * 40, max_batch_size=1) as server:
        server.engine.pace_seconds = 0.01
        connection, response = open_stream(server)
        waiting = open_stream_waiting(server)  # accepted, not begun
        until(lambda: server.service.admission.in_flight == 2)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        pieces = events(response)
        assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
        assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == "word " * 40
        received = b""
        while part := waiting.recv(1 << 16):
            received += part
        assert b"[DONE]" in received
        assert received.count(b'"finish_reason":"stop"') == 1
        stopping.join(WAIT)
        assert not stopping.is_alive()
        connection.close()
        waiting.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=1)


def test_a_drain_has_an_end(serve):
    with serve(ENDLESS, Limits(drain_seconds=0.3)) as server:
        connection, response = open_stream(server)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert events(response)[-1]["error"]["code"] == "shutting_down"
        stopping.join(WAIT)
        assert not stopping.is_alive()
        connection.close()


def test_a_slow_body_and_an_idle_connection_are_cut_off(serve):
    with serve(lambda prompt, params: "fine", Limits(body_seconds=0.2, keep_alive_seconds=0.3)) as server:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as slow:
            slow.sendall(head)
            answer = slow.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"body_timeout" in answer or b"body_timeout" in slow.recv(1 << 16)
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as kept:
            kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while part := kept.recv(1 << 16):  # until the server closes it
                received += part
            assert received.startswith(b"HTTP/1.1 200")
        assert server.post("/v1/completions", {"model": "fake", "prompt": "a"})[0] == 200


def test_a_client_that_does_not_read_cannot_keep_its_place(serve):
    with serve(ENDLESS, Limits(stalled_seconds=0.3)) as server:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", server.port))
            body = json.dumps(CHAT | {"stream": True, "n": 4, "logprobs": True}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            deaf.sendall(head.encode() + body)
            until(lambda: server.engine.most_running == 4)
            assert server.engine.idle.wait(60)
            until(lambda: server.service.admission.in_flight == 0)
        assert server.metric("lit_gpt_requests_total", code="499") == 1


def test_only_so_many_connections(serve):
    with serve(lambda prompt, params: "fine", Limits(connections=4)) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) for _ in range(4)]
        until(lambda: len(server.server.server_state.connections) == 4)
        status, _, _ = server.request("GET", "/health")
        assert status == 503
        for connection in idle:
            connection.close()
        until(lambda: len(server.server.server_state.connections) == 0)
        assert server.request("GET", "/health")[0] == 200


def test_metrics_add_up(serve):
    with serve(lambda prompt, params: "one two three") as server:
        for _ in range(3):
            answer = server.post("/v1/chat/completions", CHAT)[1]
        server.post("/v1/chat/completions", CHAT | {"top_p": 5})
        tokens = answer["usage"]["completion_tokens"]
        status, headers, text = server.request("GET", "/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain")
        assert b"lit_gpt_time_to_first_token_seconds_bucket" in text
        route = "/v1/chat/completions"
        assert server.metric("lit_gpt_requests_total", route=route, code="200") == 3
        assert server.metric("lit_gpt_requests_total", route=route, code="400") == 1
        assert server.metric("lit_gpt_generated_tokens_total") == 3 * tokens
        assert server.metric("lit_gpt_prompt_tokens_total") == 3 * answer["usage"]["prompt_tokens"]
        assert server.metric("lit_gpt_time_to_first_token_seconds_count") == 3
        assert server.metric("lit_gpt_sequences_total", finish_reason="stop") == 3
        assert server.metric("lit_gpt_tokens_per_second") == pytest.approx(3 * tokens / 10)
        for name in ("queue_sequences", "running_sequences", "in_flight_sequences", "cache_used_tokens"):
            assert server.metric(f"lit_gpt_{name}") == 0
        assert server.metric("lit_gpt_cache_limit_tokens") == 4096
        server.request("GET", "/v1/secret-path-of-somebody")
        assert b"somebody" not in server.request("GET", "/metrics")[2]
