"""Precisions, DDP, FSDP2 and tensor parallelism follow one float32 process, resume, and export."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TWO = ["--trainer.devices", "2"]
SHARDED = ["--trainer.strategy", "ParallelStrategy"]
AXIS = "--trainer.strategy.init_args.{}"
FSDP = [*SHARDED, AXIS.format("data"), "2", AXIS.format("tensor"), "1", *TWO]
TENSOR = [*SHARDED, AXIS.format("data"), "1", AXIS.format("tensor"), "2", *TWO]
SETTINGS = {
    # name: (arguments, relative tolerance of the loss over 20 steps)
    "ddp": (["--trainer.strategy", "ddp", *TWO], 1e-4),
    "fsdp2": (FSDP, 1e-4),
    "tensor": (TENSOR, 1e-4),
    "bf16-mixed": (["--trainer.precision", "bf16-mixed"], 2e-2),
    "bf16-true": (["--trainer.precision", "bf16-true"], 5e-2),
}
# A constant learning rate: the run stops at 12 steps first, and a schedule would fall towards that end.
PLAIN = ["--model.init_args.overrides.dropout", "0.0", "--model.init_args.schedule", "Constant"]


@pytest.fixture(scope="module")
def single(shared_runs):
    """20 steps of one float32 process."""
    shared_runs.run("single", *PLAIN, "--trainer.max_steps", "20", root="single")
    return shared_runs


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_follows_the_single_process_resumes_and_exports(single, name):
    arguments, tolerance = SETTINGS[name]
    single.run(f"{name}-a", *PLAIN, *arguments, "--trainer.max_steps", "12", root=name)
    single.run(f"{name}-b", *PLAIN, *arguments, "--trainer.max_steps", "20", "--ckpt_path", "last", root=name)
    ranks = range(2 if name in ("ddp", "fsdp2") else 1)  # tensor-parallel processes see the same samples
    for step, line in single.steps("single").items():
        start = f"{name}-a" if step <= 12 else f"{name}-b"
        loss = sum(single.steps(start, rank)[step]["loss_sum"] for rank in ranks)
        assert loss == pytest.approx(line["loss_sum"], rel=tolerance), f"step {step}"
    out = single.folder / f"{name}-bundle"
    command = [sys.executable, "-m", "lit_gpt", "export", "--model", str(single.folder / name / "run")]
    done = subprocess.run([*command, "--out", str(out)], env=single.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one(single):
    single.run("gradients", *PLAIN, *SETTINGS["ddp"][0], "--trainer.max_steps", "1", root="gradients")
    one = load_file(single.folder / "records" / "single-gradients.safetensors")
    two = load_file(single.folder / "records" / "gradients-gradients.safetensors")
    for name, gradient in one.items():
        assert torch.linalg.norm(two[name] - gradient) <= 1e-6 * torch.linalg.norm(gradient), name
