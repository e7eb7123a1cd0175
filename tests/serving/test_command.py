"""`serve` from the command line: what starts, what is refused before it starts, and how it ends."""

import json
import shutil
import signal
import socket
import threading
import urllib.request

import openai
import pytest
from served_process import ServedProcess

from lit_gpt.cli import main
from lit_gpt.serving.model import load_served


@pytest.fixture(autouse=True)
def _never_serve(monkeypatch):
    """A mistake that is not met fails its test instead of serving for ever."""

    def serve(*_):
        raise AssertionError("it began to serve")

    monkeypatch.setattr("lit_gpt.serving.server.serve_until_stopped", serve)


def refused(capsys, *words):
    """The one line that a mistake ends in."""
    assert main(["serve", "--port", "0", *map(str, words)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("lit_gpt serve: error: ")
    assert "Traceback" not in error
    return error


def test_folders_that_are_no_model(bundle, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "no model" in refused(capsys, "--model", tmp_path / "empty")
    assert "does not exist" in refused(capsys, "--model", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_that_was_changed_or_lost_is_named(bundle, tmp_path, capsys, name):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    error = refused(capsys, "--model", copy)
    assert name in error
    assert "hash" in error.lower() or "sha" in error.lower()
    (copy / name).unlink()
    assert name in refused(capsys, "--model", copy)


def test_settings_that_cannot_be(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LIT_GPT_API_KEYS", raising=False)
    assert "API key" in refused(capsys, "--model", bundle, "--host", "0.0.0.0")
    assert "limits.body_bytes" in refused(capsys, "--model", bundle, "--limits.body_bytes", "0")
    assert "max_batch_size" in refused(capsys, "--model", bundle, "--max_batch_size", "0")
    assert "cache_tokens" in refused(capsys, "--model", bundle, "--cache_tokens", "0")
    error = refused(capsys, "--model", bundle, "--cache_tokens", 10**15)
    assert "cache_tokens 1000000000000000" in error
    assert "free" in error.splitlines()[-1]
    assert "max_length 65" in refused(capsys, "--model", bundle, "--max_length", 65)
    (tmp_path / "keys").write_text("short\n")
    assert "16" in refused(capsys, "--model", bundle, "--api_keys_file", tmp_path / "keys")
    assert "preset" in refused(capsys, "--model", bundle, "--chat_template", "nonsense")
    assert "<|im_end|>" in refused(capsys, "--model", bundle, "--chat_template", "chatml")  # not in its vocabulary
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(bundle), "--port", str(port)]) == 2
        assert "cannot listen" in capsys.readouterr().err


def test_a_model_is_called_by_its_folder(bundle):
    served = load_served(str(bundle), max_batch_size=2)
    try:
        assert served.name == "tiny-bundle"
        assert served.renderer is None
        assert served.max_length == 64
    finally:
        served.loop.close()
    served = load_served(str(bundle), name="mine", chat_template="alpaca", dtype="bfloat16", max_batch_size=2)
    try:
        assert served.name == "mine"
        assert served.network.wte.weight.dtype.itemsize == 2
        assert served.chat_ids([{"role": "user", "content": "add"}], [])
    finally:
        served.loop.close()


def test_sigterm_at_the_first_line_that_it_prints_ends_it_as_later(bundle, monkeypatch):
    monkeypatch.undo()  # of `_never_serve`
    said = []

    def stop(line, **_):
        if not said:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # which would end the tests too
            signal.raise_signal(signal.SIGTERM)
        said.append(line)

    monkeypatch.setattr("builtins.print", stop)
    assert main(["serve", "--port", "0", "--model", str(bundle)]) == 0
    assert said[0].startswith("tiny-bundle")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_it_serves_and_sigterm_drains(bundle):
    with ServedProcess("--model", bundle, "--max_batch_size", 1) as server:
        assert any("cache" in line and "1 sequence x 64 tokens" in line for line in server.lines)
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="unused", max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny-bundle"]
        with urllib.request.urlopen(f"{server.address}/") as page:
            assert b"<title>lit_gpt</title>" in page.read()
        options = {"model": "tiny-bundle", "prompt": "def ", "max_tokens": 40, "extra_body": {"ignore_eos": True}}
        answers, begun = [], threading.Event()

        def ask():
            for chunk in client.completions.create(stream=True, **options):
                begun.set()
                reason = chunk.choices[0].finish_reason
            answers.append(reason)

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        assert begun.wait(30)
        server.terminate()
        for thread in asking:
            thread.join(30)
        assert server.process.wait(30) == 0
        # Those that were accepted are answered whole; one that came too late never got in.
        assert answers
        assert set(answers) == {"length"}
    log = "".join(server.lines)
    assert "Traceback" not in log
    assert "def " not in log
    assert json.dumps("tiny-bundle") not in log
