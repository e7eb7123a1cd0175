"""From weights to a model that is trained no further."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lit_gpt.checkpoints.huggingface.exporting import TRAINING_ONLY
from lit_gpt.models import GPT, GPTConfig


def finished_model(config: GPTConfig, weights: Mapping[str, Tensor]) -> GPT:
    """Build a model in eval mode, frozen, without dropout and without multi-token blocks.

    Args:
        config: its shape.
        weights: whole, or quantised ones of the same shapes, under the GPT's names; it holds these very tensors.
    """
    with torch.device("meta"):
        network = GPT(replace(config, dropout=0.0, multi_token=0)).eval().requires_grad_(False)
    kept = {name: weights[name] for name in weights if not name.startswith(TRAINING_ONLY)}
    network.load_state_dict(kept, assign=True)
    return network
