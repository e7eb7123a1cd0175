"""Every token weighs the same: how a step is cut into micro-batches does not change its gradient."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lit_gpt.modules import PretrainModule


class FirstGradients(pl.Callback):
    """Keeps the gradients that the optimizer gets."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {name: p.grad.clone() for name, p in pl_module.model.named_parameters()}


def rows():
    """Eight rows with 1 to 15 supervised tokens each."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (8, 17), generator=generator)
    labels = tokens[:, 1:].clone()
    for row in range(8):
        labels[row, 1 + 2 * row :] = -100
    return tokens[:, :-1], labels


def gradients(micro_batch_size):
    inputs, labels = rows()
    step = [
        {"input_ids": inputs[i : i + micro_batch_size], "labels": labels[i : i + micro_batch_size]}
        for i in range(0, 8, micro_batch_size)
    ]
    module = PretrainModule(
        overrides={"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 50, "block_size": 16}, z_loss=1e-3
    )
    keep = FirstGradients()
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[keep],
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=DataLoader([step], batch_size=None))
    return module, keep.gradients


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_one_times_eight_is_eight_times_one(micro_batch_size):
    _, whole = gradients(8)
    _, cut = gradients(micro_batch_size)
    for name, gradient in whole.items():
        assert torch.linalg.norm(cut[name] - gradient) <= 1e-6 * torch.linalg.norm(gradient), name


def test_the_gradient_is_that_of_the_mean_over_tokens():
    module, actual = gradients(2)
    inputs, labels = rows()
    fresh = module.build_model()
    fresh.init_weights(module.seed)
    logits = fresh(inputs)
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    z = (logits.logsumexp(-1).square() * (labels != -100)).sum() / (labels != -100).sum()
    expected = torch.autograd.grad(nats + 1e-3 * z, list(fresh.parameters()))
    for (name, _), gradient in zip(fresh.named_parameters(), expected, strict=True):
        assert torch.linalg.norm(actual[name] - gradient) <= 1e-5 * torch.linalg.norm(gradient), name
