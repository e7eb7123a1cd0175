"""What attends to what: the weights that the fast kernels never write down, for looking at.

B batch, T time, L layers, H heads, K key/value heads, D head size.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.models.attention import SelfAttention
from lit_gpt.models.gpt import GPT
from lit_gpt.models.masks import dense_mask


@torch.no_grad()
def attention_maps(model: GPT, input_ids: Tensor) -> Tensor:
    """Run the model once and return every head's attention weights.

    The model runs as it would otherwise, in eval mode and uncompiled; it stays sharded if it is, so that under FSDP
    every process has to call this.

    Args:
        model: On the device of `input_ids`.
        input_ids: (B, T) int64, each row one document.

    Returns:
        (L, B, H, T, T) float32 on CPU; row i of the last two sums to 1 over the tokens that token i may see.
    """
    maps: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
        assert isinstance(module, SelfAttention)
        q, k, _ = module.project(args[0], args[1])
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, T, D)
        sees = dense_mask(None, model.config.window(module.layer), q.shape[2], 0, q.device)
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
        maps.append(scores.masked_fill(~sees, -math.inf).softmax(dim=-1).cpu())

    hooks = [module.register_forward_hook(record) for module in model.modules() if isinstance(module, SelfAttention)]
    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            model(input_ids)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return torch.stack(maps)
