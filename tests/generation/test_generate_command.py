"""`python -m lit_gpt generate`: one prompt as text, many as JSON lines."""

import io
import json
from pathlib import Path

import pytest
from small_chats import small_tokenizer

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.cli import main
from lit_gpt.data.chat import ChatRenderer, load_chat_template
from lit_gpt.data.chat.template import with_chat_template
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.models import GPT, GPTConfig


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=300, mlp="gelu_tanh"))
    model.init_weights(0)
    small_tokenizer().save(folder / "tokenizer")
    save_bundle(folder / "bundle", model.config, model.state_dict(), folder / "tokenizer")
    return str(folder / "bundle")


def run(capsys, *words):
    status = main(["generate", *map(str, words)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_one_prompt_is_printed_with_its_continuation(bundle, capsys):
    status, out, _ = run(capsys, "--model", bundle, "--prompt", "red blue", "--max_new_tokens", 100)
    assert status == 0
    assert out.startswith("red blue")
    assert len(out) > 60, "more than the context holds"
    assert run(capsys, "--model", bundle, "--prompt", "red blue", "--max_new_tokens", 100)[1] == out
    assert run(capsys, "--model", bundle, "--prompt", "red blue", "--max_new_tokens", 100, "--seed", 1)[1] != out
    numbered = run(capsys, "--model", bundle, "--prompt", "red", "--max_new_tokens", 3, "--num_samples", 2)[1]
    assert "--- sample 1 of 2\nred" in numbered
    assert "--- sample 2 of 2\nred" in numbered


def test_a_file_of_prompts_gives_json_lines_in_its_order(bundle, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("red blue\n\ntwo seven stone\nriver\n", encoding="utf-8")
    words = ["--model", bundle, "--prompts", tmp_path / "p.txt", "--max_new_tokens", 7, "--logprobs", 2]
    status, out, _ = run(capsys, *words)
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [row["prompt"] for row in rows] == ["red blue", "two seven stone", "river"]
    assert all(len(row["logprobs"]) == row["completion_tokens"] == len(row["token_ids"]) for row in rows)
    alone = run(capsys, "--model", bundle, "--prompt", "river", "--max_new_tokens", 7)[1]
    assert alone == "river" + rows[2]["text"] + "\n"
    one_by_one = [json.loads(line) for line in run(capsys, *words, "--batch_size", 1)[1].splitlines()]
    assert [row["token_ids"] for row in one_by_one] == [row["token_ids"] for row in rows]
    assert run(capsys, *words, "--out", tmp_path / "o.jsonl")[1] == ""
    assert (tmp_path / "o.jsonl").read_text(encoding="utf-8") == out


def test_a_model_without_a_chat_template_is_not_asked_and_weights_are_rounded(bundle, capsys):
    words = ["--model", bundle, "--prompt", "red blue", "--max_new_tokens", 4, "--temperature", 0]
    status, _, error = run(capsys, *words, "--chat")
    assert status == 2
    assert "--chat_template" in error
    assert run(capsys, *words, "--dtype", "bfloat16")[0] == 0


def test_a_model_with_a_chat_template_is_asked_and_only_answers(bundle, tmp_path, capsys):
    template = load_chat_template("chatml")
    tokenizer = with_chat_template(load_tokenizer(Path(bundle)), template, template.tokens)
    tokenizer.save(tmp_path / "tokenizer")
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=tokenizer.vocab_size))
    model.init_weights(0)
    save_bundle(tmp_path / "chat", model.config, model.state_dict(), tmp_path / "tokenizer")
    words = ["--model", tmp_path / "chat", "--max_new_tokens", 12, "--temperature", 0]
    status, answer, error = run(capsys, *words, "--prompt", "red blue", "--chat")
    assert status == 0, error
    assert "red blue" not in answer
    rendered = "<|im_start|>user\nred blue<|im_end|>\n<|im_start|>assistant\n"
    (tmp_path / "p.txt").write_text("red blue\n")
    row = json.loads(run(capsys, *words, "--prompts", tmp_path / "p.txt", "--chat")[1])
    assert row["prompt"] == "red blue"
    assert row["text"] == answer.removesuffix("\n")
    ids = ChatRenderer(tokenizer)([{"role": "user", "content": "red blue"}], add_generation_prompt=True).ids
    assert row["prompt_tokens"] == len(ids)
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == rendered
    assert run(capsys, *words, "--prompt", "red blue")[1].startswith("red blue")  # continued, not asked


def test_json_lines_keep_what_came_with_a_prompt(bundle, tmp_path, capsys):
    lines = [{"id": 7, "prompt": "red"}, {"id": 8, "prompt": "blue ", "kind": "x"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--prompts", tmp_path / "p.jsonl", "--max_new_tokens", 4, "--num_samples", 2]
    rows = [json.loads(line) for line in run(capsys, "--model", bundle, *words)[1].splitlines()]
    assert [(row["id"], row["sample"]) for row in rows] == [(7, 0), (7, 1), (8, 0), (8, 1)]
    assert rows[3]["kind"] == "x"


def test_standard_input(bundle, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("red\nblue"))
    assert run(capsys, "--model", bundle, "--prompt", "-", "--max_new_tokens", 3)[1].startswith("red\nblue")


NOT_LINE_ENDS = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"
PROMPT_LINES = {
    "p.txt": NOT_LINE_ENDS + "\nred\n",
    "p.jsonl": json.dumps({"prompt": NOT_LINE_ENDS}, ensure_ascii=False) + '\n{"prompt": "red"}\n',
}


@pytest.mark.parametrize("name", PROMPT_LINES)
@pytest.mark.parametrize("from_file", [True, False])
def test_a_prompt_ends_at_a_line_feed_alone(bundle, tmp_path, capsys, monkeypatch, name, from_file):
    content = PROMPT_LINES[name].encode()
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    prompts = tmp_path / name if from_file else "-"
    out = run(capsys, "--model", bundle, "--prompts", prompts, "--max_new_tokens", 1)[1]
    assert [json.loads(line)["prompt"] for line in out.strip("\n").split("\n")] == [NOT_LINE_ENDS, "red"]


def test_bytes_that_are_no_text_on_standard_input(bundle, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"red \xff\n")))
    status, out, message = run(capsys, "--model", bundle, "--prompts", "-", "--max_new_tokens", 1)
    assert (status, out) == (2, "")
    assert "standard input" in message
    assert "encoding" in message


def test_forms_and_guesses(bundle, tmp_path, capsys):
    out = run(capsys, "--model", bundle, "--prompt", "red:", "--regex", "[0-9]{3}")[1]
    assert out[4:7].isdigit()
    (tmp_path / "s.json").write_text('{"type": "boolean"}')
    out = run(capsys, "--model", bundle, "--prompt", "x", "--json_schema", tmp_path / "s.json")[1]
    assert out in ("xtrue\n", "xfalse\n")
    plain = run(capsys, "--model", bundle, "--prompt", "red red red", "--max_new_tokens", 30)[1]
    assert (
        run(capsys, "--model", bundle, "--prompt", "red red red", "--max_new_tokens", 30, "--draft_tokens", 3)[1]
        == plain
    )
    assert (
        run(capsys, "--model", bundle, "--prompt", "red red red", "--max_new_tokens", 30, "--draft_model", bundle)[1]
        == plain
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_samples", 0], "num_samples is 0"),
        (["--top_p", 2], "top_p is 2"),
        (["--prompt", "a", "--prompts", "b"], "choose one"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: it cannot be read"),
        (["--prompt", "word " * 200], "more than the 64 that fit"),
        (["--regex", "(", "--prompt", "x"], "refused"),
        (["--regex", "a", "--grammar", "b"], "--grammar"),
        (["--max_new_tokens", -1], "max_new_tokens is -1"),
        (["--draft_tokens", -1], "draft_tokens is -1; it must be at least 0 and at most 64"),
    ],
)
def test_mistakes_are_one_line(bundle, capsys, words, message):
    status, _, err = run(capsys, "--model", bundle, *words)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_the_number_of_draft_tokens_is_checked_before_the_model_is_read(capsys):
    status, _, err = run(capsys, "--model", "nowhere", "--draft_tokens", 65)
    assert status == 2
    assert "draft_tokens is 65" in err
