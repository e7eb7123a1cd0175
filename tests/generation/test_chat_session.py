"""A conversation: what the model is shown, what is kept, and what the terminal does with it."""

import json

import pytest
from small_chats import small_tokenizer

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.cli import main
from lit_gpt.data.chat import ChatRenderer, load_chat_template, with_chat_template
from lit_gpt.errors import UserError
from lit_gpt.generation import Engine, EngineLoop, SamplingParams
from lit_gpt.generation.chat_session import ChatSession, converse
from lit_gpt.models import GPT, GPTConfig


@pytest.fixture(scope="module")
def tokenizer():
    return with_chat_template(small_tokenizer(), load_chat_template("chatml"), ("<|im_start|>", "<|im_end|>"))


@pytest.fixture(scope="module")
def model(tokenizer):
    model = GPT(
        GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=256, vocab_size=tokenizer.vocab_size, mlp="gelu_tanh")
    )
    model.init_weights(0)
    return model


@pytest.fixture
def session(model, tokenizer):
    engine = Engine(model, tokenizer, max_batch_size=1)
    with EngineLoop(engine) as loop:
        params = SamplingParams(max_new_tokens=16, seed=1)
        yield ChatSession(loop, ChatRenderer(tokenizer), params, engine.max_length, "be brief")


def test_turns_are_kept_and_shown_again(session, tokenizer):
    answer = "".join(session.ask("hello"))
    assert session.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": answer}]
    "".join(session.ask("again"))
    assert len(session.messages) == 4
    assert session.stats.num_tokens > 0
    assert session.stats.finish_reason in ("stop", "length")
    ids, dropped = session._prompt()
    assert tokenizer.decode(ids).startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello")
    assert dropped == 0
    session.reset()
    assert session.messages == []
    assert session.system == "be brief"


def test_oldest_turns_leave_a_full_context(session):
    for number in range(8):
        list(session.ask(f"question {number} red blue"))
    assert session.stats.num_dropped > 0
    assert session.stats.num_dropped % 2 == 0
    assert len(session.messages) == 16, "they are still part of the conversation"


def test_a_question_longer_than_the_context_is_refused_and_forgotten(session):
    with pytest.raises(UserError, match="more than the context of 256"):
        list(session.ask("word " * 300))
    assert session.messages == []


def test_leaving_an_answer_keeps_what_was_written(session):
    pieces = session.ask("hello")
    first = next(pieces)
    pieces.close()
    assert session.messages[-1] == {"role": "assistant", "content": first}
    assert "".join(session.ask("next"))


def test_a_terminal_conversation(session, tmp_path, monkeypatch, capsys):
    lines = [
        "hello",
        "",
        "/nonsense",
        f"/save {tmp_path}/talk.jsonl",
        "/save",
        f"/save {tmp_path}/talk.jsonl/inside",
        "/system be long",
        "/help",
        "/reset",
        "again",
        "/exit",
        "never",
    ]
    monkeypatch.setattr("builtins.input", lambda prompt: lines.pop(0))
    converse(session)
    printed = capsys.readouterr()
    assert lines == ["never"]
    saved = json.loads((tmp_path / "talk.jsonl").read_text())
    assert [turn["role"] for turn in saved["messages"]] == ["system", "user", "assistant"]
    assert saved["messages"][2]["content"] in printed.out
    assert printed.err.count("tokens/s") == 2
    for words in (
        "/nonsense",
        "saved 2 messages",
        "name a file",
        "cannot be written",
        "be long",
        "reset",
    ):
        assert words in printed.err
    assert session.system == "be long"


@pytest.mark.parametrize("word", ["/exit", "/quit", "/q", "/bye"])
def test_ways_to_leave(session, monkeypatch, word):
    lines = [word, "never"]
    monkeypatch.setattr("builtins.input", lambda prompt: lines.pop(0))
    converse(session)
    assert lines == ["never"]


def test_control_c_stops_the_answer_and_not_the_programme(session, monkeypatch, capsys):
    plain, asked = session.ask, []

    def interrupted(text):
        asked.append(text)
        for number, piece in enumerate(plain(text)):
            yield piece
            if number == 1 and len(asked) == 1:
                raise KeyboardInterrupt

    lines = iter(["one", KeyboardInterrupt(), "two"])

    def typed(prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        if isinstance(line, KeyboardInterrupt):
            raise line
        return line

    monkeypatch.setattr(session, "ask", interrupted)
    monkeypatch.setattr("builtins.input", typed)
    converse(session)
    assert asked == ["one", "two"]
    assert [turn["role"] for turn in session.messages] == ["user", "assistant"] * 2
    assert "stopped]" in capsys.readouterr().err


def test_the_command(model, tokenizer, tmp_path, monkeypatch, capsys):
    tokenizer.save(tmp_path / "tokenizer")
    save_bundle(tmp_path / "bundle", model.config, model.state_dict(), tmp_path / "tokenizer")
    lines = iter(["hello", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "--model", str(tmp_path / "bundle"), "--max_new_tokens", "5", "--seed", "1"]) == 0
    assert "tokens/s" in capsys.readouterr().err
    small_tokenizer().save(tmp_path / "plain")
    small = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=128, vocab_size=300, mlp="gelu_tanh"))
    save_bundle(tmp_path / "without", small.config, small.state_dict(), tmp_path / "plain")
    assert main(["chat", "--model", str(tmp_path / "without")]) == 2
    assert "--chat_template" in capsys.readouterr().err
