"""A problem becomes advice: one case for each option, numbers by hand, and briefs whose configs exist."""

import re
from pathlib import Path

import pytest

from lit_gpt.cli import main
from lit_gpt.planning.devices import find_device
from lit_gpt.planning.framing import Answers, advise, brief, budget_flops, largest_base

H100 = find_device("h100")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("answers", "best"),
    [
        ({"task": "chat"}, "as it is"),
        ({"task": "chat", "examples": 5000}, "fine-tune"),
        ({"task": "chat", "examples": 5000, "facts_change": True}, "retrieve"),
        ({"task": "generate", "examples": 5000, "tokens": 1e9, "dollars": 1e5}, "fine-tune"),
        ({"task": "generate", "covered": False, "tokens": 2e10, "dollars": 500}, "from scratch"),
        ({"task": "generate", "provenance": True, "tokens": 2e10, "dollars": 500}, "from scratch"),
    ],
)
def test_each_kind_of_project_has_its_advice(answers, best):
    options = {option.name: option for option in advise(Answers(**answers), H100)}
    assert next(option for name, option in options.items() if best in name).advised == "yes"
    assert len(options) == 5


def test_what_lacks_its_condition_is_not_advised():
    options = {option.name: option for option in advise(Answers("chat", examples=10, tokens=1e6), H100)}
    for word in ("fine-tune", "continue", "from scratch", "retrieve"):
        assert next(option for name, option in options.items() if word in name).advised == "no"
    rich = advise(Answers("generate", tokens=1e10, dollars=1e6), H100)
    assert next(option for option in rich if "continue" in option.name).advised == "yes"


def test_numbers_by_hand():
    # 100 dollars at 3.00 an hour, 40 % of 989.4 TFLOP/s
    assert budget_flops(Answers("chat"), H100) == pytest.approx(100 / 3.00 * 3600 * 989.4e12 * 0.4)
    assert budget_flops(Answers("chat"), find_device("l4")) is None
    # 0.8 x 4 GB / 2 bytes = 1.6e9 weights: below 1.7e9, so 3.6e8 in bf16; int8 holds 3.2e9, of which 3e9 exists
    assert largest_base(Answers("chat", memory_gb=4), H100)[:2] == (3e9, "int8")
    # 3.35 TB/s read 1.675e9 weights of 2 bytes in 1 ms, 3.35e9 of 1 byte
    assert largest_base(Answers("chat", latency_ms=1), H100)[:2] == (3e9, "int8")
    assert largest_base(Answers("chat", memory_gb=0.01), H100)[0] is None


def test_a_brief_names_configs_that_exist():
    for answers in (
        Answers("chat", examples=5000, tokens=1e9, dollars=1e6, risk="high", use="commercial"),
        Answers("classify", examples=2000),
        Answers("reason", examples=2000, provenance=True),
    ):
        text = brief(answers, H100, "Title")
        assert text.startswith("# Title")
        for config in re.findall(r"configs/[\w/]+\.yaml", text):
            assert (ROOT / config).is_file(), config


def test_the_command_writes_a_brief(tmp_path, capsys):
    out = tmp_path / "brief.md"
    words = ["--task", "chat", "--examples", "2000", "--facts_change", "--languages", "de", "fr"]
    assert main(["plan", "init", "--out", str(out), *words]) == 0
    text = out.read_text()
    assert "de, fr" in text
    assert "2,000" in text
    assert "## Advice" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "chatt"], ("chatt", "chat")),
        ([], ("task", "--task")),
        (["--task", "chat", "--device", "h10"], ("h10", "h100")),
        (["--task", "chat", "--examples", "-1"], ("examples", "at least 0")),
    ],
)
def test_bad_answers_are_one_line_and_no_file(tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    out = tmp_path / "brief.md"
    assert main(["plan", "init", "--out", str(out), *options]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words), err
    assert not out.exists()


def test_questions_are_asked_in_a_terminal(tmp_path, capsys, monkeypatch):
    answers = iter(["classify", "", "many", "3000", "", "", "", "", "", "", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert main(["plan", "init", "--out", str(tmp_path / "brief.md")]) == 0
    assert "3,000" in (tmp_path / "brief.md").read_text()
    assert "'many' cannot be read" in capsys.readouterr().out
