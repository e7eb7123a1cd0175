"""Who gets in: keys, host names, other origins."""

import hmac

import openai
import pytest

from lit_gpt.errors import UserError
from lit_gpt.serving.middleware import LOOPBACK, Keys, allowed_names, host_name, read_keys

KEY, OTHER = "correct-horse-battery", "another-key-that-is-long"
USER = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}


def fine(prompt, params):
    return "fine"


def test_keys_open_the_api_and_nothing_else_does(serve):
    with serve(fine, keys=Keys([KEY, OTHER])) as server:
        for key in (KEY, OTHER):
            assert server.client(key).chat.completions.create(**USER).choices[0].message.content == "fine"
        for wrong in (KEY[:-1], KEY + "x", KEY.upper(), "x"):
            with pytest.raises(openai.AuthenticationError) as caught:
                server.client(wrong).chat.completions.create(**USER)
            assert caught.value.code == "invalid_api_key"
            assert wrong == "x" or wrong not in str(caught.value)
        for header in ({}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer"}):
            for method, path in (
                ("POST", "/v1/chat/completions"),
                ("GET", "/v1/models"),
                ("GET", "/metrics"),
                ("GET", "/no/such/path"),
            ):
                status, headers, _ = server.request(method, path, USER if method == "POST" else None, header)
                assert status == 401, path
                assert headers["www-authenticate"] == "Bearer"
        for path in ("/", "/health", "/ready"):
            assert server.request("GET", path)[0] == 200
        assert server.metric("lit_gpt_rejected_total", reason="invalid_api_key") >= 20


def test_a_wrong_key_is_refused_before_its_body_is_read(serve):
    with serve(fine, keys=Keys([KEY])) as server:
        status, _, _ = server.request("POST", "/v1/completions", b"{not json", {"Authorization": "Bearer no"})
        assert status == 401


def test_keys_are_compared_in_constant_time_and_all_of_them(monkeypatch):
    compared = []

    def compare(left, right):
        compared.append((left, right))
        return real(left, right)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = Keys([KEY, OTHER])
    assert keys.admit(KEY)
    assert not keys.admit("x")
    assert not keys.admit(None)
    assert not keys.admit("é" * 5)
    assert len(compared) == 8  # each of the two, every time
    assert {len(left) for left, _ in compared} == {32}  # digests: equal lengths tell nothing of the key


@pytest.mark.parametrize("key", ["short", "with a space in it", "unprintable\n-key-here", "ключ-ключ-ключ-ключ"])
def test_a_key_that_can_be_guessed_or_not_be_sent_is_refused(key):
    with pytest.raises(UserError, match="API key 1"):
        Keys([key])


def test_keys_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# for the team\n{KEY}\n\n {OTHER} \n")
    assert read_keys(str(file)) == [KEY, OTHER]
    monkeypatch.setenv("LIT_GPT_API_KEYS", f"{KEY}, {OTHER}")
    assert read_keys(None) == [KEY, OTHER]
    monkeypatch.delenv("LIT_GPT_API_KEYS")
    assert read_keys(None) == []
    (tmp_path / "none").write_text("\n")
    for name in ("none", "missing"):
        with pytest.raises(UserError, match=name):
            read_keys(str(tmp_path / name))


def test_other_machines_only_with_a_key():
    with pytest.raises(UserError, match="API key"):
        allowed_names("0.0.0.0", None, 0)
    assert allowed_names("0.0.0.0", None, 1) is None
    assert allowed_names("127.0.0.1", None, 0) == frozenset(LOOPBACK)
    assert allowed_names("0.0.0.0", ["Example.org", "[::1]"], 1) == {"example.org", "::1"}


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost:80", "localhost"),
        ("[::1]:80", "::1"),
        ("LOCALHOST", "localhost"),
        ("", ""),
        ("a:b:c", ""),
        ("x@y", "x@y"),
    ],
)
def test_host_names(header, name):
    assert host_name(header) == name


def test_a_name_that_was_pointed_here_gets_nothing(serve):
    with serve(fine, hosts=frozenset(LOOPBACK)) as server:
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""):
            for path in ("/", "/v1/models", "/health"):
                status, _, body = server.request("GET", path, headers={"Host": host})
                assert status == 403
                assert b"evil" not in body
        for host in ("localhost", f"127.0.0.1:{server.port}", "[::1]:8000"):
            assert server.request("GET", "/v1/models", headers={"Host": host})[0] == 200


def test_other_origins_are_off_unless_named(serve):
    ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    with serve(fine) as server:
        status, headers, _ = server.request("OPTIONS", "/v1/chat/completions", headers=ask)
        assert status == 405
        assert not [name for name in headers if name.startswith("access-control")]
        assert "access-control-allow-origin" not in server.request("GET", "/v1/models", headers=ask)[1]
    with serve(fine, keys=Keys([KEY]), cors_origins=["https://app.example"]) as server:
        status, headers, _ = server.request("OPTIONS", "/v1/chat/completions", headers=ask)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://app.example")
        other = ask | {"Origin": "https://evil.example"}
        assert server.request("OPTIONS", "/v1/chat/completions", headers=other)[0] == 400
        assert server.request("GET", "/v1/models", headers=ask)[0] == 401


def test_headers_against_framing_and_sniffing(serve):
    with serve(fine) as server:
        _, headers, _ = server.request("GET", "/")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "server" not in headers
