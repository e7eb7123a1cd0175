"""Standard error of each command holds what is ours, or a line of Lightning's that this list allows: nothing else."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = [
    r"Seed set to \d+",
    r"(GPU|TPU|HPU) available: .*",
    r"`Trainer(\.fit)?.*",  # limits that were set, and why the run has ended
    r"\[rank: \d\] .*",
    r"(Restoring states|Restored all states|Loaded model weights) from the checkpoint.*",
    # ours
    r"(tokenizer|corpus|rows|model|weights|resume|config|run|pipeline|data|checkpoint|measured?|merged|wrote|quantiz\w*)\b.*",
    r"step \d+.*",
    r"\d+ optimizer steps? in all",
    r"\d\d-\w+: .*",  # a cleaning step and its counts
    r"measure \d+ .*",
    r".*\d+%.*",  # our progress bars
    r"To (resume|continue|try|chat|generate|sample).*|python -m lit_gpt .*",
]
SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1"]


def standard_error(folder: Path, *words: str, status: int = 0, stdin: str = "") -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "lit_gpt", *words]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes) as process:
        if words[0] == "serve":
            address = next(found[0] for line in process.stdout if (found := re.search(r"http://[\d.:]+", line)))
            assert urlopen(f"{address}/health", timeout=60).status == 200  # answered once it serves
            process.send_signal(signal.SIGTERM)
        _, text = process.communicate(stdin)
    assert process.returncode == status, text
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def unexpected(lines: list[str]) -> list[str]:
    return [line for line in lines if not any(re.fullmatch(pattern, line.strip()) for pattern in ALLOWED)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quiet")
    (folder / "texts").mkdir()
    for number in range(60):
        (folder / "texts" / f"{number}.txt").write_text(f"It was day {number}. The wind was cold. " * 8)
    (folder / "fit.yaml").write_text(
        "trainer: {name: base}\n"
        "model: {class_path: PretrainModule, init_args: {preset: tiny, overrides: {n_layer: 1, n_head: 2, n_embd: 32, "
        "intermediate_size: 64}}}\n"
        "data: {class_path: TextDataModule, init_args: {files: texts, vocab_size: 300, block_size: 32, "
        "global_batch_size: 4, val_fraction: 0.2, num_workers: 0}}\n"
    )
    assert unexpected(standard_error(folder, "fit", "--config", "fit.yaml", *SHORT)) == []
    return folder


def test_fit_is_quiet(folder):
    assert (folder / "runs" / "base" / "checkpoints").is_dir()  # the fixture has looked at its screen


# Each starts a process, a few seconds long: the plain tier looks at two commands, the slow one at all.
@pytest.mark.parametrize(
    "words",
    [
        ("generate", "--model", "runs/base", "--prompt", "It", "--max_new_tokens", "3"),
        pytest.param(("validate", "--config", "runs/base/config.yaml", "--ckpt_path", "last"), marks=pytest.mark.slow),
        pytest.param(("export", "--model", "runs/base", "--out", "exported"), marks=pytest.mark.slow),
        pytest.param(
            ("quantize", "--model", "runs/base", "--out", "small", "--files", "texts/1.txt"), marks=pytest.mark.slow
        ),
        pytest.param(("evaluate", "--model", "runs/base", "--config", "eval.yaml"), marks=pytest.mark.slow),
        pytest.param(("prepare", "--config", "recipe.yaml"), marks=pytest.mark.slow),
        pytest.param(("doctor",), marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_a_command_is_quiet(folder, words):
    (folder / "eval.yaml").write_text(
        "measures: [{class_path: LanguageModeling, init_args: {texts: {files: texts/2.txt}}}]\n"
    )
    (folder / "recipe.yaml").write_text(
        "out: corpus\nsources: [{files: texts}]\nsteps: [{length: {min_chars: 10}}]\ntokenizer: {vocab_size: 300}\n"
    )
    assert unexpected(standard_error(folder, *words)) == []


@pytest.mark.slow
def test_a_chat_and_a_server_are_quiet(folder):
    end = "{% if m.role == 'assistant' %}<|endoftext|>{% endif %}"
    (folder / "plain.jinja").write_text("{% for m in messages %}{{ m.content }}" + end + "{% endfor %}")
    words = ("chat", "--model", "runs/base", "--chat_template", "plain.jinja", "--max_new_tokens", "3")
    (line,) = standard_error(folder, *words, stdin="It\n")
    assert re.match(r"\[\d tokens?, ", line)
    words = ("serve", "--model", "runs/base", "--port", "0")
    assert [line for line in standard_error(folder, *words) if " INFO " not in line] == []


@pytest.mark.slow
def test_an_import_and_an_adapter_are_quiet(folder):
    standard_error(folder, "export", "--model", "runs/base", "--out", "published")
    (folder / "published" / "lit_gpt.json").unlink()
    (folder / "published" / "manifest.json").unlink()
    assert unexpected(standard_error(folder, "import", "--model", "published", "--out", "imported")) == []
    adapter = ["--model.init_args.init_from", "runs/base", "--model.init_args.adapter.rank", "2"]
    adapter += ["--model.init_args.overrides", "null"]
    lines = standard_error(folder, "fit", "--config", "fit.yaml", "--trainer.name", "adapter", *adapter, *SHORT)
    assert unexpected(lines) == []
