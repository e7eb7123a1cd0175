"""A wrong option is answered in one line, before any usage, with the option to write; help begins with what is common."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from lit_gpt.cli import _with_lists, _with_option, main
from lit_gpt.parser import plain_text, short_message

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
FIT = ["fit", "--config", str(QUICKSTART), "--print_config"]
GENERATE = ["generate", "--model", "somewhere"]

WRONG = {
    "abbreviation": ([*FIT, "--trainer.max_step", "3"], "trainer.max_steps"),
    "abbreviation of a tool": ([*GENERATE, "--max_new", "3"], "max_new_tokens"),
    "learning rate": ([*FIT, "--lr", "3"], "model.init_args.optimizer.init_args.lr"),
    "learning rate of others": ([*FIT, "--model.learning_rate", "3"], "model.init_args.optimizer.init_args.lr"),
    "without its group": ([*FIT, "--max_steps", "3"], "trainer.max_steps"),
    "batch size": ([*FIT, "--batch_size", "3"], "data.init_args.global_batch_size"),
    "field of the model": ([*FIT, "--model.n_layers", "3"], "model.init_args.overrides.n_layer"),
    "class": ([*FIT, "--model", "PretrainModul"], "PretrainModule"),
    "optimizer": ([*FIT, "--model.optimizer", "AdamV"], "AdamW"),
    "callback": ([*FIT, "--trainer.callbacks+=SampleTex"], "SampleText"),
    "name of others": ([*GENERATE, "--max_tokens", "3"], "max_new_tokens"),
    "command": (["generat", "--model", "x"], "generate"),
    "subcommand": (["tokenizer", "trian"], "train"),
    "unlike any": ([*GENERATE, "--xyzzy", "3"], "generate --help"),
    "missing": (["generate"], "--model"),
    "nothing": (["fit"], "configs/quickstart.yaml"),
    "number": ([*GENERATE, "--max_new_tokens", "x"], "max_new_tokens is x"),
    "number of a field": ([*FIT, "--model.overrides.n_head", "x"], "overrides.n_head is x"),
    "absent config": (["fit", "--config", str(QUICKSTART.with_name("quikstart.yaml"))], "quickstart.yaml?"),
    "argument of a class": ([*FIT[:3], "--trainer.logger", "CSVLogger"], "CSVLogger needs save_dir"),
    "field of a class": ([*FIT, "--trainer.callbacks", "[{class_path: Timer, init_args: {a: 3}}]"], "Timer"),
    "no class": ([*FIT, "--trainer.callbacks", "[3]"], "trainer.callbacks is [3]"),
    "unknown class": ([*FIT, "--trainer.logger", "csv"], "trainer.logger has csv"),
    "number of a class": ([*FIT, "--model.optimizer", "{class_path: AdamW, init_args: {lr: x}}"], "AdamW: lr is x"),
    "precision": ([*FIT, "--trainer.precision", "bf17"], "bf16-mixed"),
}


@pytest.mark.parametrize(("words", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_answered_in_one_line(words, expected, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit_gpt"])
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert error.startswith("lit_gpt")
    assert expected in error


def test_a_key_of_a_yaml_is_answered_like_an_option(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit_gpt"])
    text = QUICKSTART.read_text()
    for wrong, right, expected in (
        ("learning_rate: 3\ntrainer:", "trainer:", "model.init_args.optimizer.init_args.lr"),
        ("  epochs: 3\n  name:", "  name:", "trainer.max_epochs"),
    ):
        (tmp_path / "wrong.yaml").write_text(text.replace(right, wrong, 1))
        with pytest.raises(SystemExit):
            main(["fit", "--config", str(tmp_path / "wrong.yaml")])
        assert expected in capsys.readouterr().err


def test_a_model_or_a_config_may_come_without_its_name():
    assert _with_option(["chat", "runs/x", "--seed", "1"]) == ["chat", "--model", "runs/x", "--seed", "1"]
    assert _with_option(["fit", "my.yaml"]) == ["fit", "--config", "my.yaml"]
    assert _with_option(["inspect", "my.yaml"]) == ["inspect", "--config", "my.yaml"]
    for words in (["tokenizer", "train", "--files", "a"], ["generate", "--model", "x"], ["--help"], ["doctor", "x"]):
        assert _with_option(words) == words


def test_a_switch_needs_no_value_and_a_list_no_brackets():
    assert _with_lists(["generate", "--chat", "--seed", "1"]) == ["generate", "--chat", "true", "--seed", "1"]
    depths = _with_lists(["plan", "ladder", "--depths", "2", "3", "--out", "x"])
    assert depths == ["plan-ladder", "--depths", "[2, 3]", "--out", "x"]
    assert _with_lists(["generate", "--chat", "false"]) == ["generate", "--chat", "false"]
    assert _with_lists(["prepare", "--explain"]) == ["prepare", "--explain", "topics"]


def test_help_of_fit_begins_with_the_usual_options(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit_gpt"])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    places = [text.index(f"  {option}") for option in ("--ckpt_path", "--model", "--data", "--trainer.max_steps")]
    assert places == sorted(places)
    assert max(places) < text.index("--trainer.gradient_clip_val") < text.index("--trainer.barebones")
    assert len(text.partition("usual options")[0].splitlines()) < 12
    assert not re.search(r":\w+:`|``|Linked arguments|<class|lit_gpt\.|GPTModule|BaseFinetuning", text)


def test_docstrings_lose_the_marks_of_sphinx():
    assert (
        plain_text("as a :class:`datetime.timedelta`.  Default: ``None``. Then ``x``.") == "as a timedelta. Then `x`."
    )
    assert plain_text("in :paramref:`~lightning.pytorch.Trainer.logger` or so") == "in logger or so"


def test_a_message_about_a_class_that_fails_is_kept():
    text = "Parser key \"data\":\n  Problem with given class_path 'A':\n    - too few\n  Given value: {}"
    assert "Problem with given class_path 'A'" in short_message(text)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_of_the_shell_or_names_its_extra(shell, capsys):
    status = main(["--completion", shell])
    printed = capsys.readouterr()
    if importlib.util.find_spec("shtab") is None:
        assert status == 2
        assert "[completion]" in printed.err
    else:
        assert status == 0
        assert "max_new_tokens" in printed.out
        assert "lit-gpt" in printed.out


# ---- what does not fit the machine ----------------------------------------------------------------------------------

MACHINE = {
    "accelerator": (["--trainer.accelerator", "gpu"], "trainer.accelerator"),
    "strategy": (["--trainer.accelerator", "cpu", "--trainer.strategy", "fsdp"], "fsdp"),
    "logger": (["--trainer.logger", "CometLogger"], "comet"),
}


@pytest.mark.parametrize(("words", "expected"), MACHINE.values(), ids=MACHINE)
def test_what_this_machine_lacks_is_one_line(words, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit_gpt"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(["fit", "--config", str(QUICKSTART), *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert expected in errors[0]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["generate", "chat", "serve", "evaluate", "score"])
def test_a_device_that_is_missing_is_one_line(command, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    more = {"evaluate": ["--suite", "safety"], "score": ["--files", "x", "--out", "y"], "serve": ["--port", "0"]}
    assert main([command, "--model", "nothere", "--device", "cuda", *more.get(command, [])]) == 2
    assert "--device cpu" in capsys.readouterr().err
