"""A program of torch.export computes what the model does, for every part, batch and length."""

import subprocess
import sys

import pytest
import torch

from lit_gpt.checkpoints.torch_program import export_program, loader_line, save_torch_program
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig, MoEConfig

SHAPES = ((1, 1), (1, 2), (3, 5), (2, 32), (5, 17))
CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=32, vocab_size=61, sliding_window=6, dropout=0.1)


def agree(config, dtype=torch.float32):
    model = GPT(config).to(dtype).eval().requires_grad_(False)
    run = export_program(model).module()
    for shape in SHAPES:
        ids = torch.randint(0, config.vocab_size, shape)
        torch.testing.assert_close(run(ids), model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_every_part_for_any_batch_and_length(packable_config):
    agree(packable_config)


@pytest.mark.slow
def test_experts_in_bfloat16():
    agree(
        GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=61, moe=MoEConfig(4, 2, 16)), torch.bfloat16
    )


def test_experts():
    agree(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=61, moe=MoEConfig(4, 2, 16)))


def test_sliding_layers_among_others():
    agree(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=32, vocab_size=61, sliding_window=4,
                    layer_windows=(True, False)))  # fmt: skip


def test_the_file_runs_without_lit_gpt(tmp_path):
    model = GPT(CONFIG).eval()
    path = tmp_path / "small.pt2"
    difference = save_torch_program(path, CONFIG, model.state_dict())
    assert difference is not None
    assert difference < 1e-5
    assert [file.name for file in tmp_path.iterdir()] == ["small.pt2"]
    ids = [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    code = (
        f"import sys, torch; run = {loader_line(path)}; assert 'lit_gpt' not in sys.modules; "
        f"print(run(torch.tensor({ids})).argmax(-1).tolist())"
    )
    # Isolated: the package cannot be found even by its name.
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout.strip() == str(model(torch.tensor(ids)).argmax(-1).tolist())


def test_a_program_that_is_wrong_is_not_written(tmp_path, monkeypatch):
    model = GPT(CONFIG)
    wrong = GPT(CONFIG).requires_grad_(False)
    wrong.init_weights(5)
    other = export_program(wrong)
    monkeypatch.setattr("lit_gpt.checkpoints.torch_program.export_program", lambda model: other)
    with pytest.raises(UserError, match="logits differ"):
        save_torch_program(tmp_path / "small.pt2", CONFIG, model.state_dict())
    assert not any(tmp_path.iterdir())


def test_a_model_of_one_position(tmp_path):
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=1, vocab_size=61)
    assert save_torch_program(tmp_path / "one.pt2", config, GPT(config).state_dict()) == 0.0


def test_a_full_disk_is_one_sentence_and_not_the_end_of_the_process(tmp_path):
    code = (
        "import resource, sys; from lit_gpt.models import GPT, GPTConfig; "
        "from lit_gpt.checkpoints.torch_program import save_torch_program; "
        "config = GPTConfig(n_layer=1, n_head=2, n_embd=64, block_size=32, vocab_size=500); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
        "save_torch_program(sys.argv[1], config, GPT(config).state_dict())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "small.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "UserError: no space to write" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_names(tmp_path):
    weights = GPT(CONFIG).state_dict()
    with pytest.raises(UserError, match=r"\.pt2"):
        save_torch_program(tmp_path / "small", CONFIG, weights)
    (tmp_path / "there.pt2").touch()
    with pytest.raises(UserError, match=r"\.pt2"):
        save_torch_program(tmp_path / "there.pt2", CONFIG, weights)
    with pytest.raises(UserError, match="float64"):
        save_torch_program(tmp_path / "small.pt2", CONFIG, weights, dtype="float64")
