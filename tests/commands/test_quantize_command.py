"""`quantize`: what it prints is what it wrote, and what does not fit is one line and no folder."""

import itertools
import re

import pytest
import torch
from small_chats import small_tokenizer, tokenizer_folder

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.checkpoints.quantization import Quantization
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.cli import main
from lit_gpt.models import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=48, vocab_size=304)


@pytest.fixture
def bundle(tmp_path):
    model = GPT(CONFIG)
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    return str(save_bundle(tmp_path / "whole", CONFIG, model.state_dict(), tokenizer))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("red stone runs, blue river sleeps; " * 40)
    return str(path)


def run(*words):
    return main(["quantize", *map(str, words)])


def test_what_it_says_is_what_it_wrote(tmp_path, bundle, text, capsys):
    assert run("--model", bundle, "--out", tmp_path / "small", "--method", "int4", "--files", text) == 0
    out = capsys.readouterr().out
    assert "int4 in groups of 32" in out
    whole = sum(parameter.nbytes for parameter in GPT(CONFIG).parameters())
    before, after = re.search(r"weights +([\d.]+) MB -> ([\d.]+) MB", out).groups()
    assert float(before) == pytest.approx(whole / 1e6, abs=0.006)
    assert float(after) < float(before)
    first, second, rise = map(float, re.search(r"bits/byte +([\d.]+) -> ([\d.]+) \(([+-][\d.]+)", out).groups())
    assert first == pytest.approx(bits_per_byte(bundle, text), abs=2e-4)
    assert second == pytest.approx(bits_per_byte(tmp_path / "small", text), abs=2e-4)
    assert rise == pytest.approx(second - first, abs=2e-4)
    assert re.search(r"tokens/s +[\d.]+ -> [\d.]+ \([\d.]+ x; .*cpu\)", out)
    assert main(["generate", "--model", str(tmp_path / "small"), "--prompt", "red", "--max_new_tokens", "3"]) == 0
    assert "quantized | int4 in groups of 32, from `whole`" in (tmp_path / "small" / "README.md").read_text()


def bits_per_byte(model, text):
    """Of the first window, by hand: the file is shorter than two windows would show anything of."""
    from lit_gpt.evaluation.language_modeling import LanguageModeling
    from lit_gpt.evaluation.subject import load_subject
    from lit_gpt.evaluation.texts import Texts

    (result,) = LanguageModeling(Texts(files=text)).run(load_subject(str(model), device="cpu", weights="auto"))
    return next(score.value for score in result.scores if score.name == "bits_per_byte")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "int4", "--max_increase", "-1"], "more than max_increase -1.0; nothing is written"),
        (["--method", "fp8"], "fp8 needs a CUDA device"),
        (["--group_size", "24"], "group_size 24 does not divide the 32 inputs of blocks.0.attn.q_proj"),
        (["--method", "int8_dynamic", "--group_size", "32"], "group_size is 32"),
        (["--documents", "0"], "documents is 0"),
        (["--measure_minutes", "0"], "measure_minutes is 0"),
        (["--max_increase", "0.1", "--measure", "false"], "leave out --measure false"),
        (["--files", "nowhere/*.txt"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_no_folder(tmp_path, bundle, text, capsys, arguments, message):
    files = [] if "--files" in arguments else ["--files", text]
    assert run("--model", bundle, "--out", tmp_path / "small", *files, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "tokenizer", "whole"]


def test_what_is_there_is_not_touched_and_what_is_quantised_is_refused(tmp_path, bundle, capsys):
    out = tmp_path / "small"
    assert run("--model", bundle, "--out", out, "--measure", "false") == 0
    assert resolve_model(out).quantized.scheme == Quantization("int8")
    assert run("--model", bundle, "--out", out, "--measure", "false") == 2
    assert "exists" in capsys.readouterr().err
    assert run("--model", out, "--out", tmp_path / "smaller", "--measure", "false") == 2
    assert "use the original model (whole)" in capsys.readouterr().err
    assert main(["export", "--model", str(out), "--out", str(tmp_path / "export")]) == 2
    assert "use the original model (whole)" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()


def test_without_torchao_the_extra_is_named(tmp_path, bundle, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    assert run("--model", bundle, "--out", tmp_path / "small", "--measure", "false") == 2
    assert "pip install -e '.[quantize]'" in capsys.readouterr().err


def test_the_time_for_measuring_is_bounded(tmp_path, bundle, capsys, monkeypatch):
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text(f"red stone {number} runs, blue river sleeps; " * 20)
    now = itertools.count()
    monkeypatch.setattr("lit_gpt.evaluation.language_modeling.time.monotonic", lambda: 10.0 * next(now))
    words = ["--model", bundle, "--out", tmp_path / "small", "--files", tmp_path / "*.txt"]
    assert run(*words, "--measure_minutes", "2") == 0  # 30 seconds for the documents of a model, each takes 10
    said = capsys.readouterr()
    assert re.search(r"on 3 documents of", said.out)
    assert "measuring the quantized model: 100%" in said.err


@pytest.mark.slow
def test_the_loss_of_a_trained_model_stays_within_its_bounds(tmp_path, capsys):
    """8 bits cost less than 0.001 bits per byte, 4 bits in groups of 32 less than 0.02."""
    texts = [
        f"the {a} {b} runs to the {c} river\n" for a in ("red", "blue") for b in ("stone", "two") for c in ("old", "x")
    ]
    tokenizer = small_tokenizer()
    data = torch.cat([torch.as_tensor(tokenizer.encode(text).tolist()) for text in texts * 40])
    model = GPT(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        starts = torch.randint(0, len(data) - 49, (8,))
        rows = torch.stack([data[start : start + 49] for start in starts])
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1
    save_bundle(tmp_path / "whole", CONFIG, model.state_dict(), tokenizer_folder(tmp_path / "tokenizer"))
    (tmp_path / "text.txt").write_text("".join(texts * 10))
    for method, bound in (("int8", 0.001), ("int8_dynamic", 0.002), ("int4", 0.02)):
        words = ["--method", method, "--max_increase", bound, "--files", tmp_path / "text.txt"]
        assert run("--model", tmp_path / "whole", "--out", tmp_path / method, *words) == 0, capsys.readouterr().err


def test_without_a_tokenizer_the_way_is_named(tmp_path, capsys):
    save_bundle(tmp_path / "bare", CONFIG, GPT(CONFIG).state_dict())
    assert run("--model", tmp_path / "bare", "--out", tmp_path / "small") == 2
    assert "--measure false" in capsys.readouterr().err
    assert run("--model", tmp_path / "bare", "--out", tmp_path / "small", "--measure", "false") == 0
    assert resolve_model(tmp_path / "small").quantized.scheme == Quantization("int8")
