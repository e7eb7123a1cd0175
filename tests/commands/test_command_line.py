"""The door: help, one-line errors, and configurations that run as printed. Each test is a process of its own."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lit_gpt.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"


def command(*words, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lit_gpt", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with a small corpus and a YAML of a run on it."""
    folder = tmp_path_factory.mktemp("door")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(f"Text {number}: " + " ".join(str(number * k) for k in range(30)))
    config = {
        "trainer": {"name": "small", "max_steps": 4, "accelerator": "cpu", "log_every_n_steps": 2},
        "model": {
            "class_path": "PretrainModule",
            "init_args": {"preset": "tiny", "overrides": {"n_layer": 1, "n_head": 2, "n_embd": 16}},
        },
        "data": {
            "class_path": "TextDataModule",
            "init_args": {
                "files": "texts",
                "vocab_size": 300,
                "block_size": 16,
                "global_batch_size": 4,
                "val_fraction": 0.2,
                "test_fraction": 0.2,
                "cache_dir": "cache",
            },
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    bad = folder / "bad"
    bad.mkdir()
    (bad / "picture.txt").write_bytes(bytes(range(256)) * 8)
    (bad / "latin.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    (bad / "rows.jsonl").write_text('{"text": "one"}\n{"text": \n')
    (bad / "fields.jsonl").write_text('{"text": "one"}\n{"body": "two"}\n')
    (folder / "empty").mkdir()
    (folder / "short.txt").write_text("short")
    return folder


# ---- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--help"], ["generate", "--help"], ["tokenizer", "--help"], ["tokenizer", "train", "--help"]]
)
def test_help_of_tools_imports_neither_torch_nor_lightning(words, tmp_path):
    program = (
        "import sys; from lit_gpt.cli import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_one_help_lists_every_command(tmp_path):
    start = time.perf_counter()
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("fit", "validate", "test", "predict", "generate", "tokenizer", "import", "export"):
        assert f"    {word}" in done.stdout
    assert "python -m lit_gpt fit --config configs/quickstart.yaml\n" in done.stdout, "examples keep their lines"
    assert time.perf_counter() - start < 20


def test_fit_help_teaches(tmp_path):
    text = command("fit", "--help", cwd=tmp_path).stdout
    for words in ("--trainer.name", "optimizer steps", "--ckpt_path", "last"):
        assert words in text
    module = command("fit", "--model.help", "PretrainModule", cwd=tmp_path).stdout
    for words in ("--model.preset", "z-loss", "--model.schedule", "max_tokens"):
        assert words in module


def test_version(tmp_path):
    assert command("--version", cwd=tmp_path).stdout.strip().split()[-1].count(".") == 2


# ---- configurations -------------------------------------------------------------------------------------------------


# Plans of `evaluate` are no arguments of a command: tests/evaluation reads each of them.
ARGUMENTS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in ("eval", "launch"))


@pytest.mark.parametrize("path", ARGUMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_yaml_of_the_project_parses(path, tmp_path, monkeypatch, capsys):
    assert path.read_text().startswith("#"), f"{path} must open with what it trains, where, how long, which loss"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit_gpt"])
    name = "prepare" if path.parent.name == "data" else "fit"
    try:  # in this process: a start of its own for each would take minutes
        code = main([name, "--config", str(path), "--print_config"])
    except SystemExit as done:
        code = done.code
    printed = capsys.readouterr()
    assert not code, printed.err
    assert yaml.safe_load(printed.out)


def test_the_printed_config_runs_as_it_is_and_the_run_speaks_and_exports(folder):
    printed = command("fit", "--config", "run.yaml", "--trainer.name", "printed", "--print_config", cwd=folder)
    (folder / "printed.yaml").write_text(printed.stdout)
    done = command("fit", "--config", "printed.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "try it" in done.stdout
    run = folder / "runs" / "printed"
    names = sorted(path.name for path in run.iterdir())
    events = [name for name in names if name.startswith("events.out.tfevents")]
    assert len(events) == 1, "TensorBoard shows the run under its own name"
    assert sorted({*names} - {*events}) == ["checkpoints", "config.yaml", "lineage.json", "tokenizer"]

    again = command("fit", "--config", run / "config.yaml", cwd=folder)
    assert again.returncode == 2
    assert "--ckpt_path last" in again.stderr, "a second run does not fall upon the first"

    longer = command(
        "fit", "--config", run / "config.yaml", "--ckpt_path", "last", "--trainer.max_steps", 6, cwd=folder
    )
    assert longer.returncode == 0, longer.stderr
    assert "trainer.max_steps: 4 -> 6" in longer.stdout

    spoken = command("generate", "--model", run, "--prompt", "Text 1", "--max_new_tokens", 5, cwd=folder)
    assert spoken.returncode == 0, spoken.stderr
    assert spoken.stdout.startswith("Text 1")

    for stage in ("validate", "test"):
        measured = command(stage, "--config", run / "config.yaml", "--ckpt_path", "last", cwd=folder)
        assert measured.returncode == 0, measured.stderr
        assert f"{'val' if stage == 'validate' else 'test'}/bits_per_byte" in measured.stdout
        assert not re.search(r"^\W*step\b", measured.stdout, re.MULTILINE)  # not "step 0" for a trained model

    predicted = command("predict", "--config", run / "config.yaml", "--ckpt_path", "last", cwd=folder)
    assert predicted.returncode == 0, predicted.stderr
    assert (run / "predictions.jsonl").read_text().count("bits_per_byte") > 0

    exported = command("export", "--model", run, "--out", "bundle", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    spoken_again = command("generate", "--model", "bundle", "--prompt", "Text 1", "--max_new_tokens", 5, cwd=folder)
    assert spoken_again.stdout == spoken.stdout


# ---- mistakes -------------------------------------------------------------------------------------------------------

MISTAKES = {
    "preset": (["--model.init_args.preset", "tinny"], "nearest: tiny"),
    "head": (["--model.init_args.overrides.n_head", "3"], "n_embd 16 is not divisible by n_head 3"),
    "field": (["--model.init_args.overrides.n_layr", "3"], "n_layer)"),
    "option": (["--trainer.max_stepz", "3"], "nearest: trainer.max_steps"),
    "learning rate": (["--model.optimizer", "AdamW", "--model.optimizer.lr", "0"], "learning rate is 0"),
    "files": (["--data.init_args.files", "nowhere"], "nowhere does not exist"),
    "window": (["--data.init_args.block_size", "100000"], "block_size 100000"),
    "batch": (["--data.init_args.micro_batch_size", "3"], "micro_batch_size 3"),
    "accumulation": (["--trainer.accumulate_grad_batches", "2"], "micro_batch_size"),
    "vocabulary": (["--model.init_args.overrides.vocab_size", "200"], "200"),
    "checkpoint": (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
    "no run to go on with": (["--ckpt_path", "last"], "no checkpoint"),
    "name": (["--trainer.name", "a/b"], "a/b"),
    "class": (["--model", "PretrainModul"], "nearest: PretrainModule"),
    "data key": (["--data.init_args.block_sze", "16"], "nearest: block_size"),
    "empty corpus": (["--data.init_args.files", "empty"], "empty"),
    "binary file": (["--data.init_args.files", "bad/picture.txt"], "picture.txt"),
    "invalid UTF-8": (["--data.init_args.files", "bad/latin.txt"], "latin.txt"),
    "no JSON": (["--data.init_args.files", "bad/rows.jsonl"], "rows.jsonl:2"),
    "missing field": (["--data.init_args.files", "bad/fields.jsonl"], "fields.jsonl:2"),
    "short corpus": (
        ["--data.files", "short.txt", "--data.val_fraction", "0", "--data.test_fraction", "0"],
        "block_size 16",
    ),
}


@pytest.mark.parametrize("mistake", ["preset", "learning rate", "files"])
def test_a_mistake_is_one_line_and_leaves_nothing(folder, mistake):
    check_mistake(folder, *MISTAKES[mistake])


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_one_line_and_leaves_nothing(folder, mistake):
    check_mistake(folder, *MISTAKES[mistake])


def check_mistake(folder, words, expected):
    done = command("fit", "--config", "run.yaml", "--trainer.name", "mistake", *words, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert expected in errors[0]
    assert not (folder / "runs" / "mistake").exists()


@pytest.mark.slow
def test_a_loss_that_turns_nan_stops_saves_its_batch_and_says_which_step(folder):
    words = ["--trainer.name", "nan", "--model.optimizer", "AdamW", "--model.optimizer.lr", "1e30"]
    done = command("fit", "--config", "run.yaml", *words, cwd=folder)
    assert done.returncode == 2
    assert "not finite at optimizer step 2" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "runs" / "nan" / "nonfinite-step-00000002.pt").exists()
    skip = ["--trainer.callbacks+=NonFiniteGuard", "--trainer.callbacks.action=skip", "--trainer.name", "skip"]
    skipped = command("fit", "--config", "run.yaml", *words, *skip, cwd=folder)
    assert skipped.returncode == 0, skipped.stderr
    assert "the step is skipped" in skipped.stderr


@pytest.mark.slow
def test_a_checkpoint_of_another_shape_is_refused_by_its_fields(folder):
    assert command("fit", "--config", "run.yaml", "--trainer.name", "shape", cwd=folder).returncode == 0
    words = ["--trainer.name", "shape", "--ckpt_path", "last", "--model.overrides.n_embd", "32"]
    done = command("fit", "--config", "run.yaml", *words, cwd=folder)
    assert done.returncode == 2
    assert "n_embd is 32 here and 16 in the checkpoint" in done.stderr


def test_a_misspelled_key_in_a_yaml_names_the_nearest(folder):
    (folder / "misspelled.yaml").write_text((folder / "run.yaml").read_text().replace("model:", "modle:"))
    done = command("fit", "--config", "misspelled.yaml", cwd=folder)
    assert done.returncode == 2
    assert "modle" in done.stderr
    assert "model" in done.stderr.partition("nearest: ")[2]


def test_a_model_that_is_not_there(tmp_path):
    done = command("generate", "--model", "./nowhere", "--prompt", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
