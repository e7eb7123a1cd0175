"""Every family learns: the loss on real text falls well below what letter frequencies alone would give."""

import argparse
import inspect
import math
from functools import partial

import pytest
import torch

from lit_gpt.models import GPT, get_preset, preset_names
from lit_gpt.models.families.ladder import shrink
from lit_gpt.objectives import linear_cross_entropy

BATCH, LENGTH = 8, 64
FIRST_PRESETS = list({get_preset(name).family: name for name in reversed(preset_names())}.values())
"""One of each family that has presets."""


def text() -> torch.Tensor:
    """A module of the standard library, as bytes."""
    return torch.tensor(list(inspect.getsource(argparse).encode()))


def unigram_entropy(data: torch.Tensor) -> float:
    """Nats per byte of a model that knows how often each byte occurs, and nothing else."""
    shares = data.bincount().float() / len(data)
    return -sum(share * math.log(share) for share in shares.tolist() if share)


def train(name: str, steps: int) -> list[float]:
    """Losses of a small model of that architecture."""
    config = shrink(get_preset(name), n_embd=64, n_head=4, block_size=LENGTH, vocab_size=256)
    model, data = GPT(config), text()
    model.init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20)
        starts = torch.randint(len(data) - LENGTH - 1, (BATCH, 1), generator=generator)
        rows = data[starts + torch.arange(LENGTH + 1)]
        head_fn = partial(linear_cross_entropy, labels=rows[:, 1:], softcap=config.logit_softcap)
        loss = model(rows[:, :-1], head_fn=head_fn).loss / rows[:, 1:].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST_PRESETS)
def test_200_steps_beat_letter_frequencies(name):
    losses = train(name, 200)
    assert losses[0] > 5, "an untrained model knows nothing of 256 bytes"
    assert sum(losses[-20:]) / 20 < 0.8 * unigram_entropy(text())


@pytest.mark.parametrize("name", FIRST_PRESETS)
def test_a_few_steps_lower_the_loss(name):
    losses = train(name, 8)
    assert losses[-1] < 0.95 * losses[0]
