"""Mixtures of experts, latent attention and tokens further ahead keep the promises that dense models keep."""

import json

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.modules import PretrainModule

MOE = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "intermediate_size": 16,
    "shared_intermediate_size": 16,
    "layers": [False, True],
    "scores": "sigmoid",
    "selection_bias": True,
    "bias_update_rate": 0.01,
    "balance_loss_weight": 0.05,
    "z_loss_weight": 0.01,
}
MLA = {"kv_lora_rank": 12, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
PARTS = {"moe": MOE, "mla": MLA, "multi_token": 1, "qk_norm": None}


# ---- in this process -----------------------------------------------------------------------------------------------


class Step(pl.Callback):
    """Keeps the gradients that the optimizer gets, and the biases after it."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {name: p.grad.clone() for name, p in pl_module.model.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.biases = {name: buffer.clone() for name, buffer in pl_module.model.named_buffers()}


class Values(Logger):
    """Keeps the latest value of each metric."""

    name, version = "values", ""

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_metrics(self, metrics, step=None):
        self.values |= metrics

    def log_hyperparams(self, *arguments, **named):
        pass


def rows():
    """Eight rows with 1 to 15 supervised tokens each; the second half of every other row is padding."""
    tokens = torch.randint(0, 50, (8, 17), generator=torch.Generator().manual_seed(0))
    labels, documents = tokens[:, 1:].clone(), torch.zeros(8, 16, dtype=torch.int64)
    for row in range(8):
        labels[row, 1 + 2 * row :] = -100
        documents[row, 5:] = 1
        if row % 2:
            documents[row, 2 * row + 1 :] = -1
    return {"input_ids": tokens[:, :-1], "labels": labels, "document_ids": documents}


def one_step(micro_batch_size, callbacks=(), precision="32-true", parts=PARTS, logger=False, **options):
    batch = rows()
    step = [{k: v[i : i + micro_batch_size] for k, v in batch.items()} for i in range(0, 8, micro_batch_size)]
    shape = {"n_layer": 4, "n_head": 2, "n_embd": 32, "intermediate_size": 48, "vocab_size": 50, "block_size": 16}
    module = PretrainModule(overrides=shape | parts, **options)
    keep = Step()
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*callbacks, keep], log_every_n_steps=1,
        precision=precision,
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=DataLoader([step], batch_size=None))
    return keep


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_one_times_eight_is_eight_times_one(micro_batch_size):
    whole, cut = one_step(8), one_step(micro_batch_size)
    for name, gradient in whole.gradients.items():
        assert torch.linalg.norm(cut.gradients[name] - gradient) <= 1e-6 * torch.linalg.norm(gradient), name
    assert len(whole.biases) == 3  # two layers, and the block that predicts further ahead
    for name, bias in whole.biases.items():
        assert torch.equal(cut.biases[name], bias)
        assert bias.abs().max() == pytest.approx(0.01)


def test_recomputed_activations_change_nothing():
    loggers = Values(), Values()
    plain, recomputed = one_step(4, logger=loggers[0]), one_step(4, logger=loggers[1], activation_checkpointing=True)
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(recomputed.gradients[name], gradient, rtol=1e-6, atol=1e-9)
    assert all(torch.equal(recomputed.biases[name], bias) for name, bias in plain.biases.items())
    assert loggers[0].values == pytest.approx(loggers[1].values)


def test_selection_biases_move_in_bf16_true():
    class FromOne(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            for buffer in pl_module.model.buffers():
                buffer.fill_(1.0)  # between 1 and 2, numbers of bfloat16 are 0.008 apart

    parts = PARTS | {"moe": MOE | {"bias_update_rate": 0.001}, "multi_token": 0}
    keep = one_step(4, callbacks=[FromOne()], precision="bf16-true", parts=parts)
    for bias in keep.biases.values():
        assert bias.dtype == torch.float32
        assert (bias - 1).abs().max() == pytest.approx(0.001, rel=1e-3)


def test_what_is_logged():
    logger = Values()
    one_step(4, logger=logger)
    logged = logger.values
    assert 1 <= logged["router/max_load"] <= logged["router/max_load_worst"] <= 3
    assert 0 < logged["router/entropy"] <= 1
    assert 0.15 < logged["train/router_loss"] < 1  # three mixtures of 0.05 at least, and their z-losses
    assert logged["train/mtp_loss"] > 0


# ---- through the command line --------------------------------------------------------------------------------------

OVERRIDES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64} | PARTS
PLAIN = [f"--model.init_args.overrides={json.dumps(OVERRIDES)}", "--model.init_args.schedule", "Constant"]
TWO = ["--trainer.devices", "2"]
STRATEGIES = {
    "ddp": ["--trainer.strategy", "ddp", *TWO],
    "fsdp2": [
        *("--trainer.strategy", "ParallelStrategy"),
        *("--trainer.strategy.init_args.data", "2"),
        *("--trainer.strategy.init_args.tensor", "1", *TWO),
    ],
    "expert": [
        *("--trainer.strategy", "ParallelStrategy"),
        *("--trainer.strategy.init_args.data", "2"),
        *("--trainer.strategy.init_args.expert", "2", *TWO),
    ],
}


@pytest.fixture(scope="module")
def single(shared_runs):
    """14 steps of one process."""
    shared_runs.run("single", *PLAIN, "--trainer.max_steps", "14", root="single")
    return shared_runs


def biases(run):
    found = {k: v for k, v in resolve_model(run).load_state_dict().items() if k.endswith("selection_bias")}
    assert len(found) == 2
    return found


@pytest.mark.slow
def test_resumed_is_uninterrupted(single):
    single.run("a", *PLAIN, "--trainer.max_steps", "6", root="resumed")
    single.run("b", *PLAIN, "--trainer.max_steps", "14", "--ckpt_path", "last", root="resumed")
    assert single.steps("a") | single.steps("b") == single.steps("single")
    one, other = (load_file(single.checkpoints(root)[-1] / "model.safetensors") for root in ("single", "resumed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(bias.abs().max() > 0.02 for bias in biases(single.folder / "single/run").values())


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_follow_one_and_resume(single, name):
    single.run(f"{name}-a", *PLAIN, *STRATEGIES[name], "--trainer.max_steps", "6", root=name)
    single.run(f"{name}-b", *PLAIN, *STRATEGIES[name], "--trainer.max_steps", "14", "--ckpt_path", "last", root=name)
    for step, line in single.steps("single").items():
        start = f"{name}-a" if step <= 6 else f"{name}-b"
        loss = sum(single.steps(start, rank)[step]["loss_sum"] for rank in (0, 1))
        assert loss == pytest.approx(line["loss_sum"], rel=1e-4), f"step {step}"
    one = load_file(single.folder / "records" / "single-gradients.safetensors")
    two = load_file(single.folder / "records" / f"{name}-a-gradients.safetensors")
    for parameter, gradient in one.items():
        assert torch.linalg.norm(two[parameter] - gradient) <= 1e-5 * torch.linalg.norm(gradient), parameter
    moved = biases(single.folder / name / "run")  # 14 steps of 0.01, half of them after the resume
    for router, bias in biases(single.folder / "single/run").items():
        torch.testing.assert_close(moved[router], bias, rtol=0, atol=1e-6)
